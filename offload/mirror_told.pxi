"""What a mirror tells of itself, and what proves that it tells the truth. Part of mirror.pyx. Not here: changing anything."""


cdef uint32_t sum_of(const uint32_t *each) noexcept nogil:
    """Of all kinds of jobs."""
    return each[<int>JOB_ADD] + each[<int>JOB_DEL] + each[<int>JOB_STATS]


cdef uint32_t commands_of(const State *m) noexcept nogil:
    """Those that hardware has not taken."""
    return m.ring[<int>JOB_ADD].commands + m.ring[<int>JOB_DEL].commands + m.ring[<int>JOB_STATS].commands


cdef dict counters_of(const State *m):
    cdef const Tally *t = &m.tally
    told = {
        "flows": m.known, "offloaded": m.offloaded, "rules": m.rules, "outstanding": sum_of(m.outstanding),
        "queued": commands_of(m),
        "accepted": t.accepted, "existed": t.existed, "destroyed": t.destroyed, "missing": t.missing, "refused_full": t.refused_full,
        "refused_unsupported": t.refused_unsupported, "refused_other": t.refused_other, "undestroyed": t.undestroyed, "uncounted": t.uncounted,
        "lost": t.lost, "held_back": t.held_back, "kept_out": t.kept_out, "called_off": t.called_off, "evictions": t.evictions,
        "spared": t.spared, "strays": t.strays, "withdrawn": t.withdrawn, "strange": t.strange, "resets": t.resets,
    }
    for job, name in JOBS.items():
        told |= {f"pending_{name}": m.pending[<int>job], f"dropped_{name}": t.dropped[<int>job], f"commands_{name}": t.commands[<int>job]}
        told |= {f"{name}_{outcome}": t.came[<int>job][<int>i] for i, outcome in enumerate(OUTCOMES)}
    return told


cdef dict why_of(const State *m, uint32_t row):
    cdef const Mirrored *one
    if row >= m.size or not m.row[row].flags & KNOWN:
        return None
    one = &m.row[row]
    current = one.epoch == m.epoch
    held = [Ctinfo(has) if has and current else None for has in (one.held[ORIG], one.held[REPLY])]
    return {
        "serial": one.serial, "conn": one.conn, "held": held, "job": Job(one.job).name.lower() if one.job and current else None,
        "why": reason(m, row), "error": one.error, "refusals": one.tries, "retry_at": one.due if one.due and not one.job else None,
        "going": bool(one.flags & GOING), "waiting": bool(one.flags & WAITING), "doubt": bool(one.doubt), "mark": one.mark,
        "bytes": one.bytes, "rate": one.rate,
    }


cdef object reason(const State *m, uint32_t row):
    """The Why of a flow that is known; None: hardware has it."""
    cdef const Mirrored *one = &m.row[row]
    if one.epoch != m.epoch:
        return Why.PENDING
    if installed(one):
        return None
    if one.job != NO_JOB or one.flags & WAITING:
        return Why.PENDING
    return Why.HW_EVICTED if one.flags & EVICTED else of_error(one.error) or Why.PENDING


cdef dict reasons_of(const State *m, uint32_t first, uint32_t past):
    """By errno, since these are few, what is not said by the row itself."""
    cdef uint32_t i
    cdef uint64_t in_hardware = 0, pending = 0, evicted = 0
    cdef uint64_t[N_ERRORS] refused
    cdef const Mirrored *one
    memset(refused, 0, sizeof(refused))
    for i in range(first, past):
        one = &m.row[i]
        if not one.flags & KNOWN:
            continue
        if one.epoch != m.epoch:
            pending += 1
        elif installed(one):
            in_hardware += 1
        elif one.job != NO_JOB or one.flags & WAITING:
            pending += 1
        elif one.flags & EVICTED:
            evicted += 1
        else:
            refused[min(<int>one.error, <int>N_ERRORS - 1)] += 1
    told = {None: in_hardware, Why.PENDING: pending, Why.HW_EVICTED: evicted}
    for error in range(N_ERRORS):
        if refused[<int>error]:
            why = of_error(error) or Why.PENDING
            told[why] = told.get(why, 0) + refused[<int>error]
    return {why: flows for why, flows in told.items() if flows}


cdef inline uint32_t bits_of(int bits) noexcept nogil:
    return (bits & 1) + (bits >> 1 & 1)


cdef inline bint sure(const State *m, uint32_t number) noexcept nogil:
    """Whether it is known what hardware has of a row: nothing is on its way, or in doubt."""
    cdef const Mirrored *row = &m.row[number]
    return row.flags & KNOWN != 0 and row.epoch == m.epoch and row.job == NO_JOB and not row.doubt


cdef uint8_t audited(const State *m, const Command *rule) noexcept nogil:
    """What is wrong with a rule that hardware has: Found, or 0. Mark and label are as of when it was made, and may differ (A4.36)."""
    cdef uint32_t number = <uint32_t>(rule.cookie >> 1)
    cdef int dir = rule.cookie & 1
    cdef Command ours
    if number >= m.used or not m.row[number].flags & KNOWN or rule.cookie >> 33 != m.row[number].serial & 0x7FFFFFFF:
        return FOUND_EXTRA
    if not sure(m, number):
        return 0
    if not m.row[number].held[dir]:
        return FOUND_EXTRA
    command(m, number, dir, &ours)
    if not same_key(&ours.match, &rule.match) or not same_key(&ours.to, &rule.to) or ours.conn != rule.conn:
        return FOUND_DIFFERENT
    return FOUND_DIFFERENT if rule.ctinfo != m.row[number].held[dir] else 0


cdef object audit_of(const State *m, held):
    cdef const Command *rule = <const Command *>rows_of(held, COMMAND_DTYPE, "held")
    cdef Py_ssize_t i, n = len(held)
    cdef uint32_t number
    cdef int dir
    cdef uint8_t[::1] seen = np.zeros(2 * <size_t>m.used, dtype=np.uint8)
    cdef uint8_t what
    found = []
    for i in range(n):
        number, dir = <uint32_t>(rule[i].cookie >> 1), rule[i].cookie & 1
        if number < m.used:
            seen[2 * number + dir] |= rule[i].cookie >> 33 == m.row[number].serial & 0x7FFFFFFF
        what = audited(m, &rule[i])
        if what:
            found.append((rule[i].cookie, number, dir, what, 0))
    for number in range(m.used):
        for dir in range(2):
            if sure(m, number) and m.row[number].held[dir] and not seen[2 * number + dir]:
                found.append(((<uint64_t>m.row[number].serial << 32 | number) << 1 | dir, number, dir, int(Found.MISSING), 0))
    return np.array(found, dtype=AUDIT_DTYPE)


cdef int check_all(const State *m) except -1:
    cdef const Mirrored *row
    cdef uint32_t i, known = 0, rules = 0, outstanding = 0, queued = 0
    cdef int job
    cdef uint32_t[4] jobs
    memset(jobs, 0, sizeof(jobs))
    for i in range(m.used):
        row = &m.row[i]
        known += (row.flags & KNOWN) != 0
        if not row.flags & KNOWN or row.epoch != m.epoch:
            continue
        rules += (row.held[ORIG] != 0) + (row.held[REPLY] != 0)
        jobs[row.job] += 1
        outstanding += bits_of(row.waits & ~row.queued)
        queued += bits_of(row.queued)
        if (row.job == NO_JOB) != (row.waits == 0) or row.queued & ~row.waits:
            raise AssertionError(f"row {i}: job {row.job} waits for {row.waits}, {row.queued} of it queued")
        if (installed(row) != 0) != (m.holding[i >> 6] >> (i & 63) & 1):
            raise AssertionError(f"row {i}: what is held and its mark differ")
    gauges = [m.known, m.rules, sum_of(m.outstanding), commands_of(m), m.pending[<int>JOB_ADD], m.pending[<int>JOB_DEL], m.pending[<int>JOB_STATS]]
    counted = [known, rules, outstanding, queued, jobs[<int>JOB_ADD], jobs[<int>JOB_DEL], jobs[<int>JOB_STATS]]
    if gauges != counted:
        raise AssertionError(f"flows, rules, outstanding, queued, jobs are {counted}, and the gauges say {gauges}")
    for job in range(JOB_ADD, N_JOBS):
        check_ring(m, job)
    check_list(m, "jobs that hardware has", m.sent)
    check_list(m, "flows that wait for room", m.waiting)
    return 0


cdef int check_ring(const State *m, int job) except -1:
    cdef const Ring *ring = &m.ring[job]
    cdef const Mirrored *row
    cdef uint32_t i, number, commands = 0
    cdef uint8_t[::1] seen = np.zeros(m.size, dtype=np.uint8)
    for i in range(ring.count):
        number = ring.row[(<uint64_t>ring.first + i) % m.size]
        row = &m.row[number]
        if row.job != job or not row.queued or seen[number]:
            raise AssertionError(f"row {number}: in the ring of job {job}, has job {row.job} with {row.queued} queued; there before: {seen[number]}")
        if place(m, ring, number) != (<uint64_t>ring.first + i) % m.size:
            raise AssertionError(f"row {number}: is number {i} of the ring of job {job}, and does not know it")
        seen[number] = 1
        commands += bits_of(row.queued)
    if commands != ring.commands:
        raise AssertionError(f"the ring of job {job} has {commands} commands, and says {ring.commands}")
    return 0


cdef int check_list(const State *m, str name, Links links) except -1:
    cdef uint32_t at = links.head, prev = NONE, n = 0
    while at != NONE:
        if m.row[at].prev != prev or n > m.used:
            raise AssertionError(f"list of {name}: broken at row {at}")
        if name.startswith("flows") != (m.row[at].flags & WAITING != 0):
            raise AssertionError(f"list of {name}: row {at} does not belong there")
        prev, at, n = at, m.row[at].next, n + 1
    if links.tail != prev:
        raise AssertionError(f"list of {name}: ends with row {prev}, not {links.tail}")
    return 0

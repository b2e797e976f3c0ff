"""Which commands of the mirror come next, and what they say. Part of mirror.pyx.

Commands of each kind of job wait in a ring of their own, by row; they are made up when hardware is about to take them.
Not here: why they are in a ring (mirror_jobs.pxi), what is answered (mirror_replies.pxi).
"""


cdef void command(const State *m, uint32_t number, int dir, Command *c) noexcept nogil:
    cdef const Mirrored *row = &m.row[number]
    memset(c, 0, sizeof(Command))
    c.match = row.key[dir]
    c.to = row.key[1 - dir]             # turned round: what the other direction answers is what leaves (A4.31)
    c.to.src[0], c.to.src[1], c.to.dst[0], c.to.dst[1] = c.to.dst[0], c.to.dst[1], c.to.src[0], c.to.src[1]
    c.to.sport, c.to.dport = c.to.dport, c.to.sport
    c.cookie = (<uint64_t>row.serial << 32 | number) << 1 | dir
    c.conn, c.label[0], c.label[1], c.mark = row.conn, row.label[0], row.label[1], row.mark
    c.op, c.ctinfo, c.dir = OPS[row.job], wanted(row, dir), dir


cdef uint32_t offer(State *m, uint32_t most) noexcept nogil:
    """How many commands of each kind come next (A3.20). Questions for counters wait for nothing else, or what is busy would look idle behind a
    long queue; removals go before installs, since they make room."""
    cdef uint32_t with_hardware = m.outstanding[<int>JOB_ADD] + m.outstanding[<int>JOB_DEL], room = m.window - min(m.window, with_hardware)
    m.offered[<int>JOB_STATS] = min(most, m.ring[<int>JOB_STATS].commands)
    room = min(room, most - m.offered[<int>JOB_STATS])
    m.offered[<int>JOB_DEL] = min(room, m.ring[<int>JOB_DEL].commands)
    m.offered[<int>JOB_ADD] = min(room - m.offered[<int>JOB_DEL], m.ring[<int>JOB_ADD].commands)
    return sum_of(m.offered)


cdef void commands_from(const State *m, const Ring *ring, uint32_t n, Command *c) noexcept nogil:
    """The next n of a ring."""
    cdef uint32_t i = 0, made = 0, number
    cdef int dir
    while made < n:
        if i + AHEAD < ring.count:
            fetch(&m.row[ring.row[(<uint64_t>ring.first + i + AHEAD) % m.size]])
        number = ring.row[(<uint64_t>ring.first + i) % m.size]
        for dir in range(2):
            if made < n and m.row[number].queued >> dir & 1:
                command(m, number, dir, &c[made])
                made += 1
        i += 1


cdef void taken(State *m, int job) noexcept nogil:
    """Hardware has the oldest command of a ring."""
    cdef Ring *ring = &m.ring[job]
    cdef uint32_t number = ring.row[ring.first]
    cdef Mirrored *row = &m.row[number]
    row.queued &= row.queued - 1        # the lower direction of those that wait
    ring.commands -= 1
    if not row.queued:
        ring.first = <uint32_t>((<uint64_t>ring.first + 1) % m.size)
        ring.count -= 1
    m.outstanding[job] += 1
    m.tally.commands[job] += 1
    unlink(m, &m.sent, number)
    row.due = m.now + m.limit
    link(m, &m.sent, number)

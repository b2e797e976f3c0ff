"""What the mirror makes of hardware's replies. Part of mirror.pyx.

A reply is of one direction of a flow whose job waits for it; what is none of these is a stray, and counted.
Not here: what follows when a job ends (mirror_jobs.pxi), replies that do not come (mirror.pyx).
"""


cdef void refuse(State *m, Mirrored *row, int32_t error) noexcept nogil:
    row.error = <int16_t>min(max(error, 1), 0x7FFF)
    if error == ENOSPC or error == ENOMEM:
        m.tally.refused_full += 1
        m.full_until = m.now + m.probe
    elif error == EOPNOTSUPP:
        m.tally.refused_unsupported += 1
    else:
        m.tally.refused_other += 1


cdef void replied_add(State *m, uint32_t number, int dir, int32_t error) noexcept nogil:
    cdef Mirrored *row = &m.row[number]
    if error != 0 and error != EEXIST:
        if row.lost:                        # an earlier one was not answered, and may have been carried out
            row.doubt |= <uint8_t>(1 << dir)
        else:
            row.doubt &= ~<uint8_t>(1 << dir)
        refuse(m, row, error)
        return
    m.tally.accepted += error == 0 and not row.held[dir]
    m.tally.existed += error == EEXIST
    hold(m, number, dir, wanted(row, dir))


cdef void counted(State *m, uint32_t number, int dir, const Reply *reply) noexcept nogil:
    """A6.49, 50."""
    cdef FlowAnswer *a
    measure(m, &m.row[number], reply.bytes)
    say(m, number, m.row[number].serial, ANSWER_COUNTED)
    a = &m.answer[m.answers - 1]
    a.used, a.flags = reply.used, 0 if reply.shared else <uint8_t>FLOW_SPLIT
    a.packets[0 if reply.shared else dir], a.bytes[0 if reply.shared else dir] = reply.packets, reply.bytes


cdef void counted_last(State *m, uint32_t number, int dir, const Reply *reply) noexcept nogil:
    """What a rule that is gone had counted, if it is told."""
    if not reply.packets and not reply.bytes:
        return
    counted(m, number, dir, reply)
    if m.row[number].waits and not m.row[number].flags & GOING:
        say(m, number, m.row[number].serial, ANSWER_PENDING)    # which an answer ends


cdef void replied_del(State *m, uint32_t number, int dir, const Reply *reply) noexcept nogil:
    cdef int32_t error = reply.error
    if error == 0 or error == ENOENT:
        counted_last(m, number, dir, reply)
        m.tally.destroyed += error == 0
        m.tally.missing += error != 0
        m.full_until = 0
        hold(m, number, dir, 0)
    else:
        m.tally.undestroyed += 1
        m.row[number].error = <int16_t>min(max(error, 1), 0x7FFF)
        m.row[number].flags |= STUCK


cdef void replied_stats(State *m, uint32_t number, int dir, const Reply *reply) noexcept nogil:
    """A6.49, 50. One direction after the other, unless one counter serves both."""
    cdef Mirrored *row = &m.row[number]
    if reply.error == ENOENT:
        m.tally.missing += 1
        hold(m, number, dir, 0)
    elif reply.error != 0:
        m.tally.uncounted += 1
    if reply.error == 0:
        counted(m, number, dir, reply)
    elif installed(row):
        say(m, number, row.serial, ANSWER_COUNTED)
    if dir == ORIG and row.held[REPLY] and not (reply.error == 0 and reply.shared):
        if not row.flags & GOING:
            say(m, number, row.serial, ANSWER_PENDING)
        unlink(m, &m.sent, number)
        enqueue(m, number, 1 << REPLY)


cdef void gone(State *m, uint32_t number, int dir, const Reply *reply) noexcept nogil:
    """A rule is there no more, and nobody here has asked for that. What is on its way for it goes on: it may make it anew."""
    cdef Mirrored *row = &m.row[number]
    if not row.held[dir]:
        m.tally.strays += 1
        return
    m.tally.withdrawn += 1
    counted_last(m, number, dir, reply)
    hold(m, number, dir, 0)
    if row.job == NO_JOB:
        say_state(m, number)


cdef inline int outcome_of(int32_t error) noexcept nogil:
    if error == 0:
        return DONE
    if error == ENOSPC or error == ENOMEM:
        return FULL
    return EXISTED if error == EEXIST else MISSING if error == ENOENT else UNSUPPORTED if error == EOPNOTSUPP else OTHER


cdef void replied(State *m, const Reply *reply) noexcept nogil:
    cdef uint32_t number = <uint32_t>(reply.cookie >> 1)
    cdef int dir = reply.cookie & 1
    cdef uint8_t bit = <uint8_t>(1 << dir)
    cdef Mirrored *row
    if number >= m.size:
        m.tally.strays += 1
        return
    row = &m.row[number]
    if not row.flags & KNOWN or row.epoch != m.epoch or reply.cookie >> 33 != row.serial & 0x7FFFFFFF:
        m.tally.strays += 1
        return
    if reply.op == OP_GONE:
        gone(m, number, dir, reply)
        return
    if row.job == NO_JOB or OPS[row.job] != reply.op or not row.waits & ~row.queued & bit:
        m.tally.strays += 1
        return
    m.outstanding[row.job] -= 1
    m.tally.came[row.job][outcome_of(reply.error)] += 1
    row.waits &= ~bit
    if row.job == JOB_ADD:
        replied_add(m, number, dir, reply.error)
    elif row.job == JOB_DEL:
        replied_del(m, number, dir, reply)
    else:
        replied_stats(m, number, dir, reply)
    if not row.waits:
        finish(m, number)
    elif not row.waits & ~row.queued:
        unlink(m, &m.sent, number)
        call_off(m, number)

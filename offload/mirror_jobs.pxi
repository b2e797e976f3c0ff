"""Jobs of the mirror: how they begin, and what follows from their answers. Part of mirror.pyx.

A job's commands are in the ring of its kind until hardware takes them. A job ends when each of them is answered, or given up.
Not here: what is asked for (mirror.pyx), when answers are overdue (there, too).
"""


cdef inline uint8_t wanted(const Mirrored *row, int dir) noexcept nogil:
    """The Ctinfo that a direction's rule should have; 0: there should be none (A4.35, A2.10)."""
    if dir == REPLY:
        return CT_ESTABLISHED_REPLY if row.flags & BIDIRECTIONAL else 0
    return CT_ESTABLISHED if row.flags & SEEN_REPLY else CT_NEW


cdef inline uint8_t needed(const Mirrored *row) noexcept nogil:
    """Directions without the rule that they should have. One that has a rule of the same Ctinfo keeps it, whatever its mark (A4.36)."""
    cdef uint8_t dirs = 0
    cdef int dir
    for dir in range(2):
        if wanted(row, dir) and row.held[dir] != wanted(row, dir):
            dirs |= <uint8_t>(1 << dir)
    return dirs


cdef inline uint8_t installed(const Mirrored *row) noexcept nogil:
    return <uint8_t>((row.held[ORIG] != 0) | (row.held[REPLY] != 0) << 1)


cdef inline void link(State *m, Links *links, uint32_t number) noexcept nogil:
    cdef Mirrored *row = &m.row[number]
    row.prev, row.next = links.tail, NONE
    if links.tail == NONE:
        links.head = number
    else:
        m.row[links.tail].next = number
    links.tail = number


cdef inline void unlink(State *m, Links *links, uint32_t number) noexcept nogil:
    cdef Mirrored *row = &m.row[number]
    if row.prev == NONE and links.head != number:
        return
    if row.prev == NONE:
        links.head = row.next
    else:
        m.row[row.prev].next = row.next
    if row.next == NONE:
        links.tail = row.prev
    else:
        m.row[row.next].prev = row.prev
    row.next = row.prev = NONE


cdef inline void say(State *m, uint32_t number, uint32_t serial, uint8_t what) noexcept nogil:
    """An answer. Room for it was made by whoever was called from outside."""
    cdef FlowAnswer *a = &m.answer[m.answers]
    memset(a, 0, sizeof(FlowAnswer))
    a.row, a.serial, a.answer = number, serial, what
    m.answers += 1


cdef void say_state(State *m, uint32_t number) noexcept nogil:
    """Whether a flow is in hardware, and as what."""
    cdef Mirrored *row = &m.row[number]
    cdef uint8_t has = installed(row)
    say(m, number, row.serial, ANSWER_INSTALLED if has else ANSWER_REFUSED)
    m.answer[m.answers - 1].used = row.due if row.due > m.now else 0
    if row.held[ORIG] == CT_ESTABLISHED:
        m.answer[m.answers - 1].flags |= <uint8_t>FLOW_ESTABLISHED
    if has == BOTH:
        m.answer[m.answers - 1].flags |= <uint8_t>FLOW_BIDIRECTIONAL


cdef void hold(State *m, uint32_t number, int dir, uint8_t ctinfo) noexcept nogil:
    """What hardware has of a direction is known from now on: a rule that says this, or 0 for none."""
    cdef Mirrored *row = &m.row[number]
    cdef bint had = installed(row) != 0, has
    m.rules += (ctinfo != 0) - <uint32_t>(row.held[dir] != 0)
    row.held[dir] = ctinfo
    row.doubt &= ~<uint8_t>(1 << dir)
    has = installed(row) != 0
    if has != had:
        m.offloaded += <uint32_t>has - <uint32_t>had
        m.holding[number >> 6] ^= <uint64_t>1 << (number & 63)


# --- rings ------------------------------------------------------------------------------------------------------------------------------


cdef inline uint32_t place(const State *m, const Ring *ring, uint32_t number) noexcept nogil:
    """Where in the ring a row is: first of all if hardware has heard of its job; else `next` says, since it is in no list."""
    return ring.first if ring.row[ring.first] == number else m.row[number].next


cdef inline void put(State *m, Ring *ring, uint64_t nth, uint32_t number) noexcept nogil:
    """A row without a list becomes the nth of a ring."""
    cdef uint32_t at = <uint32_t>((ring.first + nth) % m.size)
    ring.row[at] = number
    m.row[number].next = at


cdef void drop(State *m, Ring *ring, uint32_t number) noexcept nogil:
    """A row leaves its ring, and the last one takes its place: none of the others comes later than it would have."""
    cdef uint32_t at = place(m, ring, number), last
    ring.count -= 1
    last = ring.row[(<uint64_t>ring.first + ring.count) % m.size]
    if last != number:
        ring.row[at] = last
        m.row[last].next = at
    m.row[number].next = NONE


# --- begin ------------------------------------------------------------------------------------------------------------------------------


cdef void enqueue(State *m, uint32_t number, uint8_t dirs) noexcept nogil:
    """Commands for these directions. A row is in its job's ring once, which has room for all of them."""
    cdef Mirrored *row = &m.row[number]
    cdef Ring *ring = &m.ring[row.job]
    cdef uint8_t more = dirs & ~row.queued
    if not row.queued and more:
        put(m, ring, ring.count, number)
        ring.count += 1
    ring.commands += (more & 1) + (more >> 1)
    row.waits |= dirs
    row.queued |= dirs


cdef void begin(State *m, uint32_t number, uint8_t job, uint8_t dirs) noexcept nogil:
    cdef Mirrored *row = &m.row[number]
    row.job, row.waits, row.queued, row.lost, row.error = job, 0, 0, 0, 0
    row.flags &= ~<uint16_t>STUCK
    m.pending[job] += 1
    enqueue(m, number, dirs)


cdef void begin_own(State *m, uint32_t number, uint8_t job, uint8_t dirs) noexcept nogil:
    """One that the flow table has not asked for, and does not know of."""
    begin(m, number, job, dirs)
    say(m, number, m.row[number].serial, ANSWER_PENDING)


cdef void depart(State *m, uint32_t number) noexcept nogil:
    """A flow that is going, and has no job: its rules go, or they are gone (A3.23)."""
    cdef Mirrored *row = &m.row[number]
    if installed(row) | row.doubt:
        begin(m, number, JOB_DEL, installed(row) | row.doubt)
        return
    say(m, number, row.serial, ANSWER_REMOVED)
    row.flags = 0
    m.known -= 1


cdef void call_off(State *m, uint32_t number) noexcept nogil:
    """A flow that is going need not be installed before, if hardware has not heard of that yet: it may take nothing for long, or ever."""
    cdef Mirrored *row = &m.row[number]
    cdef Ring *ring = &m.ring[row.job]
    if not row.flags & GOING or row.job != JOB_ADD or row.waits != row.queued:
        return
    drop(m, ring, number)
    ring.commands -= (row.queued & 1) + (row.queued >> 1)
    memset(m.offered, 0, sizeof(m.offered))
    if row.lost:
        row.doubt |= row.waits              # asked before, and not answered
    row.waits = row.queued = 0
    m.tally.called_off += 1
    finish(m, number)


cdef void back_off(State *m, Mirrored *row) noexcept nogil:
    """Nothing is tried for a while, twice as long after each refusal."""
    row.due = m.now + <int64_t>min(<double>m.backoff * (1 << row.tries), <double>m.backoff_most)
    row.tries += row.tries < 30


# --- room -------------------------------------------------------------------------------------------------------------------------------


cdef inline double worth(const State *m, const Mirrored *row) noexcept nogil:
    return row.rate if m.policy == BY_RATE else <double>row.bytes


cdef uint32_t least_worth(State *m, uint32_t newcomer) noexcept nogil:
    """Of the next flows in hardware from where the last search ended, the one of least worth; or NONE. Those that cannot go are looked at, too."""
    cdef uint32_t words = (m.used + 63) >> 6, best = NONE, number, left = m.look, i
    cdef uint64_t bits
    for i in range(min(words, <uint32_t>MOST_WORDS)):
        if m.hand >= words:
            m.hand = 0
        bits = m.holding[m.hand]
        while bits:
            number = m.hand << 6 | <uint32_t>first_bit(bits)
            bits &= bits - 1
            left -= left > 0
            if m.row[number].job != NO_JOB or m.row[number].flags & (GOING | LEAVING | FRESH) or number == newcomer or m.row[number].epoch != m.epoch:
                continue
            if best == NONE or worth(m, &m.row[number]) < worth(m, &m.row[best]):
                best = number
        m.hand += 1
        if not left:
            break
    return best


cdef void make_room(State *m, uint32_t newcomer) noexcept nogil:
    """Hardware is full. Another flow leaves it for this one, if the policy says so and this one is clearly worth more."""
    cdef uint32_t victim = NONE if m.policy == FIRST_COME else least_worth(m, newcomer)
    cdef Mirrored *row = &m.row[newcomer]
    if victim == NONE or worth(m, row) <= m.clearly * worth(m, &m.row[victim]):
        m.tally.spared += 1
        return
    m.tally.evictions += 1
    m.row[victim].flags |= LEAVING
    begin_own(m, victim, JOB_DEL, installed(&m.row[victim]) | m.row[victim].doubt)
    row.flags |= WAITING
    row.due = m.now + m.limit
    link(m, &m.waiting, newcomer)


cdef void wait_no_more(State *m, uint32_t number) noexcept nogil:
    if m.row[number].flags & WAITING:
        m.row[number].flags &= ~<uint16_t>WAITING
        unlink(m, &m.waiting, number)


cdef void give_room(State *m) noexcept nogil:
    """Rules have been destroyed: whoever has waited longest for that is tried again."""
    cdef uint32_t number = m.waiting.head
    if number == NONE:
        return
    wait_no_more(m, number)
    install(m, number, True)


# --- end --------------------------------------------------------------------------------------------------------------------------------


cdef void finish(State *m, uint32_t number) noexcept nogil:
    """All commands of a job are answered, or given up."""
    cdef Mirrored *row = &m.row[number]
    cdef uint8_t job = row.job
    m.pending[job] -= 1
    row.job, row.due = NO_JOB, 0
    row.flags &= ~<uint16_t>FRESH
    unlink(m, &m.sent, number)
    if job == JOB_ADD:
        added(m, number)
    elif job == JOB_DEL:
        destroyed(m, number)
    elif row.flags & GOING:
        depart(m, number)
    elif not installed(row):
        say_state(m, number)            # hardware knew of none of its rules
    elif row.tries:
        row.due = m.now + m.backoff     # one of them was refused before


cdef void added(State *m, uint32_t number) noexcept nogil:
    cdef Mirrored *row = &m.row[number]
    row.flags = (row.flags & ~<uint16_t>EVICTED) | FRESH
    if row.error:
        back_off(m, row)
    else:
        row.tries = 0
    if row.flags & GOING:
        depart(m, number)
    elif row.doubt:
        begin_own(m, number, JOB_DEL, row.doubt)
        row.error = ETIMEDOUT
    else:
        say_state(m, number)
        if (row.error == ENOSPC or row.error == ENOMEM) and not installed(row):
            make_room(m, number)


cdef void destroyed(State *m, uint32_t number) noexcept nogil:
    cdef Mirrored *row = &m.row[number]
    cdef bint left = row.flags & LEAVING != 0
    row.flags &= ~<uint16_t>LEAVING
    if row.flags & STUCK:
        back_off(m, row)                # asked again by who wants to be rid of it, once a second
        say_state(m, number)
        return
    if row.flags & GOING:
        depart(m, number)
        if not row.flags & KNOWN:
            give_room(m)
        return
    if left:
        row.flags |= EVICTED
        say(m, number, row.serial, ANSWER_COUNTED)      # what hardware saw since it was last asked nobody knows, so that it may have been just now
        m.answer[m.answers - 1].used = m.now
    back_off(m, row)
    say_state(m, number)
    if left:
        give_room(m)

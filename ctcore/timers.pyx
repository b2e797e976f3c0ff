"""Timer wheel: when connections expire.

Theory of operation: two levels of 256 slots; a slot of level 0 is a tick, a slot of level 1 is 256 ticks and is spread over level 0 when its
time comes. A connection is linked at its deadline, but never further ahead than the horizon of 60 s. Refreshing only stores a later deadline;
when the slot comes up, an entry whose deadline has moved is linked again instead of expired. So a packet that prolongs a connection never
touches the wheel, and one that shortens it (FIN, RST) does only if the new deadline is nearer than the horizon: what is further away
will be looked at in time anyway.
Example: at tick 1,000 a UDP flow gets 30 s (7,500 ticks): it is linked at 8,500, in level 1. At 6,000 a packet moves its deadline to 13,500;
nothing is linked. At 8,448 slot 33 of level 1 is spread, at 8,500 the entry is found alive and linked at 13,500.
Invariants (check): every live connection is in exactly one slot; no slot holds a tick at or before the cursor; wheel_tick <= deadline, or the next
tick if the deadline has passed.
Not here: what expiry means for the connection (tracker).
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from ctcore.lowlevel cimport first_bit
from ctcore.types cimport Entry, NO_CONN

cdef enum:
    IS_HEAD = 1 << 31           # in wheel_prev: what precedes is a slot, not a connection (capacity is below 1 << 26)
    HORIZON_S = 60
    LONGEST_LEAP = 1 << 30      # deadlines are compared by a signed difference of 32 bits


cdef void wheel_init(Wheel *wheel, Entry *entry, uint32_t hz) noexcept nogil:
    cdef int slot
    wheel.entry = entry
    wheel.horizon = HORIZON_S * hz
    for slot in range(2 * WHEEL_SLOTS):
        wheel.head[slot] = NO_CONN


cdef void wheel_link(Wheel *wheel, uint32_t conn) noexcept nogil:
    """Link at the deadline or the horizon, whichever is nearer; at the next tick if the deadline has passed."""
    cdef Entry *entry = &wheel.entry[conn]
    cdef int64_t ahead = <int32_t>(entry.deadline - <uint32_t>wheel.cursor)
    cdef uint64_t tick
    cdef uint32_t slot
    ahead = 1 if ahead < 1 else wheel.horizon if ahead > wheel.horizon else ahead
    tick = wheel.cursor + <uint64_t>ahead
    slot = tick & 255 if ahead <= WHEEL_SLOTS else WHEEL_SLOTS + ((tick >> 8) & 255)
    entry.wheel_tick = <uint32_t>tick
    entry.wheel_prev = <uint32_t>IS_HEAD | slot
    entry.wheel_next = wheel.head[slot]
    if entry.wheel_next != NO_CONN:
        wheel.entry[entry.wheel_next].wheel_prev = conn
    wheel.head[slot] = conn
    wheel.occupied[slot >> 6] |= <uint64_t>1 << (slot & 63)
    wheel.linked += 1


cdef void wheel_unlink(Wheel *wheel, uint32_t conn) noexcept nogil:
    cdef Entry *entry = &wheel.entry[conn]
    cdef uint32_t slot
    if entry.wheel_next != NO_CONN:
        wheel.entry[entry.wheel_next].wheel_prev = entry.wheel_prev
    if not entry.wheel_prev & <uint32_t>IS_HEAD:
        wheel.entry[entry.wheel_prev].wheel_next = entry.wheel_next
    else:
        slot = entry.wheel_prev & ~<uint32_t>IS_HEAD
        wheel.head[slot] = entry.wheel_next
        if entry.wheel_next == NO_CONN:
            wheel.occupied[slot >> 6] &= ~(<uint64_t>1 << (slot & 63))
    wheel.linked -= 1


cdef inline int next_occupied(const Wheel *wheel, int level, int index) noexcept nogil:
    """The first occupied slot of a level after `index`, or -1 if there is none before the level starts over."""
    cdef int word
    cdef uint64_t bits
    index += 1
    while index < WHEEL_SLOTS:
        word = level * 4 + (index >> 6)
        bits = wheel.occupied[word] >> (index & 63)
        if bits:
            return index + first_bit(bits)
        index = (index | 63) + 1
    return -1


cdef inline bint level_empty(const Wheel *wheel, int level) noexcept nogil:
    cdef const uint64_t *word = &wheel.occupied[level * 4]
    return (word[0] | word[1] | word[2] | word[3]) == 0


cdef uint64_t next_stop(const Wheel *wheel) noexcept nogil:
    """The next tick after the cursor at which something is to be done; the wheel is not empty."""
    cdef uint64_t c = wheel.cursor
    cdef int index = next_occupied(wheel, 0, c & 255)
    if index >= 0:
        return (c & ~<uint64_t>255) | index
    if not level_empty(wheel, 0):
        return (c | 255) + 1
    index = next_occupied(wheel, 1, (c >> 8) & 255)
    if index >= 0:
        return (c & ~<uint64_t>0xFFFF) | (<uint64_t>index << 8)
    return (c | 0xFFFF) + 1


cdef void spread(Wheel *wheel) noexcept nogil:
    """Move the slot of level 1 that begins at the cursor's next tick into level 0."""
    cdef uint32_t slot = WHEEL_SLOTS + (((wheel.cursor + 1) >> 8) & 255)
    cdef uint32_t conn
    while wheel.head[slot] != NO_CONN:
        conn = wheel.head[slot]
        wheel_unlink(wheel, conn)
        wheel_link(wheel, conn)


cdef void leap(Wheel *wheel, uint64_t target) noexcept nogil:
    """Go straight to one tick before `target` and link everything anew: after a long silence, cheaper than looking at every minute of it."""
    cdef uint32_t chain = NO_CONN
    cdef uint32_t conn
    cdef int slot
    for slot in range(2 * WHEEL_SLOTS):
        while wheel.head[slot] != NO_CONN:
            conn = wheel.head[slot]
            wheel_unlink(wheel, conn)
            wheel.entry[conn].wheel_next = chain
            chain = conn
    wheel.cursor = target - 1
    while chain != NO_CONN:
        conn = chain
        chain = wheel.entry[conn].wheel_next
        wheel_link(wheel, conn)


cdef uint32_t wheel_due(Wheel *wheel, uint64_t until) noexcept nogil:
    """Advance towards `until` and return the next connection whose deadline has passed, which the caller unlinks; NO_CONN at `until`."""
    cdef uint64_t stop
    cdef uint32_t conn
    while wheel.cursor < until:
        if wheel.linked == 0:
            wheel.cursor = until
            break
        stop = next_stop(wheel)
        # Not before the slot at the cursor has been emptied: deadlines that are due must not get further away than a leap.
        if until - wheel.cursor > 2 * wheel.horizon and stop != wheel.cursor + 1:
            leap(wheel, wheel.cursor + LONGEST_LEAP if until - wheel.cursor > LONGEST_LEAP else until)
            stop = next_stop(wheel)
        if stop > until:
            wheel.cursor = until
            break
        # The cursor rests one tick before the stop until its slots are empty, so that linking anew lands where it will be seen.
        wheel.cursor = stop - 1
        if stop & 255 == 0:
            spread(wheel)
        while wheel.head[stop & 255] != NO_CONN:
            conn = wheel.head[stop & 255]
            if tick_reached(wheel.entry[conn].deadline, stop):
                return conn
            wheel_unlink(wheel, conn)
            wheel_link(wheel, conn)
        wheel.cursor = stop
    return NO_CONN


cdef str wheel_fault(const Wheel *wheel, uint32_t used):
    """What breaks an invariant of the wheel, or an empty string. used: slots of the pool that were ever handed out."""
    cdef uint32_t conn, before
    cdef int slot
    seen = set()
    for slot in range(2 * WHEEL_SLOTS):
        before = <uint32_t>IS_HEAD | <uint32_t>slot
        conn = wheel.head[slot]
        if (conn == NO_CONN) == bool(wheel.occupied[slot >> 6] >> (slot & 63) & 1):
            return f"slot {slot}: its occupied bit is wrong"
        while conn != NO_CONN:
            if conn in seen:
                return f"connection {conn} is linked twice"
            seen.add(conn)
            if wheel.entry[conn].wheel_prev != before:
                return f"connection {conn}: the link back is wrong"
            if <int32_t>(wheel.entry[conn].wheel_tick - <uint32_t>wheel.cursor) <= 0:
                return f"connection {conn} is linked in the past"
            late = <int32_t>(wheel.entry[conn].deadline - wheel.entry[conn].wheel_tick) < 0
            if late and wheel.entry[conn].wheel_tick != <uint32_t>(wheel.cursor + 1):
                return f"connection {conn} is linked after its deadline"
            before, conn = conn, wheel.entry[conn].wheel_next
    live = {conn for conn in range(used) if wheel.entry[conn].live}
    if seen != live or len(seen) != wheel.linked:
        return f"{len(seen)} connections are linked, {len(live)} live, {wheel.linked} are counted"
    return ""

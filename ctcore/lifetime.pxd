from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ctcore.engine cimport Engine
from ctcore.lowlevel cimport likely, unlikely
from ctcore.table cimport table_find
from ctcore.timers cimport tick_reached
from ctcore.types cimport END_TIMEOUT, NO_FLOW, Entry, Key, Packet

cdef uint32_t create(Engine *ct, const Packet *p, const Key *reply, bint take) noexcept nogil
cdef void discard(Engine *ct, uint32_t conn) noexcept nogil
cdef uint8_t clash(Engine *ct, uint32_t conn) noexcept nogil
cdef bint confirm(Engine *ct, uint32_t conn, Packet *p) noexcept nogil
cdef void end_life(Engine *ct, uint32_t conn, uint8_t end, int64_t time) noexcept nogil
cdef void kill(Engine *ct, uint32_t conn, uint8_t end, int64_t time) noexcept nogil
cdef void hang_up(Engine *ct, const Entry *entry) noexcept nogil
cdef void expire_due(Engine *ct) noexcept nogil


cdef inline int64_t deadline_time(const Engine *ct, const Entry *entry, uint64_t base) noexcept nogil:
    """When a connection expired, in ns. base: a tick near its deadline."""
    return <int64_t>(base + <uint64_t><int64_t><int32_t>(entry.deadline - <uint32_t>base)) * ct.set.tick_ns


cdef inline void advance_clock(Engine *ct, int64_t now) noexcept nogil:
    """Time goes on, never back."""
    cdef uint64_t tick
    if now > ct.now:
        ct.now = now
    if ct.now >= ct.next_tick_at:
        tick = <uint64_t>(ct.now // ct.set.tick_ns)
        ct.tick = tick
        ct.next_tick_at = <int64_t>((tick + 1) * <uint64_t>ct.set.tick_ns)
        expire_due(ct)


cdef inline uint32_t find_current(Engine *ct, uint32_t flow) noexcept nogil:
    """The flow, unless it has expired since this tick began: a timeout of 0. Then it goes."""
    cdef Entry *entry
    if likely(flow != NO_FLOW):
        entry = &ct.pool.entry[flow >> 1]
        if unlikely(tick_reached(entry.deadline, ct.tick)):
            kill(ct, flow >> 1, END_TIMEOUT, deadline_time(ct, entry, ct.tick))
            ct.count.expired += 1
            return NO_FLOW
    return flow


cdef inline bint taken(Engine *ct, const Entry *entry, int dir) noexcept nogil:
    """Is one of a new connection's tuples another one's?"""
    return find_current(ct, table_find(&ct.table, ct.pool.entry, entry.hash[dir], &entry.flow[dir].key)) != NO_FLOW

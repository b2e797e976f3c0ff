from libc.stdint cimport int32_t, uint32_t, uint64_t

from ctcore.types cimport Entry

cdef enum:
    WHEEL_SLOTS = 256           # per level; two levels

ctypedef struct Wheel:
    Entry *entry
    uint64_t cursor             # every slot up to this tick has been looked at
    uint32_t horizon            # ticks ahead at which an entry may be linked at most
    uint32_t linked
    uint32_t head[512]
    uint64_t occupied[8]        # a bit per slot that is not empty

cdef void wheel_init(Wheel *wheel, Entry *entry, uint32_t hz) noexcept nogil
cdef void wheel_link(Wheel *wheel, uint32_t conn) noexcept nogil
cdef void wheel_unlink(Wheel *wheel, uint32_t conn) noexcept nogil
cdef uint32_t wheel_due(Wheel *wheel, uint64_t until) noexcept nogil
cdef str wheel_fault(const Wheel *wheel, uint32_t used)


cdef inline bint tick_reached(uint32_t deadline, uint64_t now) noexcept nogil:
    """The kernel's comparison: the sign of a 32-bit difference."""
    return <int32_t>(deadline - <uint32_t>now) <= 0


cdef inline void wheel_moved(Wheel *wheel, uint32_t conn, uint32_t old, uint32_t timeout) noexcept nogil:
    """A deadline has changed from `old` to one `timeout` ticks away: link anew only if the wheel could come too late."""
    if timeout < wheel.horizon and <int32_t>(wheel.entry[conn].deadline - old) < 0:
        wheel_unlink(wheel, conn)
        wheel_link(wheel, conn)

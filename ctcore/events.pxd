from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ctcore.types cimport EXTENSION_ROW, Entry, Event

ctypedef struct EventBuffer:
    Event *event                # [size]; the first `length` are waiting, oldest first
    uint32_t size
    uint32_t length
    uint64_t lost

cdef void buffer_put(EventBuffer *buffer, uint8_t kind, const Entry *entry, uint32_t timeout, int64_t time) noexcept nogil
cdef object buffer_take(EventBuffer *buffer)


cdef inline void copy_out(Entry *out, const Entry *entry, uint32_t timeout) noexcept nogil:
    """A connection as it may be shown: without links, hashes (their key is secret) and whatever else is the engine's own."""
    out[0] = entry[0]
    out.deadline = timeout
    out.cold = out.live = 0
    out.wheel_next = out.wheel_prev = out.wheel_tick = out.generation = 0
    out.extension &= ~<uint32_t>EXTENSION_ROW
    out.hash[0] = out.hash[1] = 0


cdef inline Event *buffer_last(EventBuffer *buffer) noexcept nogil:
    """The event put last; only right after buffer_put() stored one."""
    return &buffer.event[buffer.length - 1]

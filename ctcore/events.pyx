"""The buffer of events: new, update and destroy, each with the connection as it was then.

It is filled from its start and taken as a whole. When nobody takes it and it is full, later events are lost and counted, as ctnetlink does with
a full socket.
Invariant: events leave in the order they came.
Not here: when an event is due, and which kinds are wanted (tracker).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

import numpy as np

from ctcore.types cimport Entry, Event
from ctcore.types import EVENT_DTYPE


cdef void buffer_put(EventBuffer *buffer, uint8_t kind, const Entry *entry, uint32_t timeout, int64_t time) noexcept nogil:
    """Append an event, or count it as lost. timeout: ticks left; time: ns."""
    cdef Event *event
    if buffer.length == buffer.size:
        buffer.lost += 1
        return
    buffer.length += 1
    event = buffer_last(buffer)
    event.kind = kind
    event.end = 0
    event.changes = 0
    event.timeout = timeout
    event.time = time
    copy_out(&event.conn, entry, timeout)


cdef object buffer_take(EventBuffer *buffer):
    """All events, oldest first, as EVENT_DTYPE[k]; the buffer is empty afterwards."""
    cdef object taken = np.empty(buffer.length, dtype=EVENT_DTYPE)
    memcpy(<void *><size_t>taken.ctypes.data, buffer.event, buffer.length * sizeof(Event))
    buffer.length = 0
    return taken

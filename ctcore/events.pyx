"""The ring of events: new, update and destroy, each with the connection as it was then.

When nobody takes them and the ring is full, later events are lost and counted, as ctnetlink does with a full socket.
Invariant: events leave in the order they came.
Not here: when an event is due, and which kinds are wanted (tracker).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

import numpy as np

from ctcore.types cimport Entry, Event
from ctcore.types import EVENT_DTYPE


cdef void ring_put(Ring *ring, uint8_t kind, const Entry *entry, uint32_t timeout, int64_t time) noexcept nogil:
    """Append an event, or count it as lost. timeout: ticks left; time: ns."""
    cdef Event *event
    if ring.length == ring.size:
        ring.lost += 1
        return
    ring.length += 1
    event = ring_last(ring)
    event.kind = kind
    event.end = 0
    event.changes = 0
    event.timeout = timeout
    event.time = time
    copy_out(&event.conn, entry, timeout)


cdef object ring_take(Ring *ring):
    """All events, oldest first, as EVENT_DTYPE[k]; the ring is empty afterwards."""
    cdef uint32_t straight = min(ring.length, ring.size - ring.first)
    cdef object taken = np.empty(ring.length, dtype=EVENT_DTYPE)
    cdef char *to = <char *><size_t>taken.ctypes.data
    memcpy(to, &ring.event[ring.first], straight * sizeof(Event))
    memcpy(to + straight * sizeof(Event), ring.event, (ring.length - straight) * sizeof(Event))
    ring.first = 0
    ring.length = 0
    return taken

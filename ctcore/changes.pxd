# What changes in a connection that lives, be it by a packet, an action or an administrator: ct.changes gathers it, and it is told as one update.
#
# Not here: births and deaths (lifetime), what protocols change (theirs).

from libc.stdint cimport uint32_t, uint64_t

from ctcore.engine cimport Engine, ticks_left
from ctcore.events cimport buffer_last, buffer_put
from ctcore.types cimport CHANGE_LABEL, CHANGE_MARK, COLD_MARK, EVENT_UPDATE, OFFLOAD, Entry


cdef inline void put_mark(Engine *ct, Entry *entry, uint32_t mark, uint32_t mask) noexcept nogil:
    """The bits of the mask give way to the mark's, all of which are set: value | old & ~mask."""
    cdef uint32_t value = mark | (entry.mark & ~mask)
    if entry.mark != value:
        ct.changes |= CHANGE_MARK
        entry.mark = value
        entry.cold |= COLD_MARK
        ct.offloaded_changes += (entry.status & OFFLOAD) != 0


cdef inline void put_label(Engine *ct, Entry *entry, const uint64_t *label, const uint64_t *mask) noexcept nogil:
    cdef uint64_t low = label[0] | (entry.label[0] & ~mask[0]), high = label[1] | (entry.label[1] & ~mask[1])
    if entry.label[0] != low or entry.label[1] != high:
        ct.changes |= CHANGE_LABEL
        entry.label[0], entry.label[1] = low, high
        ct.offloaded_changes += (entry.status & OFFLOAD) != 0


cdef inline void say_changes(Engine *ct, Entry *entry) noexcept nogil:
    """At most one update a packet, at its end."""
    cdef uint64_t lost = ct.buffer.lost
    if ct.changes and ct.set.events & EVENT_UPDATE:
        buffer_put(&ct.buffer, EVENT_UPDATE, entry, ticks_left(ct, entry), ct.now)
        if ct.buffer.lost == lost:
            buffer_last(&ct.buffer).changes = ct.changes

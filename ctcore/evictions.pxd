from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ctcore.types cimport Entry, Eviction, Key

ctypedef struct Evictions:
    Eviction *row               # [size]; the first `length` are waiting, oldest first
    uint32_t size
    uint32_t length
    uint64_t lost

cdef object evictions_take(Evictions *all)


cdef inline void note_eviction(Evictions *all, const Entry *entry, const Key *newcomer, uint8_t why, int64_t time) noexcept nogil:
    """Who is about to be evicted, and for whom; counted as lost if nobody took what is there already. newcomer: its first packet's tuple."""
    cdef Eviction *row
    if all.length == all.size:
        all.lost += 1
        return
    row = &all.row[all.length]
    all.length += 1
    row.time = time
    row.conn = entry.flow[0].id
    row.key = entry.flow[0].key
    row.newcomer = newcomer[0]
    row.packets[0], row.packets[1] = entry.flow[0].packets, entry.flow[1].packets
    row.bytes[0], row.bytes[1] = entry.flow[0].bytes, entry.flow[1].bytes
    row.status = entry.status
    row.why = why

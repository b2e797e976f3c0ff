"""Room for a new connection: the limits of its zone, the places left, and whom to evict if there are none.

Without limits and reserves this is the kernel's early drop. A zone over its limit evicts nobody. With reserves, a place is looked for that
this zone may use: one of its own zone's, or of a zone that has more than its reserve; and one connection goes for one, not a bucket's worth.
Not here: the counts (zones.pxd), the audit's memory (evictions).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ctcore.engine cimport Engine
from ctcore.evictions cimport note_eviction
from ctcore.lifetime cimport kill
from ctcore.lowlevel cimport likely, unlikely
from ctcore.table cimport Walk, walk_next, walk_start
from ctcore.types cimport *
from ctcore.zones cimport zone_full, zone_gives_way, zone_has_place, zone_of

cdef enum:
    EVICTION_RANGE = 8          # of the kernel's buckets, that early drop looks at


cdef inline void walk_bucket(const Engine *ct, Walk *walk, uint32_t bucket) noexcept nogil:
    """Begin a walk over the flows in a bucket of the kernel's table: their hash, scaled to that size, is the bucket."""
    cdef uint64_t buckets = ct.set.buckets
    cdef uint32_t low = <uint32_t>((((<uint64_t>bucket) << 32) + buckets - 1) // buckets)
    cdef uint32_t high = <uint32_t>((((<uint64_t>bucket + 1) << 32) + buckets - 1) // buckets - 1)
    walk_start(&ct.table, walk, low, high)


cdef inline void evict(Engine *ct, uint32_t conn, const Packet *p, uint8_t why) noexcept nogil:
    """Take a connection's place for that of a packet's."""
    note_eviction(&ct.evictions, &ct.pool.entry[conn], &p.key, why, ct.now)
    kill(ct, conn, END_EVICTED, ct.now)
    ct.count.early_drop += 1


cdef bint evict_bucket(Engine *ct, uint32_t bucket, const Packet *p) noexcept nogil:
    """Evict what is not assured and has a flow in a bucket of the kernel's table. False if there is nothing."""
    cdef Walk walk
    cdef uint32_t flow
    cdef bint found = False
    walk_bucket(ct, &walk, bucket)
    flow = walk_next(&ct.table, ct.pool.entry, &walk)
    while flow != NO_FLOW:
        if not ct.pool.entry[flow >> 1].status & ASSURED:
            evict(ct, flow >> 1, p, FOR_TABLE)
            found = True
        flow = walk_next(&ct.table, ct.pool.entry, &walk)
    return found


cdef bint evict_one(Engine *ct, uint32_t bucket, const Packet *p) noexcept nogil:
    """Where zones have reserves: of what is not assured in a bucket, and in a place that this zone may use, only the oldest one has to go."""
    cdef Walk walk
    cdef uint32_t flow, oldest = NO_CONN
    cdef Entry *entry
    walk_bucket(ct, &walk, bucket)
    flow = walk_next(&ct.table, ct.pool.entry, &walk)
    while flow != NO_FLOW:
        entry = &ct.pool.entry[flow >> 1]
        if not entry.status & ASSURED and zone_gives_way(&ct.zones, zone_of(entry), p.key.zone):
            if oldest == NO_CONN or entry.flow[ORIG].id < ct.pool.entry[oldest].flow[ORIG].id:
                oldest = flow >> 1
        flow = walk_next(&ct.table, ct.pool.entry, &walk)
    if oldest != NO_CONN:
        evict(ct, oldest, p, FOR_TABLE if ct.live >= ct.set.max else FOR_ZONE)
    return oldest != NO_CONN


cdef bint early_drop(Engine *ct, const Packet *p) noexcept nogil:
    """Make room: from the first of eight buckets, the packet's own first, that has connections which are not assured, evict these."""
    cdef uint32_t at = <uint32_t>((<uint64_t>p.hash * ct.set.buckets) >> 32)
    cdef int i
    for i in range(EVICTION_RANGE):
        if evict_one(ct, at, p) if ct.zones.reserved else evict_bucket(ct, at, p):
            return True
        at = at + 1 if at + 1 < ct.set.buckets else 0
    return False


cdef bint find_place(Engine *ct, Packet *p) noexcept nogil:
    """Is there a place for one more connection, if need be somebody else's? False with a reason."""
    if unlikely(ct.zones.limited) and zone_full(&ct.zones, p.key.zone):
        ct.zones.refused += 1
        p.reason = R_ZONE_LIMIT
        return False
    if likely(zone_has_place(&ct.zones, p.key.zone) if unlikely(ct.zones.reserved) else ct.live < ct.set.max):
        return True
    if early_drop(ct, p):
        return True
    ct.count.drop += 1
    p.reason = R_TABLE_FULL
    return False

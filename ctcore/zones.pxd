# Zones: what a packet's zone counts for in each direction, and how many connections each zone has and may have.
#
# A zone that is of one direction only (zone_dir) keeps apart the tuples of that direction; those of the other one lie in zone 0, where all zones
# meet: overlapping networks behind one address translator. A connection's own zone is that of the direction that has one.
# A zone with a reserve has so many places for itself. All others are shared: a connection beyond its zone's reserve takes one of these.
# Invariants (zones_fault): `count` is how many live connections a zone has; `shared_used` how many lie beyond their zones' reserves.
# Not here: whom to evict (tracker).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.hashing cimport HashKey, hash_of
from ctcore.table cimport Table, table_find
from ctcore.types cimport NO_FLOW, ORIG, REPLY, Entry, Key

cdef enum:
    N_ZONES = 65536
    NO_LIMIT = 0xFFFFFFFF

ctypedef struct ZoneRow:
    uint32_t count              # live connections
    uint32_t limit              # most of them; 0: what holds for all, NO_LIMIT: any number
    uint32_t reserve            # places that no other zone takes

ctypedef struct Zones:
    ZoneRow *row                # [N_ZONES]; memory only of zones that were seen or are spoken of
    uint32_t limit              # of zones that have none of their own
    uint32_t shared             # places beyond all reserves
    uint32_t shared_used
    uint64_t refused            # connections that a limit kept out
    uint8_t dirs                # a bit for each direction that zones count for
    uint8_t split               # of one direction only
    uint8_t limited             # there are limits
    uint8_t reserved            # there are reserves

cdef void zones_fill(Zones *zones, object config) except *
cdef str zones_fault(const Zones *zones, const Entry *entry, uint32_t used)


cdef inline uint16_t zone_id(const Zones *zones, uint16_t zone, int dir) noexcept nogil:
    """What a zone is in tuples of a direction."""
    return zone if zones.dirs >> dir & 1 else 0


cdef inline uint16_t zone_of(const Entry *entry) noexcept nogil:
    """A connection's zone: both of its tuples have it, or one has and the other is in 0."""
    return entry.flow[ORIG].key.zone | entry.flow[REPLY].key.zone


cdef inline uint32_t zone_try(const Zones *zones, const Table *table, const Entry *entry, const HashKey *secret, const Key *key, int dir) noexcept nogil:
    """A lookup where zones are of one direction: of the two ids of a packet's zone, that of `dir`. It may find flows of that direction only.

    Another one would be of a connection in another zone. In zone 0 both ids are 0, and one lookup finds either.
    """
    cdef Key k = key[0]
    cdef uint32_t flow
    if key.zone == 0:
        return table_find(table, entry, hash_of(secret, key), key) if dir == ORIG else <uint32_t>NO_FLOW
    k.zone = zone_id(zones, key.zone, dir)
    flow = table_find(table, entry, hash_of(secret, &k), &k)
    return flow if flow != NO_FLOW and <int>(flow & 1) == dir else <uint32_t>NO_FLOW


cdef inline void zone_confirmed(Zones *zones, const Entry *entry) noexcept nogil:
    cdef ZoneRow *row = &zones.row[zone_of(entry)]
    row.count += 1
    zones.shared_used += row.count > row.reserve


cdef inline void zone_died(Zones *zones, const Entry *entry) noexcept nogil:
    cdef ZoneRow *row = &zones.row[zone_of(entry)]
    zones.shared_used -= row.count > row.reserve
    row.count -= 1


cdef inline bint zone_full(const Zones *zones, uint16_t zone) noexcept nogil:
    """Has the zone as many connections as it may?"""
    cdef const ZoneRow *row = &zones.row[zone]
    cdef uint32_t limit = row.limit if row.limit else zones.limit
    return limit != 0 and row.count >= limit


cdef inline bint zone_has_place(const Zones *zones, uint16_t zone) noexcept nogil:
    """Is there a place left of the zone's own, or a shared one?"""
    return zones.row[zone].count < zones.row[zone].reserve or zones.shared_used < zones.shared


cdef inline bint zone_gives_way(const Zones *zones, uint16_t zone, uint16_t newcomer) noexcept nogil:
    """May a connection of a zone be evicted for one of the newcomer's zone? Its own always; others as long as they have more than their reserve."""
    return zone == newcomer or zones.row[zone].count > zones.row[zone].reserve

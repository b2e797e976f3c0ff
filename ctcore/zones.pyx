"""Zones: limits and reserves out of the settings, and the proof of the counts. What happens per connection is in zones.pxd.

Not here: lookups (tracker, icmp_error), eviction (tracker).
"""

from libc.stdint cimport uint32_t

from ctcore.types cimport Entry

cdef dict DIRS = {"both": 1 << ORIG | 1 << REPLY, "original": 1 << ORIG, "reply": 1 << REPLY}


cdef void zones_fill(Zones *zones, object config) except *:
    """From Config. row: N_ZONES of zeros."""
    zones.dirs = DIRS[config.zone_dir]
    zones.split = config.zone_dir != "both"
    zones.limit = config.zone_limit
    for zone, limit in config.zone_limits.items():
        zones.row[<uint32_t>zone].limit = limit or NO_LIMIT
    for zone, reserve in config.zone_reserves.items():
        zones.row[<uint32_t>zone].reserve = reserve
    zones.limited = bool(config.zone_limit or config.zone_limits)
    zones.reserved = any(config.zone_reserves.values())
    zones.shared = config.capacity - sum(config.zone_reserves.values())


cdef str zones_fault(const Zones *zones, const Entry *entry, uint32_t used):
    """What breaks an invariant of the counts, or an empty string. used: slots of the pool that were ever handed out."""
    cdef uint32_t conn, zone, seen = 0, shared = 0
    counts = {}
    for conn in range(used):
        if entry[conn].live:
            counts[zone_of(&entry[conn])] = counts.get(zone_of(&entry[conn]), 0) + 1
    for zone in range(<uint32_t>N_ZONES):
        if zones.row[zone].count == 0:
            continue
        seen += 1
        if zones.row[zone].count != counts.get(zone, 0):
            return f"zone {zone}: {counts.get(zone, 0)} connections live, {zones.row[zone].count} are counted"
        shared += max(0, <int>zones.row[zone].count - <int>zones.row[zone].reserve)
    if seen != len(counts):
        return f"connections live in {len(counts)} zones, those of {seen} are counted"
    if shared != zones.shared_used:
        return f"{shared} connections lie beyond their zones' reserves, {zones.shared_used} are counted"
    return ""

"""Zones in the model: what a packet's zone counts for in each direction, and how many connections each zone has and may have.

Invariant (model's check()): counts are those of the connections in the table.
Not here: whom to evict (tracker).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ctcore.config import Config
from ctcore.model.conn import Conn, Key
from ctcore.types import Dir

DIRS = {"both": (Dir.ORIG, Dir.REPLY), "original": (Dir.ORIG,), "reply": (Dir.REPLY,)}


def zone_of(conn: Conn) -> int:
    """A connection's zone: both of its tuples have it, or one has and the other is in 0."""
    return max(key.zone for key in conn.key)


class Zones:
    def __init__(self, config: Config):
        self.config = config
        self.dirs = DIRS[config.zone_dir]
        self.counts: Counter[int] = Counter()
        self.reserved = any(config.zone_reserves.values())

    @property
    def split(self) -> bool:
        return len(self.dirs) == 1

    def key(self, key: Key, d: int) -> Key:
        """A packet's tuple as flows of a direction have it."""
        return key if d in self.dirs else key._replace(zone=0)

    def keys(self, key: Key) -> Iterator[tuple[Key, tuple[int, ...]]]:
        """What to look a packet's tuple up by, one after the other, and of which directions the flow may be that is found.

        Where the two ids of its zone differ, a flow of the other direction is of a connection in another zone.
        """
        if key.zone == 0 or not self.split:
            yield key, tuple(Dir)
            return
        for d in Dir:
            yield self.key(key, d), (d,)

    def full(self, zone: int) -> bool:
        """Has it as many connections as it may?"""
        limit = self.config.zone_limits.get(zone, self.config.zone_limit)
        return limit != 0 and self.counts[zone] >= limit

    def has_place(self, zone: int) -> bool:
        """One of its own, or one that is shared: connections beyond their zones' reserves take these."""
        shared = self.config.capacity - sum(self.config.zone_reserves.values())
        return self.counts[zone] < self._reserve(zone) or sum(max(0, self.counts[z] - self._reserve(z)) for z in self.counts) < shared

    def gives_way(self, zone: int, newcomer: int) -> bool:
        """May a connection of a zone be evicted for one of the newcomer's?"""
        return zone == newcomer or self.counts[zone] > self._reserve(zone)

    def _reserve(self, zone: int) -> int:
        return self.config.zone_reserves.get(zone, 0)

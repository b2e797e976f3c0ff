"""The model's table: which connection a tuple belongs to, and who is near whom when the table is full.

Finding is a dict. Early drop, however, evicts what lies near the new packet's tuple, so the model has to know the engine's places as well:
buckets of ten slots; a flow goes to the first free slot of the first bucket with room, from its hash's own bucket on; erasing leaves a hole.
A flow may lie no further off than REACH buckets, so that tuples chosen to collide cost their own connections only, and not everybody's time.
Invariant (check()): a flow is in the dict if and only if it is in exactly one slot, within reach of its own bucket.
Not here: when to evict, and whom (model).
"""

from __future__ import annotations

from collections.abc import Iterator

from ctcore.hashing import key_hash
from ctcore.model.conn import Conn, Key
from ctcore.types import Dir

SLOTS = 10
LEAST_BUCKETS = 8
NEAR = 8  # buckets that early drop looks at
REACH = 64  # buckets in which a flow may lie, its own one included

Slot = tuple[Conn, int] | None


class Table:
    """capacity: most connections; the buckets are enough for twice as many flows, and then some."""

    def __init__(self, capacity: int, seed: int):
        self.seed = seed
        self.n_buckets = max(LEAST_BUCKETS, -(-2 * capacity // 7))
        self.flows: dict[Key, tuple[Conn, int]] = {}
        self.buckets: dict[int, list[Slot]] = {}  # only those ever used

    def find(self, key: Key) -> tuple[Conn, int] | None:
        """The connection and the direction a tuple stands for."""
        return self.flows.get(key)

    def insert(self, conn: Conn) -> bool:
        """Both flows, the original one first, or, if one of them finds no place, neither. If they are the same tuple, it is found as the reply."""
        for d in Dir if conn.key[Dir.ORIG] != conn.key[Dir.REPLY] else (Dir.REPLY,):
            bucket = next((bucket for bucket in self._probe(conn.key[d]) if None in bucket), None)
            if bucket is None:
                self.erase(conn)
                return False
            self.flows[conn.key[d]] = conn, d
            bucket[bucket.index(None)] = conn, d
        return True

    def erase(self, conn: Conn) -> None:
        """Take out whichever of its flows are in."""
        for d in Dir:
            if self.flows.pop(conn.key[d], None):
                bucket, slot = next(self._places(conn.key[d]))
                bucket[slot] = None

    def near(self, key: Key) -> Iterator[list[Conn]]:
        """The connections that have a flow in the key's own bucket, then in the next, and so on: each list in the order of the slots."""
        for bucket, _ in zip(self._probe(key), range(NEAR), strict=False):
            yield list({id(slot[0]): slot[0] for slot in bucket if slot}.values())

    def check(self) -> None:
        placed = [slot for bucket in self.buckets.values() for slot in bucket if slot]
        assert len(placed) == len(self.flows), f"{len(placed)} slots are taken, by {len(self.flows)} flows"
        for conn, d in placed:
            found = self.find(conn.key[d])
            assert found and found[0] is conn, f"connection {conn.id}: its slot of direction {d} is not its own"
            assert any(True for _ in self._places(conn.key[d])), f"connection {conn.id}: its direction {d} lies too far off"

    def _probe(self, key: Key) -> Iterator[list[Slot]]:
        home = key_hash(key.raw(), self.seed) * self.n_buckets >> 32
        for i in range(min(REACH, self.n_buckets)):
            yield self.buckets.setdefault((home + i) % self.n_buckets, [None] * SLOTS)

    def _places(self, key: Key) -> Iterator[tuple[list[Slot], int]]:
        for bucket in self._probe(key):
            for i, slot in enumerate(bucket):
                if slot and slot[0].key[slot[1]] == key:
                    yield bucket, i

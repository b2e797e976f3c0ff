"""The model's table: which connection a tuple belongs to, and who is near whom when the table is full.

Finding is a dict, and who is near whom is told by chains: the kernel's hash table as Linux would have it, of nf_conntrack_buckets buckets, in
which a hash's place is its share of the 32 bits. Tuples that collide, however, may find no place in the engine's table, so the model has to know
that as well: buckets of ten slots; a flow goes to the first free slot of the first bucket with room, from its hash's own bucket on; erasing
leaves a hole. A flow may lie no further off than REACH buckets, so that tuples chosen to collide cost their own connections only, and not
everybody's time.
Invariant (check()): a flow is in the dict if and only if it is in exactly one slot, within reach of its own bucket, and in its chain.
Not here: when to evict, and whom (model).
"""

from __future__ import annotations

from collections.abc import Iterator

from ctcore.hashing import key_hash
from ctcore.model.conn import Conn, Key
from ctcore.types import Dir

SLOTS = 10
LEAST_BUCKETS = 8
NEAR = 8  # of the kernel's buckets, that early drop looks at
REACH = 64  # buckets in which a flow may lie, its own one included

Slot = tuple[Conn, int] | None


class Table:
    """capacity: most connections; our buckets are enough for twice as many flows, and then some. chains: how many buckets the kernel has."""

    def __init__(self, capacity: int, chains: int, seed: int):
        self.seed = seed
        self.n_chains = chains
        self.chains: dict[int, dict[Key, Conn]] = {}  # only those ever used
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
            self.chains.setdefault(self._chain_of(conn.key[d]), {})[conn.key[d]] = conn
        return True

    def erase(self, conn: Conn) -> None:
        """Take out whichever of its flows are in."""
        for d in Dir:
            if self.flows.pop(conn.key[d], None):
                bucket, slot = next(self._places(conn.key[d]))
                bucket[slot] = None
                del self.chains[self._chain_of(conn.key[d])][conn.key[d]]

    def near(self, key: Key) -> Iterator[list[Conn]]:
        """The connections that have a flow in the key's own bucket of the kernel's table, then in the next, and so on, round its end."""
        for i in range(NEAR):
            chain = self.chains.get((self._chain_of(key) + i) % self.n_chains, {})
            yield list({conn.id: conn for conn in chain.values()}.values())

    def check(self) -> None:
        placed = [slot for bucket in self.buckets.values() for slot in bucket if slot]
        assert len(placed) == len(self.flows), f"{len(placed)} slots are taken, by {len(self.flows)} flows"
        for conn, d in placed:
            found = self.find(conn.key[d])
            assert found and found[0] is conn, f"connection {conn.id}: its slot of direction {d} is not its own"
            assert any(True for _ in self._places(conn.key[d])), f"connection {conn.id}: its direction {d} lies too far off"
            assert self.chains[self._chain_of(conn.key[d])].get(conn.key[d]) is conn, f"connection {conn.id}: its direction {d} is in no chain"
        assert sum(map(len, self.chains.values())) == len(self.flows), "the chains hold other flows than the table"

    def _chain_of(self, key: Key) -> int:
        return key_hash(key.raw(), self.seed) * self.n_chains >> 32

    def _probe(self, key: Key) -> Iterator[list[Slot]]:
        home = key_hash(key.raw(), self.seed) * self.n_buckets >> 32
        for i in range(min(REACH, self.n_buckets)):
            yield self.buckets.setdefault((home + i) % self.n_buckets, [None] * SLOTS)

    def _places(self, key: Key) -> Iterator[tuple[list[Slot], int]]:
        for bucket in self._probe(key):
            for i, slot in enumerate(bucket):
                if slot and slot[0].key[slot[1]] == key:
                    yield bucket, i

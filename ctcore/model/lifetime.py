"""How connections begin and end in the model, when, and what is told of it.

A new connection has a place from the start (early drop makes one), but only counts from _confirm() on: until then it is in no table, no zone's count
and no pool, and whoever has it can drop it by _discard().
Invariant: the clock never goes back, and no connection outlives its deadline by a packet.
Not here: what a packet does to a connection (tracker), where tuples lie (table), what an administrator asks (admin).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from ctcore.config import whole
from ctcore.model import l4
from ctcore.model.assisted import Assisted
from ctcore.model.conn import Conn, Key
from ctcore.model.decision import Decision
from ctcore.model.expectations import Expectation, Follow
from ctcore.model.helpers import pptp, speaks
from ctcore.model.nat import CHANGED, DONE
from ctcore.model.protocols import begin
from ctcore.model.zones import Zones, zone_of
from ctcore.types import EVENT_DTYPE, EVICTION_DTYPE, Dir, End, EventKind, EvictedFor, Proto, Reason, State, Status, Verdict


class Lifetime(Assisted):
    """The part of ModelTracker that makes connections and takes them out."""

    now: int  # ns
    _tick_ns: int
    _zones: Zones
    _events: deque[np.ndarray]
    _evictions: list[Any]

    # --- birth and death --------------------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self._conns)

    def _allocate(self, key: Key, *, use_up: bool) -> tuple[Conn, int] | Decision:
        """A connection for a packet that has none. It can still come to nothing. use_up: an expectation that it fulfils is over."""
        conn = begin(key, self.now, self._tick, self.config.hz)
        if conn is None:
            return Decision(State.INVALID, Reason.R_ICMP_TYPE if l4.is_icmp_of_family(key) else Reason.R_ICMP_FAMILY)
        conn.key = self._zones.key(conn.key[Dir.ORIG], Dir.ORIG), self._zones.key(conn.key[Dir.REPLY], Dir.REPLY)
        refusal = self._find_place(key)
        if refusal:
            return Decision(State.NOT_SEEN, refusal, Verdict.DROP)
        expectation = self._expectations.find(key)  # key: with the packet's zone
        if expectation:
            conn.status |= Status.EXPECTED
            conn.master = expectation.master
            conn.mark = self._conns[expectation.master].mark
            self._follow(conn, expectation)
            if expectation.helper:
                self._give_helper(conn, expectation.helper)
            if use_up:
                self._use_up(expectation)
        return conn, Dir.ORIG

    def _use_up(self, expectation: Expectation) -> None:
        """It has come true. Of a tunnel's two directions the other one is expected no more, either."""
        self._counters["expect_new"] += 1
        if expectation.follow is Follow.PPTP:
            self._expectations.forget(pptp.other_end(expectation, self._conns[expectation.master]))
        if not expectation.permanent:
            self._expectations.drop(lambda e: e is expectation)

    def _find_place(self, key: Key) -> int:
        """A place for one more connection, if need be somebody else's; or the reason why there is none. key: of the packet, with its zone."""
        if self._zones.full(key.zone):
            self._counters["zone_limit"] += 1
            return Reason.R_ZONE_LIMIT
        if self._zones.has_place(key.zone) or self._early_drop(key):
            return Reason.R_OK
        self._counters["drop"] += 1
        return Reason.R_TABLE_FULL

    def _early_drop(self, key: Key) -> bool:
        """Evict what is not assured from the first bucket near the new tuple that has any such connection.

        Where zones have reserves, only of those whose place this zone may use, and of these only the oldest.
        """
        why = EvictedFor.FOR_TABLE if self.count >= self.config.capacity else EvictedFor.FOR_ZONE
        for conns in self._table.near(self._zones.key(key, Dir.ORIG)):
            victims = [conn for conn in conns if not conn.has(Status.ASSURED)]
            if self._zones.reserved:
                victims = sorted((c for c in victims if self._zones.gives_way(zone_of(c), key.zone)), key=lambda c: c.id)[:1]
            for conn in victims:
                self._evict(conn, key, why)
            if victims:
                return True
        return False

    def _evict(self, conn: Conn, newcomer: Key, why: int) -> None:
        """Take a connection's place, and note for whom."""
        self._note_eviction(conn, newcomer, why)
        self._destroy(conn, End.END_EVICTED)
        self._counters["early_drop"] += 1

    def _note_eviction(self, conn: Conn, newcomer: Key, why: int) -> None:
        if len(self._evictions) < self.config.eviction_buffer:
            record: Any = np.zeros((), dtype=EVICTION_DTYPE)
            record["time"], record["conn"], record["status"], record["why"] = self.now, conn.id, conn.status, why
            record["packets"], record["bytes"] = conn.packets, conn.bytes
            for name, key in (("key", conn.key[Dir.ORIG]), ("newcomer", newcomer)):
                record[name] = np.frombuffer(key.raw(), dtype=record.dtype[name])[0]
            self._evictions.append(record)
        else:
            self._counters["evictions_lost"] += 1

    def _confirm(self, conn: Conn) -> int:
        """The first packet passed: from now on the connection counts. A reason if its reply tuple is taken or there is no place within reach."""
        strange = self._nat and any(conn.has(changed) for changed in CHANGED) and not self._nat.is_own(conn, conn.key[Dir.REPLY])
        if strange or self._table.find(conn.key[Dir.REPLY]) or self._table.find(conn.key[Dir.ORIG]):
            return self._clash(conn)
        if not self._table.insert(conn):
            self._counters["drop"] += 1
            return Reason.R_TABLE_FULL
        conn.id = self._next_id
        self._next_id += self.config.share[1]
        conn.status |= Status.CONFIRMED
        self._conns[conn.id] = conn
        self._zones.counts[zone_of(conn)] += 1
        self._helped += conn.ext is not None
        if self._nat:
            self._nat.enter(conn)
        self._counters["new"] += 1
        self._emit(EventKind.EVENT_NEW, conn)
        return Reason.R_OK

    def _clash(self, conn: Conn) -> int:
        """One of its tuples is another one's: if address translation was to find one of its own, it has found none. Why it cannot be confirmed."""
        self._counters["insert_failed"] += 1
        if not self._nat or not any(conn.has(done) for done in DONE):
            return Reason.R_CLASH
        self._counters["nat_exhausted"] += 1
        self._nat.exhausted(conn)
        return Reason.R_NAT_EXHAUSTED

    def _give_up(self, conn: Conn, newcomer: Conn) -> None:
        """A closed connection whose tuple another one takes over."""
        self._note_eviction(conn, newcomer.key[Dir.ORIG], EvictedFor.FOR_TUPLE)
        self._destroy(conn, End.END_REPLACED)

    def _destroy(self, conn: Conn, end: int) -> None:
        """Take a connection out. The one that ends by timeout did so when its time was up, not when that is noticed."""
        self._table.erase(conn)
        del self._conns[conn.id]
        self._zones.counts[zone_of(conn)] -= 1
        if self._nat:
            self._nat.leave(conn)
        conn.status |= Status.DYING
        if conn.ext and conn.ext.helper == "pptp" and speaks("pptp", conn.key[Dir.ORIG]):
            self._hang_up(conn)
        if conn.master >= 0 and conn.key[Dir.ORIG].proto == Proto.PROTO_GRE:
            self._tunnel_ended(conn)
        self._expectations.drop(lambda e: e.master == conn.id)
        time = conn.deadline * self._tick_ns if end == End.END_TIMEOUT else self.now
        self._emit(EventKind.EVENT_DESTROY, conn, end=end, time=time)
        self._helped -= conn.ext is not None
        conn.ext = None

    def _discard(self, conn: Conn) -> None:
        """A connection that is not confirmed never was; nor is there anything it announced."""
        self._expectations.drop(lambda e: e.master == self._next_id)
        conn.ext = None

    # --- time -------------------------------------------------------------------------------------------------------------------------

    @property
    def _tick(self) -> int:
        return self.now // self._tick_ns

    def _left(self, conn: Conn) -> int:
        """Ticks until its deadline."""
        return max(0, conn.deadline - self._tick)

    def expire(self, now: int) -> None:
        """Advance the clock, never back, and remove whatever has expired. now: ns."""
        now = whole("now:", now, -(1 << 63), (1 << 63) - 1, " ns")
        self.now = max(self.now, now)
        self._expectations.drop(lambda e: e.deadline <= self._tick)
        due = [conn for conn in self._conns.values() if conn.deadline <= self._tick]
        for conn in sorted(due, key=lambda conn: conn.deadline):
            if conn.id in self._conns:
                self._expire(conn)

    def _expire(self, conn: Conn) -> None:
        self._destroy(conn, End.END_TIMEOUT)
        self._counters["expired"] += 1

    # --- events -----------------------------------------------------------------------------------------------------------------------

    def _report(self, conn: Conn) -> None:
        """At the end of a packet: one update event for all it changed. Birth and death have told theirs."""
        changes, conn.changes = conn.changes, 0
        if changes and conn.id in self._conns:
            self._emit(EventKind.EVENT_UPDATE, conn, changes=changes)

    def _emit(self, kind: int, conn: Conn, *, end: int = End.ALIVE, changes: int = 0, time: int | None = None) -> None:
        conn.changes = 0
        if not self.config.event_mask & kind:
            return
        if len(self._events) >= self.config.event_buffer:
            self._counters["events_lost"] += 1
            return
        event: Any = np.zeros((), dtype=EVENT_DTYPE)
        event["kind"], event["end"], event["changes"] = kind, end, changes
        event["timeout"], event["time"] = self._left(conn), self.now if time is None else time
        conn.store(event["conn"], self._left(conn))
        self._events.append(event)

    def events(self) -> np.ndarray:
        taken = np.zeros(len(self._events), dtype=EVENT_DTYPE)
        for i in range(len(taken)):
            taken[i] = self._events.popleft()
        return taken

    @property
    def events_waiting(self) -> int:
        return len(self._events)

    @property
    def events_lost(self) -> int:
        return self._counters["events_lost"]

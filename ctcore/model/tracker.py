"""The executable specification: connection tracking in plain Python, with the interface of ctcore.tracker.Tracker.

This is what to read to understand conntrack; it is slow and meant to be clear. The engine is tested against it, packet by packet and field by
field. Theory of operation: _track() is a packet's straight line: ICMP errors aside, its tuple is looked up; a miss allocates a connection,
which only counts from confirm on; the protocol answers (tcp, sctp, l4); the answer is carried out.
Invariants (check()): every confirmed connection is in the table with both its flows; no expectation outlives its master; the clock never goes
back, and no connection outlives its deadline by a packet.
Not here: parsing (datapath.wire), speed.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ctcore.batch import Batch
from ctcore.config import Config, whole
from ctcore.errors import ConfigError
from ctcore.model import l4, nat
from ctcore.model.admin import Administration
from ctcore.model.assisted import Assisted, redirected
from ctcore.model.conn import NO_L4STATE, Conn, Key, Packet, Visit
from ctcore.model.expectations import Expectations
from ctcore.model.helpers import HELPERS, Edit, rule_for
from ctcore.model.protocols import ask, begin
from ctcore.model.table import Table
from ctcore.model.zones import Zones, zone_of
from ctcore.nat_rules import NatPool
from ctcore.types import (
    DECISION_DTYPE,
    EVENT_DTYPE,
    EVICTION_DTYPE,
    Change,
    Dir,
    End,
    EventKind,
    EvictedFor,
    Proto,
    Reason,
    RewriteFlag,
    State,
    Status,
    Verdict,
)

NO_DIR = 255
SECOND = 1_000_000_000


@dataclass(frozen=True)
class Decision:
    """What comes out for one packet; without a connection all but the reason is empty."""

    state: int
    reason: int = Reason.R_OK
    verdict: int = Verdict.ACCEPT
    conn: int = -1
    dir: int = NO_DIR
    timeout: int = -1
    status: int = 0
    mark: int = 0
    l4state: int = NO_L4STATE
    rewrite: nat.Rewrite | None = None

    def store(self, record: np.void, key: Key) -> None:
        for name in ("state", "reason", "verdict", "conn", "dir", "timeout", "status", "mark", "l4state"):
            record[name] = getattr(self, name)
        record["zone"], record["proto"], record["family"] = key.zone, key.proto, key.family


class ModelTracker(Assisted, Administration):
    """Connection tracking, one packet after the other. Arguments, results and errors are those of ctcore.tracker.Tracker."""

    def __init__(self, config: Config | None = None):
        config = Config() if config is None else config
        self.config = config
        for rule in config.helpers:
            if rule.name not in HELPERS:
                raise ConfigError(f"helper {rule.name}:{rule.proto}:{rule.port}: this helper is not there")
        self.now = 0
        self._tick_ns = SECOND // config.hz
        self._table = Table(config.capacity, config.buckets, config.seed)
        self._conns: dict[int, Conn] = {}  # by ordinal, so oldest first
        self._next_id = 0
        self._expectations = Expectations(config.expect_max)
        self._events: deque[np.ndarray] = deque()
        self._evictions: list[Any] = []
        self._zones = Zones(config)
        names = (
            "found",
            "new",
            "invalid",
            "early_drop",
            "drop",
            "insert_failed",
            "expired",
            "events_lost",
            "zone_limit",
            "evictions_lost",
            "expect_new",
            "expect_create",
            "expect_delete",
            "helper_unassigned",
            "nat_exhausted",
        )
        self._counters = dict.fromkeys(names, 0)
        self._nat = nat.Translator(config, self._table, self._give_up) if config.nat else None
        self._helped, self._asked, self._moved, self._joined = 0, False, (0, 0), 0
        self._edits: list[Edit] = []

    # --- the packet's straight line ---------------------------------------------------------------------------------------------------

    def advance(self, batch: Batch, rewrites: np.ndarray | None = None) -> np.ndarray:
        batch.consume()
        rows = batch.array
        decisions = np.zeros(len(rows), dtype=DECISION_DTYPE)
        self._edits.clear()
        self._asked = rewrites is not None
        if rewrites is not None:
            rewrites["flags"] = 0
        for i, row in enumerate(rows):
            self.expire(int(row["now"]))
            packet = Packet.of(row, batch.l4_bytes(i))
            first_edit, self._moved, self._shifted, self._joined = len(self._edits), (0, 0), False, 0
            if row["verdict"] == Verdict.PENDING:
                decision = self._track(packet)
            else:  # parse() was sure
                decision = Decision(int(row["state"]), int(row["reason"]), int(row["verdict"]))
            self._counters["invalid"] += decision.state == State.INVALID
            decision.store(decisions[i], packet.key)
            if rewrites is not None and decision.rewrite:
                decision.rewrite.store(rewrites[i])
                self._store_moves(rewrites[i], first_edit)
            if rewrites is not None and decision.verdict == Verdict.ACCEPT:
                rewrites[i]["flags"] |= self._joined
        return decisions

    def _track(self, packet: Packet) -> Decision:
        if l4.is_icmp_of_family(packet.key):
            if l4.is_untracked(packet):
                return Decision(State.UNTRACKED, Reason.R_ICMP6_UNTRACKED)
            if l4.is_icmp_error(packet):
                return self._relate(packet)
        if packet.key.proto == Proto.PROTO_GRE:
            packet = self._named(packet)
        return self._visit(packet)

    def _relate(self, packet: Packet) -> Decision:
        """An ICMP error belongs to the connection whose packet it quotes. It changes nothing there."""
        quoted, refusal = l4.inner_key(packet)
        if quoted is None:
            return Decision(State.INVALID, refusal)
        answer = self._named_quote(quoted).inverted()
        if answer is None:
            return Decision(State.INVALID, Reason.R_ICMP_INNER_ERROR)
        found = self._find(answer)
        if found is None:
            return Decision(State.INVALID, Reason.R_ICMP_NO_CONN)
        if packet.key.dst != answer.dst:
            return Decision(State.INVALID, Reason.R_ICMP_OUTER)
        conn, d = found
        related = replace(self._accept(conn, d, State.RELATED, Reason.R_OK), rewrite=nat.rewrite_of(conn, d, quoting=True))
        refusal = nat.error_refusal(packet, conn, d) if self._nat else Reason.R_OK
        if not refusal and d == Dir.ORIG and conn.ext:
            refusal = self._help_error(packet, conn)
            related = replace(related, timeout=self._left(conn))
        if self._nat:  # it looks at what is quoted, whether there is anything to be changed or not
            self._joined |= RewriteFlag.REWRITE_QUOTE
        return untranslated(related, refusal) if refusal else related

    def _visit(self, packet: Packet) -> Decision:
        """Find the connection, or make one; let the protocol look at the packet; carry out its answer."""
        known = self._find(packet.key)
        self._counters["found"] += known is not None
        found = known or self._allocate(packet.key)
        if isinstance(found, Decision):
            return found
        conn, d = found
        state = state_of(conn, d)
        answer = ask(Visit(packet, conn, d, self._tick, self.config))
        if answer.repeat:
            self._destroy(conn, End.END_REPLACED)
            again = self._visit(packet)
            return again if again.conn < 0 else replace(again, reason=Reason.R_TCP_REOPENED)
        if not answer.valid:
            if not conn.confirmed:
                self._discard(conn)
            self._report(conn)
            return Decision(State.INVALID, answer.reason, l4state=conn.l4.state if conn.confirmed else NO_L4STATE)
        if answer.timeout is not None or answer.kill:
            self._count(packet, conn, d)
        if answer.timeout is not None and not conn.has(Status.FIXED_TIMEOUT):
            conn.deadline = self._tick + answer.timeout
        if answer.kill:
            self._destroy(conn, End.END_RESET)
        if d == Dir.REPLY and not conn.has(Status.SEEN_REPLY):
            conn.status |= Status.SEEN_REPLY
            conn.changes |= Change.CHANGE_REPLY
        untranslatable: int = Reason.R_OK
        if not conn.confirmed:
            if self._nat:
                untranslatable = self._nat.decide(conn)
            if not untranslatable and (name := rule_for(conn, self.config)) and self._give_helper(conn, name):
                conn.status |= Status.HELPER
        stuck = untranslatable or nat.refusal(packet, conn, d) or (self._help(packet, conn, d, state) if conn.ext else Reason.R_OK)
        if not conn.confirmed:
            refusal = stuck or self._confirm(conn)
            if refusal:
                self._discard(conn)
                return Decision(State.NOT_SEEN, refusal, Verdict.DROP)
        self._report(conn)
        accepted = self._accept(conn, d, state, answer.reason)
        return untranslated(accepted, stuck) if stuck else accepted

    def _find(self, key: Key) -> tuple[Conn, int] | None:
        """The connection of a packet's tuple, and the direction: by what its zone is in the original one, then by what it is in the reply."""
        for wanted, dirs in self._zones.keys(key):
            found = self._table.find(wanted)
            if found and found[1] in dirs:
                return found
        return None

    def _accept(self, conn: Conn, d: int, state: int, reason: int) -> Decision:
        told = conn.id, d, self._left(conn), conn.status, conn.mark, conn.l4.state
        return Decision(state, reason, Verdict.ACCEPT, *told, rewrite=redirected(conn, d))

    def _count(self, packet: Packet, conn: Conn, d: int) -> None:
        if self.config.acct:
            conn.packets[d] += 1
            conn.bytes[d] += packet.ip_len

    # --- birth and death --------------------------------------------------------------------------------------------------------------

    def _allocate(self, key: Key) -> tuple[Conn, int] | Decision:
        """A connection for a packet that has none. It can still come to nothing."""
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
            self._counters["expect_new"] += 1
            if not expectation.permanent:
                self._expectations.drop(lambda e: e is expectation)
        return conn, Dir.ORIG

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
        if self._table.find(conn.key[Dir.REPLY]) or self._table.find(conn.key[Dir.ORIG]):
            self._counters["insert_failed"] += 1
            return self._exhausted(conn) if self._nat else Reason.R_CLASH
        if not self._table.insert(conn):
            self._counters["drop"] += 1
            return Reason.R_TABLE_FULL
        conn.id = self._next_id
        self._next_id += 1
        conn.status |= Status.CONFIRMED
        self._conns[conn.id] = conn
        self._zones.counts[zone_of(conn)] += 1
        if self._nat:
            self._nat.enter(conn)
        self._counters["new"] += 1
        self._emit(EventKind.EVENT_NEW, conn)
        return Reason.R_OK

    def _exhausted(self, conn: Conn) -> int:
        """Address translation has found no tuple of its own for the connection."""
        assert self._nat is not None
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
        if conn.ext and conn.ext.helper == "pptp" and conn.ext.memory:
            self._hang_up(conn)
        if conn.master >= 0 and conn.key[Dir.ORIG].proto == Proto.PROTO_GRE:
            self._tunnel_ended(conn)
        self._expectations.drop(lambda e: e.master == conn.id)
        time = conn.deadline * self._tick_ns if end == End.END_TIMEOUT else self.now
        self._emit(EventKind.EVENT_DESTROY, conn, end=end, time=time)
        self._take_helper(conn)

    def _discard(self, conn: Conn) -> None:
        """A connection that is not confirmed never was; nor is there anything it announced."""
        self._expectations.drop(lambda e: e.master == self._next_id)
        self._take_helper(conn)

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

    # --- what a caller may see and set ------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self._conns)

    def counters(self) -> dict[str, int]:
        return self._counters | {"expect_create": self._expectations.created, "expect_delete": self._expectations.deleted}

    def nat_pools(self) -> list[NatPool]:
        return self._nat.rows() if self._nat else []

    def prefer(self, port: int | None = None, destination: int | None = None, announced: int | None = None) -> None:
        told = {"port": port, "destination": destination, "announced": announced}
        ports = [None if value is None else whole(name, value, 0, 65535) for name, value in told.items()]
        if self._nat:
            self._nat.prefer({manip: p for manip, p in zip((nat.SRC, nat.DST), ports, strict=False) if p is not None}, ports[2])

    def find(self, key: bytes) -> np.ndarray | None:
        found = self._find(Key.of(bytes(key)))
        return self._snapshot(found[0]) if found else None

    # --- proof ------------------------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError if an invariant does not hold."""
        self._table.check()
        flows = {key for conn in self._conns.values() for key in conn.key}
        assert flows == set(self._table.flows), "the table holds other flows than those of the connections"
        for ordinal, conn in self._conns.items():
            assert conn.id == ordinal < self._next_id, f"connection {ordinal}: has the ordinal {conn.id}, of {self._next_id}"
            assert conn.confirmed and not conn.has(Status.DYING), f"connection {ordinal}: status {conn.status:#x} in the table"
            assert conn.changes == 0, f"connection {ordinal}: changes {conn.changes} were not reported"
        assert Counter(map(zone_of, self._conns.values())) == +self._zones.counts, "the counts of zones are not those of the connections"
        assert self.count <= self.config.capacity, f"{self.count} connections, of {self.config.capacity} at most"
        assert all(e.master in self._conns for e in self._expectations), "an expectation has outlived its master"
        assert self._helped == sum(conn.ext is not None for conn in self._conns.values()), f"{self._helped} connections are said to have helpers"
        assert len(self._events) <= self.config.event_buffer, f"{len(self._events)} events are kept"
        if self._nat:
            self._nat.check(list(self._conns.values()))


def state_of(conn: Conn, d: int) -> int:
    """What the packet is to its connection, before it changes anything there."""
    if d == Dir.REPLY or conn.has(Status.SEEN_REPLY):
        return State.ESTABLISHED
    return State.RELATED if conn.has(Status.EXPECTED) else State.NEW


def untranslated(decision: Decision, reason: int) -> Decision:
    """The packet is what it is to its connection, and is dropped: it cannot leave as it should."""
    return replace(decision, reason=reason, verdict=Verdict.DROP, rewrite=None)

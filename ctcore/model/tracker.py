"""The executable specification: connection tracking in plain Python, with the interface of ctcore.tracker.Tracker.

This is what to read to understand conntrack; it is slow and meant to be clear. The engine is tested against it, packet by packet and field by
field. Theory of operation: _track() is a packet's straight line: ICMP errors aside, its tuple is looked up; a miss allocates a connection,
which only counts from confirm on; the protocol answers (tcp, sctp, l4); the answer is carried out.
Invariants (check()): every confirmed connection is in the table with both its flows; no expectation outlives its master; the clock never goes
back, and no connection outlives its deadline by a packet.
Not here: parsing (datapath.wire), speed.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ctcore.batch import Batch
from ctcore.config import Config, whole
from ctcore.errors import ConfigError
from ctcore.model import l4, nat
from ctcore.model.conn import NO_L4STATE, Conn, Key, Packet, Visit
from ctcore.model.protocols import ask, begin
from ctcore.model.table import Table
from ctcore.nat_rules import NatPool
from ctcore.types import CONN_DTYPE, DECISION_DTYPE, EVENT_DTYPE, Change, Dir, End, EventKind, Reason, State, Status, Verdict

NO_DIR = 255
SECOND = 1_000_000_000
LONGEST_EXPECTATION = (1 << 31) - 1  # ticks


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


class ExpectationRow(NamedTuple):
    """An expectation as callers see it; timeout: seconds left."""

    master: int
    src: str
    dst: str
    proto: int
    sport: int
    dport: int
    zone: int
    timeout: float
    permanent: bool


class Expectation(NamedTuple):
    """A connection that is announced. Its key has the source port 0 if any will do."""

    key: Key
    master: int
    deadline: int  # tick
    permanent: bool

    def fits(self, key: Key) -> bool:
        return self.key == (key if self.key.sport else key._replace(sport=0))


class ModelTracker:
    """Connection tracking, one packet after the other. Arguments, results and errors are those of ctcore.tracker.Tracker."""

    def __init__(self, config: Config | None = None):
        config = Config() if config is None else config
        self.config = config
        self.now = 0
        self._tick_ns = SECOND // config.hz
        self._table = Table(config.capacity, config.buckets, config.seed)
        self._conns: dict[int, Conn] = {}  # by ordinal, so oldest first
        self._next_id = 0
        self._expectations: list[Expectation] = []  # youngest first
        self._events: deque[np.ndarray] = deque()
        names = (
            "found",
            "new",
            "invalid",
            "early_drop",
            "drop",
            "insert_failed",
            "expired",
            "events_lost",
            "expect_new",
            "expect_create",
            "expect_delete",
            "nat_exhausted",
        )
        self._counters = dict.fromkeys(names, 0)
        self._nat = nat.Translator(config, self._table, self._give_up) if config.nat else None

    # --- the packet's straight line ---------------------------------------------------------------------------------------------------

    def advance(self, batch: Batch, rewrites: np.ndarray | None = None) -> np.ndarray:
        batch.consume()
        rows = batch.array
        decisions = np.zeros(len(rows), dtype=DECISION_DTYPE)
        if rewrites is not None:
            rewrites["flags"] = 0
        for i, row in enumerate(rows):
            self.expire(int(row["now"]))
            packet = Packet.of(row, batch.l4_bytes(i))
            if row["verdict"] == Verdict.PENDING:
                decision = self._track(packet)
            else:  # parse() was sure
                decision = Decision(int(row["state"]), int(row["reason"]), int(row["verdict"]))
            self._counters["invalid"] += decision.state == State.INVALID
            decision.store(decisions[i], packet.key)
            if rewrites is not None and decision.rewrite:
                decision.rewrite.store(rewrites[i])
        return decisions

    def _track(self, packet: Packet) -> Decision:
        if l4.is_icmp_of_family(packet.key):
            if l4.is_untracked(packet):
                return Decision(State.UNTRACKED, Reason.R_ICMP6_UNTRACKED)
            if l4.is_icmp_error(packet):
                return self._relate(packet)
        return self._visit(packet)

    def _relate(self, packet: Packet) -> Decision:
        """An ICMP error belongs to the connection whose packet it quotes. It changes nothing there."""
        quoted, refusal = l4.inner_key(packet)
        if quoted is None:
            return Decision(State.INVALID, refusal)
        answer = quoted.inverted()
        if answer is None:
            return Decision(State.INVALID, Reason.R_ICMP_INNER_ERROR)
        found = self._table.find(answer)
        if found is None:
            return Decision(State.INVALID, Reason.R_ICMP_NO_CONN)
        if packet.key.dst != answer.dst:
            return Decision(State.INVALID, Reason.R_ICMP_OUTER)
        conn, d = found
        related = replace(self._accept(conn, d, State.RELATED, Reason.R_OK), rewrite=nat.rewrite_of(conn, d, quoting=True))
        refusal = nat.error_refusal(packet, conn, d) if self._nat else Reason.R_OK
        return untranslated(related, refusal) if refusal else related

    def _visit(self, packet: Packet) -> Decision:
        """Find the connection, or make one; let the protocol look at the packet; carry out its answer."""
        known = self._table.find(packet.key)
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
        if self._nat and not conn.confirmed:
            self._nat.decide(conn)
        stuck = nat.refusal(packet, conn, d)
        if not conn.confirmed:
            refusal = stuck or self._confirm(conn)
            if refusal:
                return Decision(State.NOT_SEEN, refusal, Verdict.DROP)
        self._report(conn)
        accepted = self._accept(conn, d, state, answer.reason)
        return untranslated(accepted, stuck) if stuck else accepted

    def _accept(self, conn: Conn, d: int, state: int, reason: int) -> Decision:
        told = conn.id, d, self._left(conn), conn.status, conn.mark, conn.l4.state
        return Decision(state, reason, Verdict.ACCEPT, *told, rewrite=nat.rewrite_of(conn, d))

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
        if self.count >= self.config.capacity and not self._early_drop(key):
            self._counters["drop"] += 1
            return Decision(State.NOT_SEEN, Reason.R_TABLE_FULL, Verdict.DROP)
        expectation = next((e for e in self._expectations if e.fits(key)), None)
        if expectation:
            conn.status |= Status.EXPECTED
            conn.master = expectation.master
            conn.mark = self._conns[expectation.master].mark
            self._counters["expect_new"] += 1
            if not expectation.permanent:
                self._drop_expectations([expectation])
        return conn, Dir.ORIG

    def _early_drop(self, key: Key) -> bool:
        """Evict what is not assured from the first bucket near the new tuple that has any such connection."""
        for conns in self._table.near(key):
            victims = [conn for conn in conns if not conn.has(Status.ASSURED)]
            for conn in victims:
                self._destroy(conn, End.END_EVICTED)
            self._counters["early_drop"] += len(victims)
            if victims:
                return True
        return False

    def _confirm(self, conn: Conn) -> int:
        """The first packet passed: from now on the connection counts. A reason if its reply tuple is taken or there is no place within reach."""
        if self._table.find(conn.key[Dir.REPLY]):
            self._counters["insert_failed"] += 1
            return self._exhausted(conn) if self._nat else Reason.R_CLASH
        if not self._table.insert(conn):
            self._counters["drop"] += 1
            return Reason.R_TABLE_FULL
        conn.id = self._next_id
        self._next_id += 1
        conn.status |= Status.CONFIRMED
        self._conns[conn.id] = conn
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

    def _give_up(self, conn: Conn) -> None:
        """A closed connection whose tuple another one takes over."""
        self._destroy(conn, End.END_REPLACED)

    def _destroy(self, conn: Conn, end: int) -> None:
        """Take a connection out. The one that ends by timeout did so when its time was up, not when that is noticed."""
        self._table.erase(conn)
        del self._conns[conn.id]
        if self._nat:
            self._nat.leave(conn)
        conn.status |= Status.DYING
        self._drop_expectations([e for e in self._expectations if e.master == conn.id])
        time = conn.deadline * self._tick_ns if end == End.END_TIMEOUT else self.now
        self._emit(EventKind.EVENT_DESTROY, conn, end=end, time=time)

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
        self._drop_expectations([e for e in self._expectations if e.deadline <= self._tick])
        due = [conn for conn in self._conns.values() if conn.deadline <= self._tick]
        for conn in sorted(due, key=lambda conn: conn.deadline):
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
    def events_lost(self) -> int:
        return self._counters["events_lost"]

    # --- what a caller may see and set ------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self._conns)

    def counters(self) -> dict[str, int]:
        return dict(self._counters)

    def nat_pools(self) -> list[NatPool]:
        return self._nat.rows() if self._nat else []

    def prefer(self, port: int) -> None:
        port = whole("port", port, 0, 65535)
        if self._nat:
            self._nat.prefer(port)

    def conns(self) -> np.ndarray:
        snapshot = np.zeros(self.count, dtype=CONN_DTYPE)
        for record, conn in zip(snapshot, self._conns.values(), strict=True):
            conn.store(record, self._left(conn))
        return snapshot

    def conn(self, ordinal: int) -> np.ndarray:
        return self._snapshot(self._conn(ordinal))

    def find(self, key: bytes) -> np.ndarray | None:
        found = self._table.find(Key.of(bytes(key)))
        return self._snapshot(found[0]) if found else None

    def _snapshot(self, conn: Conn) -> np.ndarray:
        record = np.zeros(1, dtype=CONN_DTYPE)
        conn.store(record[0], self._left(conn))
        return record

    def flush(self) -> None:
        for conn in list(self._conns.values()):
            self._destroy(conn, End.END_FLUSHED)

    def set_mark(self, ordinal: int, mark: int) -> None:
        conn = self._conn(ordinal)
        mark = whole("mark", mark, 0, 0xFFFFFFFF)
        conn.changes |= Change.CHANGE_MARK if conn.mark != mark else 0
        conn.mark = mark
        self._report(conn)

    def set_label(self, ordinal: int, label: int) -> None:
        conn = self._conn(ordinal)
        label = whole("label", label, 0, (1 << 128) - 1)
        conn.changes |= Change.CHANGE_LABEL if conn.label != label else 0
        conn.label = label
        self._report(conn)

    def _conn(self, ordinal: int) -> Conn:
        ordinal = whole("connection", ordinal, 0, (1 << 63) - 1)
        if ordinal not in self._conns:
            raise ConfigError(f"connection {ordinal}: expected one that is in the table")
        return self._conns[ordinal]

    # --- expectations -----------------------------------------------------------------------------------------------------------------

    def expect(
        self,
        master: int,
        src: str,
        dst: str,
        proto: int,
        dport: int,
        *,
        sport: int = 0,
        zone: int = 0,
        timeout: float = 300.0,
        permanent: bool = False,
    ) -> None:
        self._conn(master)
        a, b = address_of(src), address_of(dst)
        for what, value, most in (("proto", proto, 255), ("dport", dport, 65535), ("sport", sport, 65535), ("zone", zone, 65535)):
            whole(f"expect: {what} =", value, 0, most)
        if a.version != b.version:
            raise ConfigError(f"expect: {src} and {dst}: expected addresses of one family")
        if not 0 <= timeout * self.config.hz <= LONGEST_EXPECTATION:
            raise ConfigError(f"expect: timeout = {timeout}: expected 0 to {LONGEST_EXPECTATION // self.config.hz} seconds")
        key = Key(a.packed.ljust(16, b"\0"), b.packed.ljust(16, b"\0"), sport, dport, zone, proto, a.version)
        self._drop_expectations([e for e in self._expectations if (e.key, e.master) == (key, master)])
        if len(self._expectations) >= self.config.expect_max:
            raise ConfigError(f"expect: expected at most expect_max = {self.config.expect_max} expectations")
        deadline = self._tick + int(timeout * self.config.hz)
        self._expectations.insert(0, Expectation(key, master, deadline, permanent))
        self._counters["expect_create"] += 1

    def expectations(self) -> list[ExpectationRow]:
        return sorted(self._row_of(e) for e in self._expectations)

    def _row_of(self, e: Expectation) -> ExpectationRow:
        src, dst = (str(ipaddress.ip_address(address[: 4 if e.key.family == 4 else 16])) for address in e.key[:2])
        left = (e.deadline - self._tick) / self.config.hz
        return ExpectationRow(e.master, src, dst, e.key.proto, e.key.sport, e.key.dport, e.key.zone, left, e.permanent)

    def _drop_expectations(self, gone: list[Expectation]) -> None:
        self._expectations = [e for e in self._expectations if e not in gone]
        self._counters["expect_delete"] += len(gone)

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
        assert self.count <= self.config.capacity, f"{self.count} connections, of {self.config.capacity} at most"
        assert all(e.master in self._conns for e in self._expectations), "an expectation has outlived its master"
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


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"address '{text}': expected an IPv4 or IPv6 address") from None

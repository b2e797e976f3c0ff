"""The executable specification: connection tracking in plain Python, with the interface of ctcore.tracker.Tracker.

This is what to read to understand conntrack; it is slow and meant to be clear. The engine is tested against it, packet by packet and field by
field. Theory of operation: a packet's straight line has two halves. _meet(): ICMP errors aside, its tuple is looked up; a miss allocates a
connection; the protocol answers (tcp, sctp, l4); the answer is carried out. _settle(): a new connection is translated by the rules and gets its
helper, the helper has its say, and only then it is confirmed. A `ct` action (act) shares the first half.
Invariants (check()): every confirmed connection is in the table with both its flows; no expectation outlives its master.
Not here: how connections begin and end (lifetime), parsing (datapath.wire), speed.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from typing import Any

import numpy as np

from ctcore.batch import Batch
from ctcore.config import Config, whole
from ctcore.errors import ConfigError
from ctcore.model import l4, nat
from ctcore.model.act import Acting
from ctcore.model.admin import Administration
from ctcore.model.assisted import redirected
from ctcore.model.conn import NO_L4STATE, Conn, Key, Packet, Visit
from ctcore.model.decision import Decision, Met, state_of, untranslated
from ctcore.model.expectations import Expectations
from ctcore.model.helpers import HELPERS, Edit, rule_for
from ctcore.model.protocols import ask
from ctcore.model.table import Table
from ctcore.model.zones import Zones, zone_of
from ctcore.nat_rules import NatPool
from ctcore.types import DECISION_DTYPE, Change, Dir, End, Proto, Reason, RewriteFlag, State, Status, Verdict

SECOND = 1_000_000_000


class ModelTracker(Acting, Administration):
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
        self._next_id = config.share[0]
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
        self._nat = nat.Translator(config, self._table, self._give_up) if config.nat or config.nat_actions else None
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
        met = self._meet(packet, use_up=True)
        if isinstance(met, Decision):
            return met
        return self._settle_error(packet, met) if met.error else self._settle(packet, met)

    # The first half.

    def _meet(self, packet: Packet, *, use_up: bool) -> Met | Decision:
        """The connection a packet belongs to, be it new, or what is said of one that has none. use_up: an expectation that it fulfils is over."""
        if l4.is_icmp_of_family(packet.key):
            if l4.is_untracked(packet):
                return Decision(State.UNTRACKED, Reason.R_ICMP6_UNTRACKED)
            if l4.is_icmp_error(packet):
                return self._relate(packet)
        if packet.key.proto == Proto.PROTO_GRE:
            packet = self._named(packet)
        return self._visit(packet, use_up=use_up)

    def _relate(self, packet: Packet) -> Met | Decision:
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
        return Met(*found, State.RELATED, error=True)

    def _visit(self, packet: Packet, *, use_up: bool) -> Met | Decision:
        """Find the connection, or make one; let the protocol look at the packet; carry out its answer."""
        known = self._find(packet.key)
        self._counters["found"] += known is not None
        found = known or self._allocate(packet.key, use_up=use_up)
        if isinstance(found, Decision):
            return found
        conn, d = found
        state = state_of(conn, d)
        answer = ask(Visit(packet, conn, d, self._tick, self.config))
        if answer.repeat:
            self._destroy(conn, End.END_REPLACED)
            again = self._visit(packet, use_up=use_up)
            return again if isinstance(again, Decision) else again._replace(reason=Reason.R_TCP_REOPENED)
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
        return Met(conn, d, state, answer.reason)

    def _find(self, key: Key) -> tuple[Conn, int] | None:
        """The connection of a packet's tuple, and the direction: by what its zone is in the original one, then by what it is in the reply."""
        for wanted, dirs in self._zones.keys(key):
            found = self._table.find(wanted)
            if found and found[1] in dirs:
                return found
        return None

    def _count(self, packet: Packet, conn: Conn, d: int) -> None:
        if self.config.acct:
            conn.packets[d] += 1
            conn.bytes[d] += packet.ip_len

    # The second half, as rules and helpers have it.

    def _settle(self, packet: Packet, met: Met) -> Decision:
        """Translate the packet as its connection is, let the helper look at it, and confirm a new connection."""
        conn, untranslatable = met.conn, int(Reason.R_OK)
        if not conn.confirmed:
            if self._nat:
                untranslatable = self._nat.decide(conn)
            if not untranslatable and (name := rule_for(conn, self.config)) and self._give_helper(conn, name):
                conn.status |= Status.HELPER
        stuck = untranslatable or nat.refusal(packet, conn, met.dir) or (self._help(packet, conn, met.dir, met.state) if conn.ext else Reason.R_OK)
        if not conn.confirmed:
            refusal = stuck or self._confirm(conn)
            if refusal:
                self._discard(conn)
                return Decision(State.NOT_SEEN, refusal, Verdict.DROP)
        self._report(conn)
        accepted = self._accept(met, redirected(conn, met.dir, nat.rewrite_of(conn, met.dir)))
        return untranslated(accepted, stuck) if stuck else accepted

    def _settle_error(self, packet: Packet, met: Met) -> Decision:
        """An ICMP error is translated as the connection it is about, outside and inside."""
        conn, d = met.conn, met.dir
        related = self._accept(met, nat.rewrite_of(conn, d, quoting=True))
        refusal = nat.error_refusal(packet, conn, d) if self._nat else Reason.R_OK
        if not refusal and d == Dir.ORIG and conn.ext:
            refusal = self._help_error(packet, conn)
            related = replace(related, timeout=self._left(conn))
        if self._nat:  # it looks at what is quoted, whether there is anything to be changed or not
            self._joined |= RewriteFlag.REWRITE_QUOTE
        return untranslated(related, refusal) if refusal else related

    def _accept(self, met: Met, rewrite: nat.Rewrite | None) -> Decision:
        conn = met.conn
        told = conn.id, met.dir, self._left(conn), conn.status, conn.mark, conn.l4.state
        return Decision(met.state, met.reason, Verdict.ACCEPT, *told, rewrite=rewrite)

    # --- what a caller may see and set ------------------------------------------------------------------------------------------------

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

"""The invariants of A11, held by somebody who looks on: at frames, at asks of the flow table, at commands to a NIC and its replies.

    watch = Invariants(kind, faults, settings)
    nic = SeenNic(watch, profile, rules, faults)
    offloaded.watch = watch

It knows what passes by and nothing of what mirror or flow table remember: what a flow was last said to be, when its packets came, which commands
nobody has answered. Each rule of it is a method that raises Broken, which names it; test_watching breaks each of them once.
Not here: traffic (crowd), random runs (test_offload_invariants).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.errors import ConfigError
from ctcore.flow_changes import Asked
from ctcore.types import Offload, Verdict
from datapath.commands.offload_watch import Seen
from datapath.commands.offloaded import Offloaded
from offload.mirror_settings import MirrorSettings
from offload.records import Op
from offload.simnic.faults import Fault
from offload.simnic.nic import Nic
from offload.simnic.profile import Profile
from offload.simnic.results import Flag
from offload.simnic.results import Verdict as Did

SECOND = 1_000_000_000
T, ROUND, TURN, REFRESH = 30 * SECOND, SECOND, SECOND, SECOND  # A1.6; A6: a round each second; a turn of the mirror as often; A5.41
FIN, RST = 1, 4
NEVER = -(1 << 60)
DONE, THERE, GONE = 0, 17, 2  # 0, EEXIST, ENOENT
ENDED = (int(Offload.NOT_TEARDOWN_FIN), int(Offload.NOT_TEARDOWN_RST))


class Broken(AssertionError):
    """An invariant does not hold; the first word says which."""


def hold(truth: Any, which: str, text: str) -> None:
    if not truth:
        raise Broken(f"{which}: {text}")


class Slack(NamedTuple):
    """How much later than at once something may be, in ns: late: a command is answered; limit: an answer that is lost is given up; window: commands
    that may be on their way; loses, stuck: from when to when commands are lost, and counters not refreshed."""

    late: int
    limit: int
    window: int
    period: int
    rate: float
    loses: tuple[tuple[int, int], ...]
    stuck: tuple[tuple[int, int], ...]
    resets: tuple[int, ...]

    @classmethod
    def of(cls, kind: Profile, faults: Sequence[Fault], settings: MirrorSettings) -> Slack:
        late = kind.latency_ns + sum(fault.delay for fault in faults if fault.kind == "delay")
        spans = {word: tuple((f.at, f.until) for f in faults if f.kind.startswith(word)) for word in ("lose", "stick")}
        resets = tuple(fault.at for fault in faults if fault.kind == "reset")
        return cls(
            late, round(settings.reply_limit * 1e9), settings.window, kind.period_ns, kind.rates.inserts, spans["lose"], spans["stick"], resets
        )

    def lossy(self, since: int, now: int) -> bool:
        """Whether commands of that time may have been lost."""
        return any(start <= now and since <= until + 2 * self.limit for start, until in self.loses)

    def blind(self, since: int, now: int) -> bool:
        """Whether hardware may not have told all that it has seen in that time: what it knew is gone, or not refreshed."""
        return any(start <= now and since <= until for start, until in self.stuck) or any(since <= at <= now for at in self.resets)


class SeenNic(Nic):
    """A NIC that somebody looks at where commands go in and replies come out."""

    def __init__(self, watch: Invariants, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.watch, watch.nic = watch, self

    def submit(self, commands: NDArray[Any], now: int) -> int:
        n = super().submit(commands, now)
        self.watch.submitted(commands, n, now)
        return n

    def replies(self, now: int) -> NDArray[Any]:
        rows = super().replies(now)
        self.watch.replied(rows, now)
        return rows


@dataclass
class Invariants:
    """Implements datapath.commands.offload_watch.Watch. Flows are known by the upper 63 bits of their cookies."""

    slack: Slack
    nic: Any = None
    offloaded: Offloaded | None = None
    resets: int = 0
    out: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)  # by flow, then by direction: op, when: commands without an answer
    accepted: set[int] = field(default_factory=set)  # cookies that hardware has said to have
    had: int = 0  # cookies that it ever said to have, and that it was told to destroy
    destroyed: int = 0
    again: dict[int, int] = field(default_factory=dict)  # by flow: answers that were not waited for any longer
    flow: dict[int, int] = field(default_factory=dict)  # by conn: its flow in hardware; and the other way round
    conn: dict[int, int] = field(default_factory=dict)
    keys: dict[int, Any] = field(default_factory=dict)  # by conn: both tuples, as the tracker has them
    lives: dict[int, int] = field(default_factory=dict)  # by row of the flow table: the flow that has had rules last
    ended: dict[int, int] = field(default_factory=dict)  # by flow: when a FIN or RST took it out of the table
    going: set[tuple[int, int]] = field(default_factory=set)  # rows and lives of the flow table that are to go
    told: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # by cookie: packets, bytes, last use that replies added up to
    waited: int = 0  # most ns of the NIC's time that commands had to wait for others
    last: NDArray[np.int64] = field(default_factory=lambda: np.full(1024, NEVER))  # by conn: its last packet
    served: NDArray[np.int64] = field(default_factory=lambda: np.full(1024, NEVER))  # its last that refreshed it: served by either
    since: NDArray[np.int64] = field(default_factory=lambda: np.full(1024, NEVER))  # by conn: when it began to be served without long silence
    hits: NDArray[np.int64] = field(default_factory=lambda: np.zeros((1024, 2), dtype=np.int64))  # by conn: what the CT table had, by direction
    frames: int = 0
    looked: int = 0
    counted: tuple[int, int] = (0, 0)
    left: list[tuple[Any, ...]] = field(default_factory=list)  # of this batch: frames of connections that may leave, by either: conn, direction
    said: list[tuple[Any, ...]] = field(default_factory=list)  # of this batch: frames that somebody has had, conn, -1: none; whether they may leave
    flags: NDArray[np.int64] | None = None  # TCP flags of this batch's frames, as who made them says
    checks: int = 0

    # --- commands and replies ------------------------------------------------------------------------------------------------------------

    def begun_anew(self) -> None:
        """After a reset hardware has nothing, and answers nothing of before."""
        if self.nic.resets != self.resets:
            self.resets = self.nic.resets
            self.out.clear()
            self.accepted.clear()
            self.ended.clear()
            self.told.clear()

    def submitted(self, commands: NDArray[Any], n: int, now: int) -> None:
        self.begun_anew()
        if self.slack.rate:
            backlog = len(commands) + self.nic.line.waiting
            self.waited = max(self.waited, int(backlog / self.slack.rate * SECOND))
        for cookie, op, conn in zip(*(commands[name][:n].tolist() for name in ("cookie", "op", "conn")), strict=True):
            self.one_job(cookie >> 1, cookie & 1, op, now)
            if op == Op.REPLACE:
                self.flow[conn], self.conn[cookie >> 1] = cookie >> 1, conn
                self.room(np.array([conn]))
                self.know(conn)

    def one_job(self, flow: int, direction: int, op: int, now: int) -> None:
        """One outstanding job a flow: what is on its way for it is for the same thing, and of the other direction."""
        waits = self.out.setdefault(flow, {})
        for other, (what, since) in list(waits.items()):
            if now - since >= self.slack.limit:  # given up
                del waits[other]
                self.again[flow] = self.again.get(flow, 0) + 1
                continue
            hold(what == op and other != direction, "one job", f"flow {flow:x}: {Op(op).name} while {Op(what).name} is on its way")
        waits[direction] = (op, now)

    def know(self, conn: int) -> None:
        """A connection's tuples: it lives when its rules are first asked for."""
        if conn not in self.keys and self.offloaded is not None:
            try:
                self.keys[conn] = self.offloaded.tracker.conn(conn)[0]["flow"]["key"].copy()
            except ConfigError:
                self.keys[conn] = None

    def replied(self, rows: NDArray[Any], now: int) -> None:
        self.begun_anew()
        for row in rows.tolist():
            cookie, used, packets, size, error, op, shared, _ = row
            waits = self.out.get(cookie >> 1, {})
            if waits.get(cookie & 1, (0, 0))[0] == op:
                del waits[cookie & 1]
                if not waits:
                    self.out.pop(cookie >> 1, None)
            if op == Op.REPLACE and error in (DONE, THERE):
                self.had += cookie not in self.accepted
                self.accepted.add(cookie)
                self.one_life(cookie >> 1)
            elif op == Op.DESTROY and error in (DONE, GONE):
                self.had_to_go(cookie >> 1, now)
                self.destroyed += cookie in self.accepted
                self.accepted.discard(cookie)
                self.told.pop(cookie, None)
            elif op == Op.STATS and error == DONE:
                self.forward_only(cookie, packets, size, used, bool(shared))

    def one_life(self, flow: int) -> None:
        """At most two rules a flow, and a row of the flow table: what its life before had is gone when it gets rules."""
        before = self.lives.get(flow & 0xFFFFFFFF, flow)
        hold(before == flow or not {before << 1, before << 1 | 1} & self.accepted, "two rules", f"flow {before:x} has some, and {flow:x} in its row")
        self.lives[flow & 0xFFFFFFFF] = flow

    def had_to_go(self, flow: int, now: int) -> None:
        """Whoever makes room for another one may have been busy until then: its counters go with its rules."""
        if (flow & 0xFFFFFFFF, flow >> 32) not in self.going and flow in self.conn:
            self.last[self.conn[flow]] = max(self.last[self.conn[flow]], now)

    def forward_only(self, cookie: int, packets: int, size: int, used: int, shared: bool) -> None:
        """Counters never go backwards, and never say more than has passed."""
        hold(packets < 1 << 62 and size < 1 << 62 and size >= packets * 34, "counters", f"{packets} packets of {size} bytes")
        before = self.told.get(cookie, (0, 0, 0))
        hold(used >= before[2] or used == 0 == packets, "counters", f"cookie {cookie:x}: last used at {used}, and before at {before[2]}")
        self.told[cookie] = told = (before[0] + packets, before[1] + size, max(used, before[2]))
        conn = self.conn.get(cookie >> 1, -1)
        passed = int(self.hits[conn].sum() if shared else self.hits[conn, cookie & 1]) if conn >= 0 else 0
        hold(told[0] <= passed, "counters", f"cookie {cookie:x}: {told[0]} packets told, {passed} passed")

    # --- frames --------------------------------------------------------------------------------------------------------------------------

    def room(self, conns: NDArray[np.int64]) -> None:
        most = int(conns.max(initial=-1)) + 1
        if most > len(self.last):
            more = max(most, 2 * len(self.last)) - len(self.last)
            self.last, self.served, self.since = (np.concatenate([old, np.full(more, NEVER)]) for old in (self.last, self.served, self.since))
            self.hits = np.concatenate([self.hits, np.zeros((more, 2), dtype=np.int64)])

    def slice(self, seen: Seen) -> None:
        self.begun_anew()
        done = seen.found["verdict"] != Did.MISSED
        self.once(len(seen.frames), seen.into[done], seen.soft, seen.decisions)
        ct = np.flatnonzero((seen.found["flags"] & Flag.CT) != 0)
        self.room(seen.found["conn"][ct])
        self.never_closing(seen, ct)
        rows = seen.into[ct]
        conn, back, ts = seen.found["conn"][ct], (seen.found["ct_state"][ct] & 0x20 != 0).astype(np.int64), seen.frames["ts"][rows]
        np.add.at(self.hits, (conn, back), 1)
        np.maximum.at(self.last, conn, ts)
        self.refreshed(conn, ts)
        leaves = np.isin(seen.found["verdict"][done], (Did.FORWARDED, Did.PASSED))
        conns = np.where(seen.found["flags"][done] & Flag.CT != 0, seen.found["conn"][done], -1)
        self.said.append((seen.frames["offset"][seen.into[done]], conns, leaves))
        through = np.isin(seen.found["verdict"][ct], (Did.FORWARDED, Did.PASSED))
        self.left.append((seen.frames["offset"][rows][through], conn[through], back[through]))
        if seen.decisions is not None and len(seen.decisions):
            self.software(seen.frames["ts"][seen.soft], seen.decisions)
            offsets, conns, leaves = seen.frames["offset"][seen.soft], seen.decisions["conn"], seen.decisions["verdict"] == Verdict.ACCEPT
            self.said.append((offsets, conns, leaves))
            of = leaves & (conns >= 0) & (seen.decisions["dir"] <= 1)
            self.left.append((offsets[of], conns[of], seen.decisions["dir"][of]))

    def refreshed(self, conn: NDArray[Any], ts: NDArray[Any]) -> None:
        """Packets of a slice that is short. Who comes back after a silence that is nearly T is busy from then on only."""
        woken = ts - self.served[conn] >= self.silence
        self.since[conn[woken]] = ts[woken]
        np.maximum.at(self.served, conn, ts)

    @property
    def silence(self) -> int:
        """The longest silence that is none yet, whatever has not been told of it."""
        return T - REFRESH - self.staleness

    @property
    def staleness(self) -> int:
        """How old at most is what the flow table knows of a flow in hardware that it is about to give up."""
        return self.slack.period + ROUND + 2 * (TURN + self.slack.late + self.waited)  # of both directions, one after the other

    def once(self, n: int, hardware: NDArray[Any], soft: NDArray[Any], decisions: NDArray[Any] | None) -> None:
        """Every packet is forwarded by exactly one of the two, or dropped with a reason, or held."""
        times = np.bincount(hardware, minlength=n) + np.bincount(soft, minlength=n)
        hold((times == 1).all(), "exactly once", f"frames {np.flatnonzero(times != 1)[:5]} were decided {times[times != 1][:5]} times")
        hold((decisions is None) == (len(soft) == 0), "exactly once", "software has had frames, and decided nothing")
        if decisions is not None:
            hold((decisions["verdict"] != Verdict.PENDING).all(), "exactly once", "a frame is pending")
            silent = (decisions["verdict"] == Verdict.DROP) & (decisions["reason"] == 0)
            hold(not silent.any(), "exactly once", f"dropped without a reason: {decisions[silent][:1]}")
        self.frames += n

    def never_closing(self, seen: Seen, ct: NDArray[Any]) -> None:
        """No FIN or RST is ever counted in hardware."""
        if self.flags is not None and len(ct):
            start = int(seen.frames["offset"][0]) // self.width
            flags = self.flags[start + seen.into[ct]]
            hold(not (flags & (FIN | RST)).any(), "no FIN or RST", f"flags {flags[flags & (FIN | RST) != 0][:3]}")

    width = 1 << 62  # bytes from a frame to the next one, of who tells flags

    def software(self, ts: NDArray[Any], decisions: NDArray[Any]) -> None:
        known = decisions["conn"] >= 0
        conn, ts, said = decisions["conn"][known], ts[known], decisions["offload"][known]
        self.room(conn)
        np.maximum.at(self.last, conn, ts)
        of = said == Offload.OFFLOAD_SOFTWARE
        self.refreshed(conn[of], ts[of])
        over = np.isin(said, ENDED)
        for number, when in zip(conn[over].tolist(), ts[over].tolist(), strict=True):
            if number in self.flow:
                self.ended.setdefault(self.flow[number], when)

    # --- asks and turns ------------------------------------------------------------------------------------------------------------------

    def asked(self, asks: NDArray[Any], now: int) -> None:
        """A removal is asked for each second until it is done; rules that wait for it forward all the same (A7.57), so that the first one counts."""
        rows = zip(*(asks[name].tolist() for name in ("conn", "ask", "cause", "row", "serial")), strict=True)
        for conn, ask, cause, row, serial in rows:
            first = ask == Asked.REMOVE and (row, serial) not in self.going
            if first:
                self.going.add((row, serial))
            if first and cause == Offload.NOT_TEARDOWN_IDLE:
                self.busy_stay(conn, now)

    def busy_stay(self, conn: int, now: int) -> None:
        """An active flow never expires: its last silence was nearly T, or it was over so lately that nobody can have told yet."""
        if conn >= len(self.served):
            return
        seen, since = int(self.served[conn]), int(self.since[conn])
        if now - seen < self.silence and now - since > self.staleness and not self.slack.lossy(now - T, now) and not self.slack.blind(now - T, now):
            raise Broken(f"busy stay: connection {conn} was taken out, and had a packet {(now - seen) / SECOND:.3f} s before")

    def answered(self, answers: NDArray[Any], now: int) -> None:
        pass

    def turned(self, now: int) -> None:
        """Once a second everything in hardware is looked at."""
        if now - self.looked < SECOND or self.offloaded is None:
            return
        self.looked, self.checks = now, self.checks + 1
        if self.slack.loses:  # who waits behind commands that are lost waits until these are given up
            self.waited = max(self.waited, -(-self.offloaded.mirror.waiting // self.slack.window) * self.slack.limit)
        counts = self.offloaded.flows.counters()
        more = (counts["hw_packets"], counts["hw_bytes"])
        hold(more[0] >= self.counted[0] and more[1] >= self.counted[1], "counters", f"{self.counted}, then {more}")
        self.counted = more
        held = self.nic.held()
        self.idle_leave(held, now)
        self.ended_leave(held, now)
        if self.offloaded.mirror.resets == self.nic.resets:
            found = self.offloaded.mirror.audit(held)
            hold(not len(found), "audit", f"{found[:3]}")

    def trying(self, flow: int, now: int) -> bool:
        """Whether somebody is about to get rid of it, where commands are lost."""
        sent = max((since for _, since in self.out.get(flow, {}).values()), default=NEVER)
        return now - sent <= self.slack.limit + TURN and self.slack.lossy(now - T - 10 * self.slack.limit, now)

    def idle_leave(self, held: NDArray[Any], now: int) -> None:
        """An idle flow leaves hardware within T + 3 s, and what commands take."""
        rules = np.bincount(np.unique(held["cookie"] >> 1, return_inverse=True)[1], minlength=1)
        hold(rules.max(initial=0) <= 2, "two rules", "a flow has more than two")
        tuples = len(np.unique(held["match"])) if len(held) else 0
        hold(tuples == len(held), "two rules", "two rules match the same")
        self.room(held["conn"])
        late = now - self.last[held["conn"]] - (T + 3 * SECOND + 4 * (self.slack.late + self.waited))
        for row in np.flatnonzero(late > 0).tolist():
            flow = int(held["cookie"][row]) >> 1
            if not self.trying(flow, now) and late[row] > self.again.get(flow, 0) * (self.slack.limit + TURN):
                raise Broken(f"idle leave: connection {held['conn'][row]} is {late[row] / SECOND:.3f} s late")

    def ended_leave(self, held: NDArray[Any], now: int) -> None:
        """FIN, then the rule is gone within a round and a removal; what was on its way before it comes first."""
        here = set((held["cookie"] >> 1).tolist())
        for flow, when in list(self.ended.items()):
            if flow not in here and flow not in self.out:
                del self.ended[flow]
                continue
            bound = ROUND + TURN + 4 * (self.slack.late + self.waited) + self.again.get(flow, 0) * (self.slack.limit + TURN)
            if flow in here and now - when > bound and not self.trying(flow, now):
                raise Broken(f"ended leave: flow {flow:x} has rules {(now - when) / SECOND:.3f} s after its end")

    # --- the end -------------------------------------------------------------------------------------------------------------------------

    def nothing_left(self) -> None:
        """Every rule that was accepted was destroyed; nothing says more than has passed."""
        assert self.offloaded is not None
        hold(not len(self.nic.held()), "all destroyed", f"{self.nic.entries} rules are left")
        hold(not self.accepted, "all destroyed", f"{len(self.accepted)} cookies were accepted and not destroyed")
        if not self.slack.resets and not self.slack.loses:
            hold(self.had == self.destroyed, "all destroyed", f"{self.had} accepted, {self.destroyed} destroyed")
        counts, mirror = self.offloaded.flows.counters(), self.offloaded.mirror.counters()
        left = (counts["flows"], mirror["flows"], mirror["rules"], mirror["strange"])
        hold(left == (0, 0, 0, 0), "all destroyed", f"flows, of the mirror, its rules, strange asks: {left}")
        hold(counts["hw_packets"] <= self.hits.sum(), "counters", f"{counts['hw_packets']} told, {self.hits.sum()} passed")
        shares = self.offloaded.shares
        hold(shares.frames == self.frames == self.offloaded.summary()["total_packets"], "exactly once", "sums differ")
        self.accounts()

    def accounts(self) -> None:
        """No direction of a connection that lives has more packets than came by."""
        assert self.offloaded is not None
        conns = self.offloaded.tracker.conns()
        total = conns["flow"]["packets"].sum(dtype=np.int64)
        hold(total <= self.frames, "counters", f"{total} packets accounted, {self.frames} came")

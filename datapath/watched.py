"""The interpreter, and what it does written down: which rules were tried, why they did not match, and what each action did.

Not here: deciding (pipeline.interpret, pipeline.reference), replaying up to a packet (explain_rules), words (narrate_rules).
Invariant: what is watched goes the way it would go unwatched; nothing here changes a walk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ctcore.batch import Batch
from ctcore.ct_action import NO_ASSOCIATION, Acted, Association, CtAction
from ctcore.errors import ConfigError
from ctcore.model.seqadj import SeqAdjust
from ctcore.nat_rules import NatPool
from ctcore.tracker import ExpectationRow, Tracker
from ctcore.types import Dir, Reason, Status
from datapath.explain import let_pass
from datapath.pipeline.interpret import Delivery, Interpreter, Tracked, Walk, seen_in
from datapath.pipeline.order import Placed
from datapath.pipeline.reference import RuleTracker
from datapath.pipeline.rules import ETH_ALL, Action, Control, Ct, Hook, Match, Police, Rule, Ruleset

MOST_MISSED = 10  # rules of a chain whose first difference is kept


class Missed(NamedTuple):
    """A rule that did not match. match: its first key that differs, None if that is the protocol; value: what the packet has there."""

    rule: Rule
    match: Match | None
    value: int


class Told(NamedTuple):
    """What a tracker made of a `ct` action. conn: the connection afterwards (CONN_DTYPE), None if it has none that is confirmed, or that still lives;
    before: whether it was there before this packet; zones: connections of each zone that has any, of a packet
    whose zone has too many; awaited, awaits: what helpers expected before and after the action."""

    acted: Acted
    conn: Any
    before: bool
    zones: Mapping[int, int]
    awaited: Sequence[ExpectationRow]
    awaits: Sequence[ExpectationRow]
    asked: Asked | None = None


class Asked(NamedTuple):
    """With what a tracker was asked, and what it had then. packet: PACKET_DTYPE; l4: its transport bytes; kept: whether the packet had a connection
    of this zone already; earlier: all connections (CONN_DTYPE), with the time they had left when the packet came; moved: by how much sequence numbers
    were moved, by connection; evicted: numbers of those that had to go; pools: of NAT ranges, afterwards; tick: when, in ticks of the clock."""

    packet: np.void
    l4: bytes
    kept: bool
    earlier: np.ndarray
    moved: Mapping[int, tuple[SeqAdjust, ...]]
    evicted: Sequence[int]
    pools: Sequence[NatPool]
    tick: int


class Policed(NamedTuple):
    """A policer asked for tokens. left: ns to be spent before, for bytes and for packets; length: what it counts of the frame, of which `free` bytes
    cost nothing."""

    left: tuple[int, int]
    length: int
    free: int
    exceeded: bool


@dataclass
class Done:
    """One action. before, after: the frame; tracked: what later rules see of tracking; told: what the tracker said, None where it was not asked;
    verdict, reason: of the walk, where it ended here; onward: the hooks that its copies came to; policed: of a policer."""

    action: Action
    before: bytes
    after: bytes = b""
    control: Control | None = None
    tracked: Tracked | None = None
    told: Told | None = None
    verdict: str = ""
    reason: str = ""
    onward: list[At] = field(default_factory=list)
    policed: Policed | None = None


@dataclass
class Tried:
    """A rule that matched. missed: the first rules of the chain that were tried before it; n_missed: how many there were."""

    rule: Rule
    missed: list[Missed]
    n_missed: int
    done: list[Done] = field(default_factory=list)


@dataclass
class Turn:
    """Once through a chain. missed, n_missed: behind the last rule that matched; empty: whether there are no rules in it."""

    chain: int
    empty: bool
    tried: list[Tried] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    n_missed: int = 0


@dataclass
class At:
    """A frame at a hook. following: the chain that the last action leads to, if it leads anywhere."""

    walk: Walk
    turns: list[Turn] = field(default_factory=list)
    following: int = 0


class Listening:
    """An engine's tracker whose last answer can be read."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self.config = tracker, tracker.config
        self.earlier: frozenset[int] = frozenset()
        self.told: Told | None = None
        self.watching = False

    def remember(self) -> None:
        """The connections that there are now were there before what follows."""
        self.earlier = frozenset(self.tracker.conns()["flow"]["id"][:, Dir.ORIG].tolist())

    def act(self, batch: Batch, action: CtAction, before: Association = NO_ASSOCIATION) -> Acted:
        if not self.watching:
            return self.tracker.act(batch, action, before)
        awaited = self.tracker.expectations()
        earlier, then, packet, l4 = self.tracker.conns(), self.tracker.now, batch.array[0].copy(), batch.l4_bytes(0)
        moved = {number: self._moved(number) for number in earlier["flow"]["id"][earlier["status"] & Status.SEQ_ADJUST != 0][:, Dir.ORIG].tolist()}
        self.tracker.evictions()
        acted = self.tracker.act(batch, action, before)
        let_pass(earlier, then, self.tracker.now, self.config.hz)
        number, full = int(acted.decision["conn"][0]), acted.decision["reason"][0] == Reason.R_ZONE_LIMIT
        kept = before.token is not None and before.zone == action.zone
        tick = self.tracker.now // (1_000_000_000 // self.config.hz)
        asked = Asked(packet, l4, kept, earlier, moved, self.tracker.evictions()["conn"].tolist(), self.tracker.nat_pools(), tick)
        zones = self.tracker.zone_counts() if full else {}
        self.told = Told(acted, self._conn(number), number in self.earlier, zones, awaited, self.tracker.expectations(), asked)
        return acted

    def _moved(self, number: int) -> tuple[SeqAdjust, ...]:
        return tuple(SeqAdjust(*offsets) for offsets in self.tracker.offsets(number))

    def _conn(self, number: int) -> np.void | None:
        try:
            return self.tracker.conn(number)[0] if number >= 0 else None
        except ConfigError:  # this packet has ended it
            return None

    def leave(self, association: Association) -> None:
        self.tracker.leave(association)


class Watched(Interpreter):
    """Rules at work on an engine's tracker, which has the settings of the rules."""

    def __init__(self, ruleset: Ruleset, tracker: Tracker) -> None:
        self.listening = Listening(tracker)
        super().__init__(ruleset, RuleTracker(self.listening))
        self._arrived: list[At] = []  # at the hook that it was given to, and at no other
        self._at: At | None = None
        self._sending: Done | None = None

    def watch(self, frame: bytes, now: int, hook: Hook, missing: int = 0, *, bare: int | None = None) -> tuple[At, Delivery]:
        """A frame that comes to a hook, as deliver() has it, and what was done at it."""
        self._arrived.clear()
        self.listening.remember()
        self.listening.watching = True
        delivery = self.deliver(frame, now, hook, missing, bare=bare)
        self.listening.watching = False
        return self._arrived[0], delivery

    # --- as the interpreter does it, and written down ------------------------------------------------------------------------------------

    def _go(self, walk: Walk, delivery: Delivery) -> None:
        outer, self._at = self._at, At(walk)
        (self._arrived if self._sending is None else self._sending.onward).append(self._at)
        super()._go(walk, delivery)
        self._at = outer

    def _turn(self, walk: Walk, rules: list[Placed]) -> Control:
        assert self._at is not None
        self._at.turns.append(Turn(rules[0].rule.chain if rules else self._at.following, not rules))
        return super()._turn(walk, rules)

    def matches(self, rule: Rule, walk: Walk) -> bool:
        assert self._at is not None
        turn = self._at.turns[-1]
        if super().matches(rule, walk):
            turn.tried.append(Tried(rule, turn.missed, turn.n_missed))
            turn.missed, turn.n_missed = [], 0
            return True
        turn.n_missed += 1
        if len(turn.missed) < MOST_MISSED:
            turn.missed.append(self._why(rule, walk))
        return False

    def _why(self, rule: Rule, walk: Walk) -> Missed:
        seen = seen_in(walk.frame, walk.missing, *walk.tracked[:4])
        if rule.protocol not in (ETH_ALL, seen["protocol"]):
            return Missed(rule, None, seen["protocol"])
        match = next(match for match in rule.matches if not self._match(match, seen, walk))
        return Missed(rule, match, 0 if match.name == "indev" else seen[match.name])

    def _one(self, walk: Walk, action: Action) -> Control:
        assert self._at is not None
        done, outer, self.listening.told = Done(action, walk.frame), self._sending, None
        self._at.turns[-1].tried[-1].done.append(done)
        self._sending = done
        done.control = super()._one(walk, action)
        self._sending, self._at.following = outer, done.control.chain or 0
        done.after, done.tracked = walk.frame, walk.tracked
        done.told = self.listening.told if isinstance(action, Ct) else None
        done.verdict, done.reason = walk.verdict, walk.reason
        return done.control

    def _police(self, walk: Walk, action: Police) -> Control:
        assert self._sending is not None
        assert walk.delivery is not None
        left, times = self.bucket(walk, action).left(walk.now), len(walk.delivery.exceeded)
        control = super()._police(walk, action)
        self._sending.policed = Policed(left, walk.counted, walk.free, len(walk.delivery.exceeded) > times)
        return control

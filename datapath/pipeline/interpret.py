"""The interpreter: what rules make of a frame, rule by rule and action by action. Slow, and meant to be obvious; the engine is tested against it.

Theory of operation: a hook's chain 0 is gone through from its first rule on. The first rule that matches does its actions one after the other, as
long as each says `pipe`; what the last one says decides: pass, drop, another chain, the rules behind (`continue`), or all over again (`reclassify`).
Whatever changes the frame changes what later rules see. No rule at all means pass. Source: tcf_classify() and the actions of net/sched.
One packet: chain 0 `-trk: ct, goto 1`; chain 1 `+trk+est: redirect eth1`: looked at, tracked, looked at again, sent to eth1, whose egress hook has
its say.
Invariants: a frame goes through at most MOST_TURNS chains and MOST_HOPS devices; nothing but `ct` and `police` remembers anything.
Not here: connection tracking (whoever is given as `ct`), the order of rules (order), bytes (munge).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from datapath.frame import frames_of
from datapath.pipeline.flower import flower_keys
from datapath.pipeline.layout import fields_of
from datapath.pipeline.munge import VLAN, csum, pedit
from datapath.pipeline.order import Placed, chains_of
from datapath.pipeline.rules import (
    DROP,
    ETH_ALL,
    PASS,
    Action,
    Control,
    Csum,
    Ct,
    Gact,
    Hook,
    Match,
    Mirred,
    Pedit,
    Police,
    Rule,
    Ruleset,
    Skbedit,
    Vlan,
)

MOST_TURNS = 16  # goto and reclassify of one packet (max_reclassify_loop); then it is dropped
MOST_HOPS = 4  # devices a packet is sent through (MIRRED_NEST_LIMIT)
SECOND = 1_000_000_000


class Tracked(NamedTuple):
    """What the last `ct` said: bits of rules.CT_STATES, and the connection's zone, mark and label."""

    state: int = 0
    zone: int = 0
    mark: int = 0
    label: int = 0
    conn: Any = None  # for who tracks


NOT_TRACKED = Tracked()


class Tracker(Protocol):
    """Who does the `ct` action."""

    def act(self, action: Ct, frame: bytes, now: int, before: Tracked) -> tuple[str, bytes, Tracked]:
        """What becomes of a frame: "go on", "drop" or "held" (a fragment); the frame, translated or put together; what later rules see.

        now: ns; before: what the last `ct` said of this frame. Where the frame does not go on, nothing is to be left any more.
        """

    def leave(self, tracked: Tracked) -> None:
        """The frame is over here, or goes on to another device, where nobody knows what was said of it: a connection without a commit never was."""

    def cut(self, frame: bytes, tracked: Tracked) -> list[bytes]:
        """The frames in which a frame leaves the hook: itself, or fragments again if it was put together from such; none: it cannot leave."""


class Sent(NamedTuple):
    """A frame that leaves the hook at a device: its name, and egress, or ingress if it is to be received there."""

    device: str
    direction: str
    frame: bytes


@dataclass
class Walk:
    """One frame on its way. verdict: pass, drop, redirect or held; hits: the rules that matched, in order; reason: why it was dropped, in words;
    passed: the frames in which it passes, several where `ct` had put it together from fragments."""

    frame: bytes
    now: int
    hook: Hook
    tracked: Tracked = field(default_factory=lambda: NOT_TRACKED)
    mark: int = 0
    priority: int = 0
    verdict: str = ""
    reason: str = ""
    hits: list[Rule] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    passed: list[bytes] = field(default_factory=list)


class Bucket:
    """A policer's tokens, as ns that may be spent (act_police): a packet costs as long as its bytes take at the rate."""

    def __init__(self, action: Police, now: int) -> None:
        self.action, self.last = action, now
        self.bytes_left = self._of_bytes(action.burst or 0)
        self.packets_left = self._of_packets(action.packet_burst or 0)

    def _of_bytes(self, count: int) -> int:
        return count * 8 * SECOND // self.action.rate if self.action.rate else 0

    def _of_packets(self, count: int) -> int:
        return count * SECOND // self.action.packet_rate if self.action.packet_rate else 0

    def conforms(self, length: int, now: int) -> bool:
        """Whether a packet of so many bytes has a token; if so it is spent."""
        if self.action.mtu is not None and length > self.action.mtu:
            return False
        passed, limits = max(now - self.last, 0), (self._of_bytes(self.action.burst or 0), self._of_packets(self.action.packet_burst or 0))
        bytes_left = min(self.bytes_left + passed, limits[0]) - self._of_bytes(length)
        packets_left = min(self.packets_left + passed, limits[1]) - self._of_packets(1)
        if bytes_left < 0 or packets_left < 0:
            return False
        self.last, self.bytes_left, self.packets_left = max(now, self.last), bytes_left, packets_left
        return True


class Interpreter:
    """Rules at work. ruleset: with its priorities given; ct: who tracks, None: a `ct` action is a ValueError."""

    def __init__(self, ruleset: Ruleset, ct: Tracker | None = None) -> None:
        self.ruleset, self.ct = ruleset, ct
        self._chains: dict[Hook, dict[int, list[Placed]]] = {}
        self._buckets: dict[int, Bucket] = {}  # by id of the action

    def run(self, frame: bytes, now: int, hook: Hook) -> Walk:
        """A frame that comes to a hook. now: ns, and never back."""
        walk = Walk(frame, now, hook)
        try:
            self._classify(walk)
        finally:
            self._leave(walk)
        return walk

    def deliver(self, frame: bytes, now: int, hook: Hook) -> Iterator[Walk]:
        """The same, and then each device's hook that it is sent to. The last walks' `sent` are what leaves; a device without rules passes all."""
        walks = [(self.run(frame, now, hook), 0)]
        while walks:
            walk, hops = walks.pop(0)
            yield walk
            for sent in walk.sent:
                if hops < MOST_HOPS:
                    walks.append((self.run(sent.frame, now, Hook(sent.device, sent.direction)), hops + 1))

    def _leave(self, walk: Walk) -> None:
        """Whichever way it ends, here the packet and its connection part; what was said of it can still be read."""
        if walk.verdict == "pass":
            walk.passed = self._pieces(walk)
            if not walk.passed:
                walk.verdict, walk.reason = "drop", "what was put together from fragments cannot be cut up again"
        if self.ct is not None:
            self.ct.leave(walk.tracked)
        walk.tracked = walk.tracked._replace(conn=None)

    def _pieces(self, walk: Walk) -> list[bytes]:
        return [walk.frame] if self.ct is None else self.ct.cut(walk.frame, walk.tracked)

    # --- chains -----------------------------------------------------------------------------------------------------------------------

    def _classify(self, walk: Walk) -> None:
        chains = self._chains.setdefault(walk.hook, {}) or chains_of(self.ruleset, walk.hook)
        self._chains[walk.hook] = chains
        chain, place = 0, 0
        for _ in range(MOST_TURNS):
            control, chain, place = self._turn(walk, chains, chain, place)
            if walk.verdict or control.kind not in ("goto", "reclassify"):
                walk.verdict = walk.verdict or ("drop" if control.kind == "drop" else "pass")
                return
        walk.verdict, walk.reason = "drop", f"more than {MOST_TURNS} chains"

    def _turn(self, walk: Walk, chains: dict[int, list[Placed]], chain: int, place: int) -> tuple[Control, int, int]:
        """On to the first rule that matches, from a place in a chain on, and through its actions. Returns what is to follow, and where."""
        rules = chains.get(chain, [])
        while place < len(rules):
            placed = rules[place]
            if placed.rule.skip_sw or not self.matches(placed.rule, walk):
                place += 1
                continue
            walk.hits.append(placed.rule)
            control = self._act(walk, placed.rule)
            if control.kind == "continue":
                place = placed.behind
                continue
            return control, control.chain or 0, 0
        return PASS, chain, place

    def matches(self, rule: Rule, walk: Walk) -> bool:
        seen = fields_of(flower_keys(*frames_of([walk.frame]))[0])
        tracked = walk.tracked
        seen = {**seen, "ct_state": tracked.state, "ct_zone": tracked.zone, "ct_mark": tracked.mark, "ct_label": tracked.label}
        return rule.protocol in (ETH_ALL, seen["protocol"]) and all(self._match(match, seen, walk.hook) for match in rule.matches)

    @staticmethod
    def _match(match: Match, seen: dict[str, int], hook: Hook) -> bool:
        if match.name == "indev":
            return match.device == hook.device
        if match.high is not None:
            return match.value <= seen[match.name] <= match.high
        return seen[match.name] & match.mask == match.value & match.mask

    # --- actions ----------------------------------------------------------------------------------------------------------------------

    def _act(self, walk: Walk, rule: Rule) -> Control:
        """A rule's actions, until one of them says something else than `pipe`. What pipes at the end passes, as in Linux."""
        control = PASS
        for action in rule.actions:
            control = self._one(walk, action)
            if walk.verdict or control.kind != "pipe":
                return control
        return PASS if control.kind == "pipe" else control

    def _one(self, walk: Walk, action: Action) -> Control:
        does: dict[type, Callable[[Walk, Any], Control]] = {
            Gact: self._gact,
            Ct: self._ct,
            Mirred: self._mirred,
            Pedit: self._pedit,
            Csum: self._csum,
            Skbedit: self._skbedit,
            Vlan: self._vlan,
            Police: self._police,
        }
        return does[type(action)](walk, action)

    def _gact(self, walk: Walk, action: Gact) -> Control:
        return action.control

    def _ct(self, walk: Walk, action: Ct) -> Control:
        if self.ct is None:
            raise ValueError("ct: expected somebody who tracks connections")
        what, walk.frame, walk.tracked = self.ct.act(action, walk.frame, walk.now, walk.tracked)
        if what == "held":
            walk.verdict = "held"
        return DROP if what == "drop" else action.control

    def _mirred(self, walk: Walk, action: Mirred) -> Control:
        walk.sent += [Sent(action.device, action.direction, piece) for piece in self._pieces(walk)]
        if action.kind == "redirect":
            walk.verdict = "redirect"
        return action.control

    def _pedit(self, walk: Walk, action: Pedit) -> Control:
        changed = pedit(walk.frame, action)
        if changed is None:
            walk.reason = "pedit of a field that is not there"
            return DROP
        walk.frame = changed
        return action.control

    def _csum(self, walk: Walk, action: Csum) -> Control:
        walk.frame = csum(walk.frame, action)
        return action.control

    def _skbedit(self, walk: Walk, action: Skbedit) -> Control:
        if action.mark is not None:
            value, mask = action.mark
            walk.mark = walk.mark & ~mask | value & mask
        if action.priority is not None:
            walk.priority = action.priority
        return action.control

    def _vlan(self, walk: Walk, action: Vlan) -> Control:
        walk.frame = VLAN[action.kind](walk.frame, action)
        return action.control

    def _police(self, walk: Walk, action: Police) -> Control:
        bucket = self._buckets.setdefault(id(action), Bucket(action, walk.now))
        return action.control if bucket.conforms(len(walk.frame), walk.now) else action.exceed

"""The interpreter: what rules make of a frame, rule by rule and action by action. Slow, and meant to be obvious; the engine is tested against it.

Theory of operation: a hook's chain 0 is gone through from its first rule on. The first rule that matches does its actions one after the other, as
long as each says `pipe`; what the last one says decides: pass, drop, another chain, the rules behind (`continue`), or all over again (`reclassify`).
Whatever changes the frame changes what later rules see. No rule at all means pass. Source: tcf_classify() and the actions of net/sched.
One packet: chain 0 `-trk: ct, goto 1`; chain 1 `+trk+est: redirect eth1`: looked at, tracked, looked at again, sent to eth1, whose egress hook has
its say.
What mirred sends is at the other device before the next action is done, as in Linux (but for ingress of a device from egress of another, which waits
there), with its marks and without what `ct` said of it. What `ct` has put together from fragments leaves a hook in fragments again.
Invariants: a frame goes through at most MOST_TURNS chains at a hook, and is sent on at most MOST_HOPS times, and MOST_SENT times with all its
copies; nothing but `ct` and `police` remembers anything.
Not here: connection tracking (whoever is given as `ct`), the order of rules (order), bytes (munge).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from datapath.frame import frames_of
from datapath.pipeline.flower import flower_keys
from datapath.pipeline.layout import fields_of
from datapath.pipeline.munge import ETHERNET, TAG, VLAN, csum, is_tagged, pedit
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

MOST_TURNS = 17  # chains a packet goes through: the first, and 16 by goto and reclassify (max_reclassify_loop); the next of these drops it
MOST_HOPS = 4  # times a packet is sent on (MIRRED_NEST_LIMIT); then the next mirred drops it
MOST_SENT = 64  # times it is sent on with all its copies; Linux has no such limit, and lets rules make millions of one packet
SECOND = 1_000_000_000


class Tracked(NamedTuple):
    """What the last `ct` said: bits of rules.CT_STATES, and the connection's zone, mark and label. reason: why a frame goes on no more; missing:
    bytes behind what it left of the frame that were not captured; joined: it has put the frame together from fragments just now."""

    state: int = 0
    zone: int = 0
    mark: int = 0
    label: int = 0
    conn: Any = None  # for who tracks
    reason: str = ""
    missing: int = 0
    joined: bool = False


class Piece(NamedTuple):
    """A frame that leaves. missing: bytes on the wire behind those that were captured."""

    frame: bytes
    missing: int = 0


NOT_TRACKED = Tracked()


class Tracker(Protocol):
    """Who does the `ct` action."""

    def act(self, action: Ct, frame: bytes, now: int, before: Tracked, missing: int = 0) -> tuple[str, bytes, Tracked]:
        """What becomes of a frame: "go on", "drop" or "held" (a fragment); the frame, translated or put together; what later rules see.

        now: ns; before: what the last `ct` said of this frame; missing: bytes behind it that were not captured. But for `clear`, what goes on ends
        with its IP packet. Where the frame does not go on, nothing is to be left any more.
        """

    def leave(self, tracked: Tracked) -> None:
        """The frame is over here, or goes on to another device, where nobody knows what was said of it: a connection without a commit never was."""

    def cut(self, frame: bytes, tracked: Tracked, missing: int = 0) -> list[Piece]:
        """In what a frame leaves the hook: as it is, or in fragments again if it was put together from such; none: it cannot leave."""


class Sent(NamedTuple):
    """A frame that leaves the hook at a device: its name, and egress, or ingress if it is to be received there."""

    device: str
    direction: str
    frame: bytes


class Hit(NamedTuple):
    """A rule that matched, and the bytes on the wire that the frame had then: what a rule counts."""

    rule: Rule
    length: int


@dataclass
class Walk:
    """One frame on its way through the chains of a hook.

    bare: bytes of the link header that the frame came with, if that was not Ethernet: the header that it has here is not to be changed, and takes no
    tag; missing: bytes on the wire behind those that were captured; hops: how often it was sent on. verdict: pass, drop, redirect or held; reason:
    of a drop, or of what is held, by its name (ctcore.reasons); decided: the rule whose control that is, None where no rule matched; hits: the rules
    that matched, in order; pieces: in what it passes; onward: the walk at the device that it was redirected to, of the last piece; delivery: what it
    is a part of, None if it is sent nowhere.
    """

    frame: bytes
    now: int
    hook: Hook
    missing: int = 0
    hops: int = 0
    bare: int | None = None
    tracked: Tracked = field(default_factory=lambda: NOT_TRACKED)
    mark: int = 0
    priority: int = 0
    verdict: str = ""
    reason: str = ""
    decided: Rule | None = None
    hits: list[Rule] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    told: Tracked | None = None  # what the last `ct` that tracked said, here or where it was redirected from: what is recorded of the packet
    parted: bool = False  # from its connection
    onward: Walk | None = None
    acting: tuple[int, int] = (0, 0)  # id of the rule, and which of its actions
    delivery: Delivery | None = None
    counted: int = 0  # by policers
    sender: str = ""  # the device at whose hook mirred has sent it here

    @property
    def length(self) -> int:
        """Bytes on the wire."""
        return len(self.frame) + self.missing + (0 if self.bare is None else self.bare - ETHERNET)

    @property
    def billed(self) -> int:
        """What a policer counts of the frame as it is now: the outermost tag lies beside a packet, in Linux. Its cost is asked when it comes to the
        hook, and once it was put together, whatever is changed in it later (qdisc_pkt_len)."""
        return self.length - (TAG if is_tagged(self.frame) else 0)

    @property
    def came(self) -> str:
        """The device that it came in by (skb_iif): at egress the one it was sent on from, none if it is the host's own."""
        return self.hook.device if self.hook.direction == "ingress" else self.sender

    @property
    def free(self) -> int:
        """Bytes that cost no tokens: the link header, which a packet has taken off at ingress."""
        link = ETHERNET if self.bare is None else self.bare
        return link if self.hook.direction == "ingress" else 0


@dataclass
class Delivery:
    """A frame and what it was sent on as. walks: in the order in which they began, the frame's own first; hits: of all of them, in time;
    passed: the walks at whose end the frame passes, in the order of their ends: what leaves; sent: how often it and its copies were sent on;
    dropped: the rules at which any of them was; exceeded: those whose policer had no token for one."""

    walks: list[Walk] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    passed: list[Walk] = field(default_factory=list)
    sent: int = 0
    dropped: list[Rule] = field(default_factory=list)
    exceeded: list[Rule] = field(default_factory=list)

    @property
    def last(self) -> Walk:
        """Where the frame itself ended: its own walk, or the one it was redirected to."""
        walk = self.walks[0]
        while walk.onward is not None:
            walk = walk.onward
        return walk


@lru_cache(maxsize=4096)
def seen_in(frame: bytes, missing: int, state: int, zone: int, mark: int, label: int) -> Mapping[str, int]:
    """The fields of a frame as a rule sees them: its headers, and what the last `ct` said."""
    memory, frames = frames_of([frame])
    frames["len"] += missing
    return {**fields_of(flower_keys(memory, frames)[0]), "ct_state": state, "ct_zone": zone, "ct_mark": mark, "ct_label": label}


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

    def left(self, now: int) -> tuple[int, int]:
        """What there is to spend: for bytes and for packets."""
        passed, limits = max(now - self.last, 0), (self._of_bytes(self.action.burst or 0), self._of_packets(self.action.packet_burst or 0))
        return min(self.bytes_left + passed, limits[0]), min(self.packets_left + passed, limits[1])

    def conforms(self, length: int, link: int, now: int) -> bool:
        """Whether a packet of so many bytes, of which so many are free, has a token; if so it is spent."""
        if self.action.longest is not None and length > self.action.longest:
            return False
        of_bytes, of_packets = self.left(now)
        bytes_left, packets_left = of_bytes - self._of_bytes(max(length - link, 0)), of_packets - self._of_packets(1)
        if bytes_left < 0 or packets_left < 0:
            return False
        self.last, self.bytes_left, self.packets_left = max(now, self.last), bytes_left, packets_left
        return True


class Interpreter:
    """Rules at work. ruleset: with its priorities given; ct: who tracks, None: a `ct` action is a ValueError."""

    def __init__(self, ruleset: Ruleset, ct: Tracker | None = None) -> None:
        self.ruleset, self.ct = ruleset, ct
        self._chains: dict[Hook, dict[int, list[Placed]]] = {}
        self._buckets: dict[tuple[int, int], Bucket] = {}  # by id of the rule and place of the action

    def run(self, frame: bytes, now: int, hook: Hook, missing: int = 0) -> Walk:
        """A frame that comes to a hook; what it is sent as goes nowhere. now: ns, and never back; missing: bytes that were not captured."""
        walk = Walk(frame, now, hook, missing)
        self._through(walk)
        return walk

    def deliver(self, frame: bytes, now: int, hook: Hook, missing: int = 0, *, bare: int | None = None) -> Delivery:
        """The same, and each device's hook that it is sent to. A device without rules passes all. bare: as in Walk."""
        delivery = Delivery()
        self._go(Walk(frame, now, hook, missing, bare=bare), delivery)
        return delivery

    def _go(self, walk: Walk, delivery: Delivery) -> None:
        walk.delivery = delivery
        delivery.walks.append(walk)
        self._through(walk)
        if walk.verdict == "pass":
            delivery.passed.append(walk)
        elif walk.verdict == "drop" and walk.decided is not None:
            delivery.dropped.append(walk.decided)

    def _through(self, walk: Walk) -> None:
        """All of a hook."""
        walk.counted = walk.billed
        try:
            self._classify(walk)
            if walk.verdict == "pass":
                walk.pieces = self._cut(walk)
                if not walk.pieces:
                    walk.verdict, walk.reason = "drop", "rule_cut"
        finally:
            self._part(walk)

    def _part(self, walk: Walk) -> None:
        """Whichever way the packet ends at a hook, there it parts from its connection; what was said of it can still be read."""
        if self.ct is not None and not walk.parted:
            self.ct.leave(walk.tracked)
        walk.tracked, walk.parted = walk.tracked._replace(conn=None), True

    def _cut(self, walk: Walk) -> list[Piece]:
        return [Piece(walk.frame, walk.missing)] if self.ct is None else self.ct.cut(walk.frame, walk.tracked, walk.missing)

    # --- chains -----------------------------------------------------------------------------------------------------------------------

    def _classify(self, walk: Walk) -> None:
        if walk.hook not in self._chains:
            self._chains[walk.hook] = chains_of(self.ruleset, walk.hook)
        chains, chain = self._chains[walk.hook], 0
        for _ in range(MOST_TURNS):
            control = self._turn(walk, chains.get(chain, []))
            if walk.verdict:
                return
            if control.kind not in ("goto", "reclassify"):
                walk.verdict = "drop" if control.kind == "drop" else "pass"
                walk.reason = walk.reason or ("rule_drop" if walk.verdict == "drop" else "")
                return
            chain = control.chain or 0
        walk.verdict, walk.reason = "drop", "rule_chains"

    def _turn(self, walk: Walk, rules: list[Placed]) -> Control:
        """A chain, rule by rule, until one says what is to follow."""
        place, walk.decided = 0, None
        while place < len(rules):
            placed = rules[place]
            if placed.rule.skip_sw or not self.matches(placed.rule, walk):
                place += 1
                continue
            walk.hits.append(placed.rule)
            if walk.delivery is not None:
                walk.delivery.hits.append(Hit(placed.rule, walk.length))
            walk.decided = placed.rule
            control = self._act(walk, placed.rule)
            if walk.verdict or control.kind != "continue":
                return control
            walk.decided, place = None, placed.behind
        return PASS

    def matches(self, rule: Rule, walk: Walk) -> bool:
        seen = seen_in(walk.frame, walk.missing, *walk.tracked[:4])
        return rule.protocol in (ETH_ALL, seen["protocol"]) and all(self._match(match, seen, walk) for match in rule.matches)

    @staticmethod
    def _match(match: Match, seen: Mapping[str, int], walk: Walk) -> bool:
        if match.name == "indev":
            return match.device == walk.came
        if match.high is not None:
            return match.value <= seen[match.name] <= match.high
        return seen[match.name] & match.mask == match.value & match.mask

    # --- actions ----------------------------------------------------------------------------------------------------------------------

    def _act(self, walk: Walk, rule: Rule) -> Control:
        """A rule's actions, until one of them says something else than `pipe`. What pipes at the end passes, as in Linux."""
        for at, action in enumerate(rule.actions):
            walk.acting = (id(rule), at)
            control = self._one(walk, action)
            if walk.verdict or control.kind != "pipe":
                return control
        return PASS

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
        what, walk.frame, walk.tracked = self.ct.act(action, walk.frame, walk.now, walk.tracked, walk.missing)
        if not action.clear:  # which is for later rules, and takes nothing back
            walk.told = walk.tracked._replace(conn=None)
        if what == "go on":
            walk.missing = walk.missing if action.clear else walk.tracked.missing
            walk.counted = walk.billed if walk.tracked.joined else walk.counted
            return action.control
        walk.verdict, walk.reason = "held" if what == "held" else "", walk.tracked.reason
        return DROP

    def _mirred(self, walk: Walk, action: Mirred) -> Control:
        if walk.hops >= MOST_HOPS or (walk.delivery is not None and walk.delivery.sent >= MOST_SENT):
            walk.verdict, walk.reason = "drop", "rule_hops"
            return DROP
        pieces = self._cut(walk)
        walk.sent += [Sent(action.device, action.direction, piece.frame) for piece in pieces]
        if action.kind == "redirect":
            walk.verdict, walk.reason = ("redirect", "") if pieces else ("drop", "rule_cut")
            self._part(walk)
        if walk.delivery is not None:
            walk.delivery.sent += 1
            for piece in pieces:
                self._send(walk, action, piece)
        return action.control

    def _send(self, walk: Walk, action: Mirred, piece: Piece) -> None:
        """To another device's hook, which knows nothing of its connection."""
        assert walk.delivery is not None
        hook = Hook(action.device, action.direction)
        onward = Walk(piece.frame, walk.now, hook, piece.missing, walk.hops + 1, walk.bare, mark=walk.mark, priority=walk.priority)
        onward.sender = walk.hook.device
        if action.kind == "redirect":
            walk.onward, onward.told = onward, walk.told
        self._go(onward, walk.delivery)

    def _pedit(self, walk: Walk, action: Pedit) -> Control:
        walk.frame = pedit(walk.frame, action, walk.missing, bare=walk.bare is not None)
        return action.control

    def _csum(self, walk: Walk, action: Csum) -> Control:
        summed = csum(walk.frame, action, walk.missing)
        if summed is None:
            walk.reason = "rule_field"
            return DROP
        walk.frame = summed
        return action.control

    def _skbedit(self, walk: Walk, action: Skbedit) -> Control:
        if action.mark is not None:
            value, mask = action.mark
            walk.mark = walk.mark & ~mask | value & mask
        if action.priority is not None:
            walk.priority = action.priority
        return action.control

    def _vlan(self, walk: Walk, action: Vlan) -> Control:
        if walk.bare is not None and action.kind == "push":
            walk.reason = "rule_field"
            return DROP
        walk.frame = VLAN[action.kind](walk.frame, action)
        return action.control

    def bucket(self, walk: Walk, action: Police) -> Bucket:
        """Of the action that is being done."""
        return self._buckets.setdefault(walk.acting, Bucket(action, walk.now))

    def _police(self, walk: Walk, action: Police) -> Control:
        bucket = self.bucket(walk, action)
        if bucket.conforms(walk.counted, walk.free, walk.now):
            return action.control
        if walk.delivery is not None and walk.decided is not None:
            walk.delivery.exceeded.append(walk.decided)
        if action.exceed.kind == "drop":
            walk.reason = "rule_police"
        return action.exceed

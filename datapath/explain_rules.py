"""One packet on its way through rules: the captures are replayed up to it, and it goes through the interpreter with the engine's connections.

Theory of operation: two pipelines of rules go through what comes before the packet. One has the flow table as it was asked for, and says what that
has of the packet. The other has none, so that its connections are as the rules themselves have left them; its tracker is the one that the interpreter
asks about the packet. What a pipeline remembers elsewhere (fragments that wait, tokens of policers) the interpreter has only seen if it did all the
work from the first packet on: then it does.
Not here: what rules do (pipeline), how it is written down (watched), words (narrate_rules).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctcore.errors import CaptureError, CtmirrorError
from ctcore.tracker import Tracker
from ctcore.types import Offload, Status
from datapath.app import CHUNK, Progress, RulesGiven, Tracking
from datapath.capture import PcapSource
from datapath.frame import LINK_ETHERNET
from datapath.names import printable
from datapath.pipeline.ct_settings import settings_of
from datapath.pipeline.interpret import Delivery
from datapath.pipeline.rules import Hook, Police
from datapath.ruled import RulePipeline
from datapath.ruled_run import arrivals_in, pipeline_of
from datapath.watched import At, Watched
from datapath.wire import parse_batch

NOWHERE = -1
TYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}  # by family


@dataclass(frozen=True)
class Served:
    """What the flow table has of a packet. offload: types.Offload; served: whether it was served, and not tracked; since: the number of the packet
    with which its connection came into the table, below 0 in captures before this one, None if it is not there; conn: number of the connection, -1:
    none; assured: whether that is, now; result: RESULT_DTYPE, what became of it; timeout: ticks that the connection has left, -1: none."""

    offload: int
    served: bool
    since: int | None
    conn: int
    assured: bool
    result: np.void
    timeout: int


@dataclass(frozen=True)
class Ruled:
    """One packet through rules. data: its bytes; frame: FRAME_DTYPE; iface: its interface in the capture, "" if that does not say; at: what was
    done at its hook, and beyond; delivery: the same as the interpreter has it; served: None without a flow table; devices: names, by the numbers
    in served.result; slow: why all packets before it went through the interpreter, "" if they did not, or for a policer that it does not meet."""

    name: str
    number: int
    data: bytes
    frame: np.void
    iface: str
    at: At
    delivery: Delivery
    served: Served | None
    tracking: Tracking
    devices: tuple[str, ...]
    slow: str = ""


class Admissions:
    """With which packet each connection came into the flow table, of those that are there."""

    def __init__(self) -> None:
        self._since = np.zeros(0, dtype=np.int64)

    def note(self, decisions: np.ndarray, first: int) -> None:
        """A chunk. first: number of its first packet."""
        rows = np.flatnonzero((decisions["conn"] >= 0) & (decisions["offload"] != Offload.OFFLOAD_NONE))
        conns = decisions["conn"][rows].astype(np.int64)
        if not len(rows):
            return
        missing = int(conns.max()) + 1 - len(self._since)
        if missing > 0:
            self._since = np.concatenate([self._since, np.full(max(missing, len(self._since)), NOWHERE, dtype=np.int64)])
        there = decisions["status"][rows] & Status.OFFLOAD != 0  # of this packet or not: some are not served, though their connection is there
        gone = ~there
        known, which = np.unique(conns, return_inverse=True)
        last = np.full(len(known), NOWHERE, dtype=np.int64)
        last[which[gone]] = rows[gone]
        self._since[known[last != NOWHERE]] = NOWHERE
        later = np.flatnonzero(there & (rows > last[which]))[::-1]  # backwards: of several the first stays
        entered = np.full(len(known), NOWHERE, dtype=np.int64)
        entered[which[later]] = rows[later] + first
        fresh = (self._since[known] == NOWHERE) & (entered != NOWHERE)
        self._since[known[fresh]] = entered[fresh]

    def of(self, conn: int) -> int:
        """The packet's number, or NOWHERE."""
        return int(self._since[conn]) if 0 <= conn < len(self._since) else NOWHERE


@dataclass
class Found:
    """A packet in its capture. first: how many came before its capture; hook: where it arrives."""

    memory: Any
    frames: np.ndarray  # FRAME_DTYPE[1]
    hook: Hook
    iface: str
    first: int
    last_time: int

    @property
    def missing(self) -> int:
        return max(int(self.frames["len"][0]) - int(self.frames["caplen"][0]), 0)

    @property
    def now(self) -> int:
        return max(int(self.frames["ts"][0]), self.last_time)

    @property
    def data(self) -> bytes:
        return _bytes(self.memory, self.frames[0])


# Memory, frames and where they arrive, by interface.
Chunk = tuple[Any, np.ndarray, tuple[Hook, ...]]


def explain_packet(captures: Sequence[str], number: int, tracking: Tracking, progress: Progress | None = None) -> Ruled:
    """Packet `number`, counted from 0, of the last of `captures`, through the rules of `tracking`.

    Raises CtmirrorError if there is no such packet, or if it is neither Ethernet nor IP; ConfigError if nobody says where packets arrive.
    """
    rules = tracking.rules
    assert rules is not None
    asked = pipeline_of(rules, tracking.config) if rules.flowtable else None
    plain = pipeline_of(rules, tracking.config, flowtable=False)
    admissions, seen = Admissions(), 0

    def work(memory: Any, frames: np.ndarray, hooks: tuple[Hook, ...]) -> None:
        nonlocal seen
        for pipeline in filter(None, (asked, plain)):
            pipeline.arrive(hooks)
            decisions, _, _ = pipeline.process(memory, frames, decisions=pipeline is asked)
            if decisions is not None:
                admissions.note(decisions, seen)
        seen += len(frames)

    found = _replay(captures, number, rules, work, progress)
    served = _served(asked, found, admissions, seen) if asked is not None else None
    data = _as_ethernet(found.memory, found.frames)
    if data is None:
        raise CtmirrorError(
            f"{printable(captures[-1])}: packet {number:,}: neither Ethernet nor IP: expected one of them, to show its way through rules"
        )
    reasons = _why_slow(rules, plain)
    if reasons:
        watched = _slowly(captures, number, tracking, progress)
    else:
        watched = Watched(rules.ruleset, plain.tracker)
    at, delivery = watched.watch(data, found.now, found.hook, found.missing, bare=_bare(found.memory, found.frames))
    name = printable(captures[-1])
    devices = tuple(plain.program.devices)
    slow = "; ".join(why for what, why in reasons.items() if what is not Police or meets_policer(at))
    return Ruled(name, number, found.data, found.frames[0], found.iface, at, delivery, served, tracking, devices, slow)


def _replay(
    captures: Sequence[str], number: int, rules: RulesGiven, work: Callable[[Any, np.ndarray, tuple[Hook, ...]], None], progress: Progress | None
) -> Found:
    """All that comes before a packet; damage in captures before its own ends them, as in replay."""
    total, last = 0, -(1 << 63)
    for name in captures[:-1]:
        try:
            with PcapSource(name) as source:
                for memory, frames, hooks in chunks_of(source, rules, progress):
                    work(memory, frames, hooks)
                    total, last = total + len(frames), max(last, int(frames["ts"].max()))
        except CaptureError:
            continue
    name, seen = captures[-1], 0
    with PcapSource(name) as source:
        for memory, frames, hooks in chunks_of(source, rules, progress):
            row = min(number - seen, len(frames))
            if row:
                work(memory, frames[:row], hooks)
                last = max(last, int(frames["ts"][:row].max()))
            if row < len(frames):
                iface = int(frames["iface"][row])
                return Found(memory, frames[row : row + 1], hooks[min(iface, len(hooks) - 1)], source.ifaces[iface % len(source.ifaces)], total, last)
            seen += len(frames)
    raise CtmirrorError(f"{name}: no packet {number:,}: expected 0 to {seen - 1:,} (frames 1 to {seen:,})" if seen else f"{name}: has no packets")


def chunks_of(source: PcapSource, rules: RulesGiven, progress: Progress | None) -> Iterator[Chunk]:
    """A capture chunk by chunk, with where its packets arrive. Raises ConfigError if nobody says."""
    while True:
        memory, frames = source.read(CHUNK)
        if not len(frames):
            return
        hooks, frames = arrivals_in(rules, source, memory, frames)
        yield memory, frames, hooks
        if progress:
            progress(source.name, source.position, source.size or 0)


def _served(pipeline: RulePipeline, found: Found, admissions: Admissions, seen: int) -> Served:
    """The packet through the pipeline with the flow table. seen: how many came before it."""
    assert pipeline.flows is not None
    pipeline.arrive([found.hook])
    one = found.frames.copy()
    one["iface"] = 0
    before = pipeline.flows.counters()["served"]
    decisions, _, results = pipeline.process(found.memory, one, results=True)
    admissions.note(decisions, seen)
    conn = int(decisions["conn"][0])
    since = admissions.of(conn)
    return Served(
        int(decisions["offload"][0]),
        pipeline.flows.counters()["served"] > before,
        None if since == NOWHERE else since - found.first,
        conn,
        bool(int(decisions["status"][0]) & Status.ASSURED),
        results[0],
        int(decisions["timeout"][0]),
    )


def _why_slow(rules: RulesGiven, pipeline: RulePipeline) -> dict[Any, str]:
    """What a pipeline remembers beside its connections, that the interpreter has to see happen, by what remembers it."""
    found: dict[Any, str] = {}
    if any(isinstance(action, Police) for rule in rules.ruleset.rules for action in rule.actions):
        found[Police] = "policers count what comes before it"
    if pipeline.summary()["fragments"].get("waiting"):
        found["fragments"] = "fragments before it wait for others"
    return found


def meets_policer(at: At) -> bool:
    """Whether a packet or a copy of it has been through one."""
    actions = [done for turn in at.turns for tried in turn.tried for done in tried.done]
    return any(done.policed is not None or any(meets_policer(onward) for onward in done.onward) for done in actions)


def _slowly(captures: Sequence[str], number: int, tracking: Tracking, progress: Progress | None) -> Watched:
    """An interpreter through which all packets before this one have gone, with an engine's tracker of its own."""
    rules = tracking.rules
    assert rules is not None
    if "-" in captures:
        raise CtmirrorError("-: what comes before the packet has to be read twice: expected files, not standard input")
    watched = Watched(rules.ruleset, Tracker(settings_of(rules.ruleset, tracking.config)))
    latest = -(1 << 63)

    def work(memory: Any, frames: np.ndarray, hooks: tuple[Hook, ...]) -> None:
        nonlocal latest
        for row in range(len(frames)):
            latest = max(latest, int(frames["ts"][row]))
            data = _as_ethernet(memory, frames[row : row + 1])
            hook = hooks[min(int(frames["iface"][row]), len(hooks) - 1)]
            if data is not None:
                missing = max(int(frames["len"][row]) - int(frames["caplen"][row]), 0)
                watched.deliver(data, latest, hook, missing, bare=_bare(memory, frames[row : row + 1]))

    _replay(captures, number, rules, work, progress)
    return watched


def _bytes(memory: Any, frame: np.void) -> bytes:
    start = int(frame["offset"])
    return bytes(memory[start : start + int(frame["caplen"])])


def _as_ethernet(memory: Any, frames: np.ndarray) -> bytes | None:
    """A frame as the interpreter takes it: IP behind other link headers gets one without addresses, as rules see it; None for what is neither."""
    if frames["link"][0] == LINK_ETHERNET:
        return _bytes(memory, frames[0])
    packet = parse_batch(memory, frames, checksum=False, at_hook=True).array[0]
    family = TYPES.get(int(packet["key"]["family"]))
    return None if family is None else bytes(12) + family + _bytes(memory, frames[0])[int(packet["l3_off"]) :]


def _bare(memory: Any, frames: np.ndarray) -> int | None:
    """Of a frame that came with another link header: how long that is."""
    if frames["link"][0] == LINK_ETHERNET:
        return None
    return int(parse_batch(memory, frames, checksum=False, at_hook=True).array["l3_off"][0])

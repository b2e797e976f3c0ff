"""Rules at work twice: compiled (walk) and interpreted, and whether they say the same of every frame.

Not here: which rules and frames (random_pipelines).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config
from ctcore.reasons import NAMES
from ctcore.types import Dir, Verdict
from datapath import craft
from datapath.frame import FRAME_DTYPE, LINK_ETHERNET, LINK_RAW, frames_of
from datapath.pipeline.interpret import Delivery, Interpreter
from datapath.pipeline.outputs import OutputFlag
from datapath.pipeline.program import Program
from datapath.pipeline.reference import STATE_BITS, RuleTracker
from datapath.pipeline.rules import CT_STATES, Hook, Ruleset
from datapath.pipeline.walk import Walker
from pcap_tests.test_ctcore.twins import Twins

NO_RULE = 0xFFFFFFFF
ETHERNET = 14


class Coming(NamedTuple):
    """A frame that comes to a hook. missing: bytes that were not captured; now: ns; link: its link type; head: the link header that it has instead
    of the Ethernet header in `frame`, if it is of another type."""

    frame: bytes
    hook: Hook
    now: int
    missing: int = 0
    link: int = LINK_ETHERNET
    head: bytes = b""

    @property
    def bare(self) -> int | None:
        return None if self.link == LINK_ETHERNET else len(self.head)

    @property
    def data(self) -> bytes:
        """As it came."""
        return self.frame if self.bare is None else self.head + self.frame[ETHERNET:]

    def shown(self, left: Left) -> Left:
        """What left of it, with the Ethernet header in `frame` again."""
        assert self.bare is None or left.frame.startswith(self.head)
        if self.bare is None:
            return left
        return left._replace(frame=self.frame[:ETHERNET] + left.frame[self.bare :], length=left.length + ETHERNET - self.bare)


class Left(NamedTuple):
    """A frame that leaves, and where."""

    device: str
    egress: bool
    frame: bytes
    length: int
    mark: int
    priority: int


def what_left(outputs: tuple[NDArray[Any], NDArray[np.uint8]], memory: NDArray[np.uint8], devices: Sequence[str], n: int) -> list[list[Left]]:
    """Outputs of a walker or a pipeline, by the frame they come of. memory: of the n frames that came."""
    rows, data = outputs
    left: list[list[Left]] = [[] for _ in range(n)]
    for row in rows.tolist():
        out = dict(zip(rows.dtype.names, row, strict=True))
        where = data if out["flags"] & OutputFlag.OUTPUT_CHANGED else memory
        frame = where[out["offset"] : out["offset"] + out["caplen"]].tobytes()
        left[out["frame"]].append(Left(devices[out["device"]], bool(out["egress"]), frame, out["length"], out["mark"], out["priority"]))
    return left


class Said(NamedTuple):
    """What became of a frame, in the words of both. hits: numbers of rules; recorded: ct_state, zone, mark by the last `ct` that tracked."""

    verdict: str
    reason: str
    rule: int
    device: str
    egress: bool
    hops: int
    mark: int
    priority: int
    hits: tuple[int, ...]
    left: tuple[Left, ...]
    recorded: tuple[int, int, int] | None


# Link types that say nothing but that IP follows, with their headers: raw, cooked (both versions), BSD loopback.
BARE = [(LINK_RAW, b""), (113, craft.sll(b"")), (276, craft.sll2(b"")), (0, b"\2\0\0\0")]


def without_ethernet(coming: Coming, link: int, head: bytes) -> Coming:
    """The same IP packet behind another link header. What is no whole IPv4 header right behind Ethernet stays as it is."""
    if coming.frame[12:15] not in {b"\x08\x00" + bytes([0x40 | words]) for words in range(16)} or len(coming.frame) < ETHERNET + 20:
        return coming
    return coming._replace(frame=bytes(12) + coming.frame[12:], link=link, head=head)


def laid_out(coming: Sequence[Coming]) -> tuple[Any, Any]:
    """Memory and frames, each with its time and what is missing of it."""
    memory, frames = frames_of([each.data for each in coming], np.array([each.now for each in coming], dtype=np.int64))
    frames["len"] += np.array([each.missing for each in coming], dtype=np.uint32)
    frames["link"] = [each.link for each in coming]
    assert frames.dtype == FRAME_DTYPE
    return memory, frames


def walked(program: Program, walker: Walker, coming: Sequence[Coming]) -> list[Said]:
    """The compiled rules' opinion."""
    memory, frames = laid_out(coming)
    numbers = {hook: program.hook(hook) if hook.device in program.devices else 0 for hook in {each.hook for each in coming}}
    results = walker.run(memory, frames, np.array([numbers[each.hook] for each in coming], dtype=np.uint32))
    left = what_left(walker.outputs(), memory, program.devices, len(coming))
    found = []
    for row, passed, came in zip(results.tolist(), left, coming, strict=True):
        it = dict(zip(results.dtype.names, row, strict=True))
        verdict = Verdict(it["verdict"]).name.lower()
        device = program.devices[it["device"]] or came.hook.device
        egress = bool(it["egress"]) if it["device"] else came.hook.direction == "egress"
        # A device that no rule names has no number.
        passed = [came.shown(each if each.device else each._replace(device=device, egress=egress)) for each in passed]
        hits = tuple(it["hit"][: it["n_hits"]])
        recorded = recorded_in(results["decision"][len(found)]) if it["tracked"] else None
        said = Said(verdict, NAMES[it["reason"]], it["rule"], device, egress, it["hops"], it["mark"], it["priority"], hits, tuple(passed), recorded)
        assert it["n_hits"] == len(hits) or len(hits) == 32
        found.append(said)
    return found


def recorded_in(decision: np.void) -> tuple[int, int, int]:
    """What a decision says, as a rule would see it."""
    state = CT_STATES["trk"] | STATE_BITS.get(int(decision["state"]), CT_STATES["inv"]) | (CT_STATES["rpl"] if decision["dir"] == Dir.REPLY else 0)
    return state, int(decision["zone"]), int(decision["mark"])


VERDICTS = {"pass": "accept", "drop": "drop", "held": "held"}


def told(delivery: Delivery, numbers: dict[int, int]) -> Said:
    """The interpreter's opinion. numbers: of rules, by id."""
    last = delivery.last
    passed = [
        Left(walk.hook.device, walk.hook.direction == "egress", frame, len(frame) + missing, walk.mark, walk.priority)
        for walk in delivery.passed
        for frame, missing in walk.pieces
    ]
    return Said(
        VERDICTS[last.verdict],
        last.reason or "ok",
        NO_RULE if last.decided is None else numbers[id(last.decided)],
        last.hook.device,
        last.hook.direction == "egress",
        last.hops,
        last.mark,
        last.priority,
        tuple(numbers[id(hit.rule)] for hit in delivery.hits[:32]),
        tuple(passed),
        None if last.told is None else (last.told.state, last.told.zone, last.told.mark),
    )


class Sides:
    """A ruleset at work in both. Where it tracks: the walk with the engine, the interpreter with the model."""

    def __init__(self, ruleset: Ruleset, config: Config = Config()):  # noqa: B008 (frozen)
        self.ruleset = ruleset
        self.program = Program(ruleset, config=config, seed=7)
        self.twins = Twins(self.program.config) if self.program.tracks else None
        self.walker = Walker(self.program, self.twins.engine if self.twins else None)
        self.interpreter = Interpreter(ruleset, RuleTracker(self.twins.model) if self.twins else None)
        self.numbers = {id(rule): i for i, rule in enumerate(ruleset.rules)}
        self.counted = np.zeros((len(ruleset.rules), 5), dtype=np.int64)
        self.counted[:, 2] = -1

    def send(self, coming: Sequence[Coming]) -> list[Said]:
        """What both say, since that is the same."""
        said = walked(self.program, self.walker, coming)
        for each, ours in zip(coming, said, strict=True):
            delivery = self.interpreter.deliver(each.frame, each.now, each.hook, each.missing, bare=each.bare)
            theirs = told(delivery, self.numbers)
            if delivery.last.told is not None and delivery.last.told.reason:
                theirs = theirs._replace(recorded=ours.recorded)  # it ended in the action: why is compared, and the rest is the tracker's
            assert ours == theirs, difference(self.ruleset, each, ours, theirs)
            for hit in delivery.hits:
                self.counted[self.numbers[id(hit.rule)]] += (1, hit.length, 0, 0, 0)
                self.counted[self.numbers[id(hit.rule)], 2] = max(self.counted[self.numbers[id(hit.rule)], 2], each.now)
            for column, rules in ((3, delivery.dropped), (4, delivery.exceeded)):
                for rule in rules:
                    self.counted[self.numbers[id(rule)], column] += 1
        return said

    def check(self) -> None:
        """The same counters, and the same connections."""
        counters = self.program.counters()
        assert [counters[name].tolist() for name in ("packets", "bytes", "last", "drops", "overlimits")] == self.counted.T.tolist()
        if self.twins:
            self.twins.compare()
            self.walker.check()
            self.walker.reassembler.check()


def compared(ruleset: Ruleset, coming: Sequence[Coming]) -> list[Said]:
    """Both, frame by frame and counter by counter."""
    sides = Sides(ruleset)
    said = sides.send(coming)
    sides.check()
    return said


def difference(ruleset: Ruleset, each: Coming, ours: Said, theirs: Said) -> str:
    fields = [f"{name}: walk {a!r}, interpreter {b!r}" for name, a, b in zip(Said._fields, ours, theirs, strict=True) if a != b]
    rules = [f"{i}: {rule}" for i, rule in enumerate(ruleset.rules) if i in {*ours.hits, *theirs.hits}]
    return "\n".join([f"{each.hook}, {each.frame.hex()}", *fields, *rules])

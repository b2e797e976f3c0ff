"""Rules at work three times: without a flow table, with one, and with one while nobody asks what leaves, so that packets may take the shortest way.

Invariant, proved at each batch: the three say the same, but for what the flow table is allowed to change (timeouts, windows, its own mark).
Not here: which rules and frames (talks_flowing), what only the flow table says (test_flowtable).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config
from ctcore.types import Status, Verdict
from datapath.frame import frames_of
from datapath.pipeline.rules import Hook, Ruleset
from datapath.ruled import RulePipeline
from pcap_tests.test_datapath.test_pipeline.walked import Left, what_left

SAID = ("conn", "mark", "zone", "state", "dir", "verdict", "l4state", "proto", "family")
ENDED = ("rule", "mark", "priority", "n_hits", "device", "egress", "hops", "verdict", "reason", "tracked")
NOT_OFFLOAD = 0xFFFF & ~int(Status.OFFLOAD | Status.HW_OFFLOAD)


class Coming(NamedTuple):
    """A frame that comes to the interface of this number. now: ns; missing: bytes that were not captured."""

    frame: bytes
    iface: int
    now: int
    missing: int = 0


class Seen(NamedTuple):
    """What became of a batch."""

    decisions: NDArray[Any]
    results: NDArray[Any]
    left: list[list[Left]]


def laid_out(coming: Sequence[Coming]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    memory, frames = frames_of([each.frame for each in coming], np.array([each.now for each in coming], dtype=np.int64))
    frames["len"] += np.array([each.missing for each in coming], dtype=np.uint32)
    frames["iface"] = [each.iface for each in coming]
    return memory, frames


def seen_by(pipeline: RulePipeline, coming: Sequence[Coming], outputs: bool = True) -> Seen:
    """What a pipeline makes of a batch."""
    memory, frames = laid_out(coming)
    decisions, _, results = pipeline.process(memory, frames, results=True, outputs=outputs)
    return Seen(decisions, results, what_left(pipeline.outputs(), memory, pipeline.program.devices, len(coming)))


class Ways:
    """A ruleset three times, with interfaces at these hooks."""

    def __init__(self, ruleset: Ruleset, config: Config, hooks: Sequence[Hook]):
        self.slow = RulePipeline(ruleset, config, flowtable=False)
        self.fast = RulePipeline(ruleset, config)
        self.blind = RulePipeline(ruleset, config)
        self.hooks, self.ruleset = hooks, ruleset
        self.arrive()

    @property
    def all(self) -> tuple[RulePipeline, RulePipeline, RulePipeline]:
        return self.slow, self.fast, self.blind

    def arrive(self) -> None:
        for each in self.all:
            each.arrive(self.hooks)

    def load(self, ruleset: Ruleset) -> None:
        """Other rules, for all."""
        self.ruleset = ruleset
        for each in self.all:
            each.load(ruleset)
        self.arrive()

    def send(self, coming: Sequence[Coming]) -> Seen:
        """What all three say, since that is the same: that of the one with a flow table."""
        slow, fast = seen_by(self.slow, coming), seen_by(self.fast, coming)
        blind = seen_by(self.blind, coming, outputs=False)
        for i, each in enumerate(coming):
            self.compare(i, each, slow, fast, "flow table")
            self.compare(i, each, slow, blind, "flow table, no outputs")
            assert slow.left[i] == fast.left[i], self.story(i, each, slow, fast, "left")
        return fast

    def compare(self, i: int, each: Coming, slow: Seen, other: Seen, which: str) -> None:
        ours, theirs = other.decisions[i], slow.decisions[i]
        wrong = [name for name in SAID if ours[name] != theirs[name]]
        wrong += ["status"] if (ours["status"] ^ theirs["status"]) & NOT_OFFLOAD else []
        # What a window says of a packet that passes all the same depends on who has looked at windows until then.
        wrong += ["reason"] if theirs["verdict"] != Verdict.ACCEPT and ours["reason"] != theirs["reason"] else []
        a, b = other.results[i], slow.results[i]
        wrong += [f"result.{name}" for name in ENDED if a[name] != b[name]]
        n = min(int(b["n_hits"]), len(b["hit"]))
        wrong += ["hits"] if a["hit"][:n].tolist() != b["hit"][:n].tolist() else []
        assert not wrong, self.story(i, each, slow, other, f"{which}: {', '.join(wrong)}")

    def story(self, i: int, each: Coming, slow: Seen, other: Seen, what: str) -> str:
        hits = {*slow.results[i]["hit"][: slow.results[i]["n_hits"]].tolist(), *other.results[i]["hit"][: other.results[i]["n_hits"]].tolist()}
        lines = [what, f"packet {i} at {each.iface}, {each.frame.hex()}", f"without {slow.decisions[i]}", f"with    {other.decisions[i]}"]
        lines += [f"without {slow.results[i]}", f"with    {other.results[i]}", f"names {slow.decisions.dtype.names}"]
        return "\n".join(lines + [f"{n}: {rule}" for n, rule in enumerate(self.ruleset.rules) if n in hits])

    def check(self) -> None:
        """Invariants; the same counters, connections and sums."""
        for each in (self.fast, self.blind):
            assert each.flows is not None
            each.flows.check()
            each.cuts.check()
        for each in self.all:
            each.tracker.check()
        counters = [each.counters() for each in self.all]
        for other in counters[1:]:
            for name in ("packets", "bytes", "last", "drops", "overlimits"):
                assert other[name].tolist() == counters[0][name].tolist(), name
        conns = [self.known(each) for each in self.all]
        for other in conns[1:]:
            assert len(other) == len(conns[0])
            wrong = [(without, here) for without, here in zip(conns[0], other, strict=True) if without != here]
            assert not wrong, wrong[0]
        assert self.summed(self.fast) == self.summed(self.slow) == self.summed(self.blind)

    @staticmethod
    def summed(pipeline: RulePipeline) -> dict[str, Any]:
        """The sums, but for reasons (see compare)."""
        return {name: np.asarray(value).tolist() for name, value in pipeline.summary().items() if not name.startswith("reason_")}

    @staticmethod
    def known(pipeline: RulePipeline) -> list[Any]:
        """What may not differ of the connections."""
        conns = pipeline.tracker.conns()
        names = ("mark", "label", "master", "start")
        return [
            (
                [(bytes(flow["key"]).hex(), int(flow["packets"]), int(flow["bytes"])) for flow in row["flow"]],
                int(row["status"]) & NOT_OFFLOAD,
                *(row[name].tolist() for name in names),
            )
            for row in conns
        ]

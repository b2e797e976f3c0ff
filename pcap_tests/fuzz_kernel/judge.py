"""A trace through engine and kernel in lock step, and what they do not agree on.

A step's `wait` is really waited, since the kernel has no other clock.
Not here: what is compared, and how closely (datapath.oracle.compare).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from datapath.frame import frames_of
from datapath.oracle.compare import Difference, differences
from datapath.oracle.lockstep import Compared, Lockstep
from datapath.oracle.oracle import Oracle
from datapath.scenario.build import Builder, build
from datapath.scenario.steps import DEFAULT_HOSTS, Scenario, Step
from pcap_tests.fuzz_kernel.draft import Settings, hosts_of
from pcap_tests.fuzz_kernel.far_side import FarSide


@dataclass(frozen=True)
class Judged:
    """ours, theirs: DECISION_DTYPE[n]; shown: bool[n], whether the kernel saw the packet; said: the kernel's sentences on each; sent: the steps as
    they were sent; left: the IP packets that left the kernel."""

    differences: Sequence[Difference]
    ours: np.ndarray
    theirs: np.ndarray
    shown: np.ndarray
    said: Sequence[Sequence[str]]
    sent: Sequence[Step] = ()
    left: Sequence[Sequence[bytes]] = ()


class Judge:
    """Engine and kernel with the same settings; to be closed."""

    def __init__(self, settings: Settings) -> None:
        """Raises KernelError if the kernel or the privileges do not suffice."""
        self.settings = settings
        self.oracle = Oracle(settings.config, zone=settings.zone)
        self.lockstep = Lockstep(self.oracle, zone=settings.zone)

    def judge(self, steps: Sequence[Step]) -> Judged:
        """Judge steps as if nothing had been before. Raises ScenarioError if one of them cannot be built."""
        self.lockstep.reset()
        return self.go_on(steps)

    def judge_apart(self, scripts: Sequence[Sequence[Step]]) -> list[Sequence[Difference]]:
        """Many short scripts at once, at most 65536, which do not meet since each has hosts of its own; what differs of each."""
        self.lockstep.reset()
        starts = np.cumsum([0, *map(len, scripts)])
        packets = [packet for n, script in enumerate(scripts) for packet in build(Scenario(tuple(script), hosts=hosts_of(n)))]
        found: list[list[Difference]] = [[] for _ in scripts]
        for difference in self._judged([step for script in scripts for step in script], packets).differences:
            number = int(np.searchsorted(starts, difference.i, "right")) - 1
            found[number].append(replace(difference, i=difference.i - int(starts[number])))
        return list(found)

    def go_on(self, steps: Sequence[Step], hosts: Mapping[str, str] = DEFAULT_HOSTS, packets: Sequence[bytes] | None = None) -> Judged:
        """Judge steps beside the connections there are. packets: the steps, built already, if there is no translation."""
        if self.oracle.config.nat:
            return self._one_by_one(steps, hosts)
        return self._judged(steps, build(Scenario(tuple(steps), hosts=hosts)) if packets is None else packets)

    def _one_by_one(self, steps: Sequence[Step], hosts: Mapping[str, str]) -> Judged:
        """Where a packet goes depends on what has become of those before it."""
        far, builder = FarSide(lambda key: self.lockstep.tracker.find(key), hosts, self.settings.zone), Builder(hosts=hosts)
        pieces: list[Judged] = []
        sent: list[Step] = []
        for i, step in enumerate(steps):
            sent.append(far.seen(step, steps[:i], sent))
            pieces.append(self._judged([step], [builder.frame(sent[-1])]))
        return Judged(
            [replace(difference, i=i) for i, piece in enumerate(pieces) for difference in piece.differences],
            np.concatenate([piece.ours for piece in pieces]),
            np.concatenate([piece.theirs for piece in pieces]),
            np.concatenate([piece.shown for piece in pieces]),
            [said for piece in pieces for said in piece.said],
            sent,
            [left for piece in pieces for left in piece.left],
        )

    def _judged(self, steps: Sequence[Step], packets: Sequence[bytes]) -> Judged:
        """Judge steps that are built."""
        memory, frames = frames_of(packets)
        cuts = [0, *(i for i, step in enumerate(steps) if step.wait and i), len(steps)]
        pieces: list[Compared] = []
        found: list[Difference] = []
        for start, end in pairwise(cuts):
            if start < end and steps[start].wait:
                time.sleep(steps[start].wait)
            pieces.append(self.lockstep.run(memory, frames[start:end]))
            found += [replace(difference, i=start + difference.i) for difference in differences(pieces[-1], self.oracle.config.hz)]
        return Judged(
            found,
            np.concatenate([piece.ours.decisions for piece in pieces]),
            np.concatenate([piece.theirs.decisions for piece in pieces]),
            np.array([why is None for piece in pieces for why in piece.unshown], bool),
            [sighting.said if sighting else () for piece in pieces for sighting in piece.sightings],
            tuple(steps),
            [left for piece in pieces for left in piece.theirs.out],
        )

    def close(self) -> None:
        self.oracle.open.close()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

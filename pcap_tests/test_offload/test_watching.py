"""The watch sees what is broken: one defect for each of the invariants, in a NIC, or between it, flow table and mirror."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ctcore.flow_changes import Asked
from offload.records import REPLY_DTYPE, Op
from offload.simnic.arrivals import Arrived, Part, arrived
from offload.simnic.results import Flag, Verdict
from pcap_tests.test_offload.crowd import FIN, RST, WIDTH
from pcap_tests.test_offload.crowd_run import Plan, Run
from pcap_tests.test_offload.watching import Broken, SeenNic

PACKETS = 12_500


class BlindToEnds(SeenNic):
    """It does not read FIN and RST."""

    def process_some(self, came: Arrived, rows: NDArray[Any], part: Part) -> int:
        frames = came.memory.copy().reshape(-1, WIDTH)
        frames[(frames[:, 12] == 8) & (frames[:, 23] == 6), 47] &= ~np.uint8(FIN | RST)
        return super().process_some(arrived(frames.reshape(-1), came.frames, came.ifaces), rows, part)


class GivesBack(SeenNic):
    """What it has forwarded it gives to software, too."""

    def process_some(self, came: Arrived, rows: NDArray[Any], part: Part) -> int:
        end = super().process_some(came, rows, part)
        these = rows[part.start : end]
        again = (these["verdict"] == Verdict.FORWARDED) & (these["flags"] & Flag.CT != 0)
        these["verdict"][again] = Verdict.MISSED
        these["chain"][again], these["rule"][again] = 0, 0xFFFFFFFF
        return end


class Swallows(SeenNic):
    """It forwards frames to nowhere."""

    def outputs(self) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        left, own = super().outputs()
        return left[::2], own


class WrongPort(SeenNic):
    def submit(self, commands: NDArray[Any], now: int) -> int:
        commands["to"]["sport"] ^= 1
        return super().submit(commands, now)


class KeepsRules(SeenNic):
    """It says that a rule is destroyed, and has it still."""

    made: NDArray[Any]

    def submit(self, commands: NDArray[Any], now: int) -> int:
        gone = commands["op"] == Op.DESTROY
        self.made = np.zeros(int(gone.sum()), dtype=REPLY_DTYPE)
        self.made["cookie"], self.made["op"] = commands["cookie"][gone], Op.DESTROY
        super().submit(commands[~gone], now)
        return len(commands)

    def replies(self, now: int) -> NDArray[Any]:
        rows = np.concatenate([super().replies(now), getattr(self, "made", np.zeros(0, dtype=REPLY_DTYPE))])
        self.made = np.zeros(0, dtype=REPLY_DTYPE)
        return rows


class SeesNobody(SeenNic):
    """Its counters stand still."""

    def replies(self, now: int) -> NDArray[Any]:
        rows = super().replies(now)
        for name in ("used", "packets", "bytes"):
            rows[name][rows["op"] == Op.STATS] = 0
        return rows


class CountsBack(SeenNic):
    """Each time it has seen the last packet a little earlier."""

    def replies(self, now: int) -> NDArray[Any]:
        rows = super().replies(now)
        rows["used"][rows["op"] == Op.STATS] = (1 << 61) - now
        self.watch.replied(rows[rows["op"] == Op.STATS], now)
        return rows


class Twice(SeenNic):
    """It is asked for a removal before it has answered."""

    def submit(self, commands: NDArray[Any], now: int) -> int:
        n = super().submit(commands, now)
        again = commands[:n].copy()
        again["op"] = Op.DESTROY
        self.watch.submitted(again, n, now)
        return n


class Third(SeenNic):
    """A rule more than was asked for."""

    def held(self) -> NDArray[Any]:
        held = super().held()
        more = held[:1].copy()
        more["match"]["sport"] += 1
        return np.concatenate([held, more, more])


class Loses(SeenNic):
    """Half of its rules."""

    def held(self) -> NDArray[Any]:
        return super().held()[::2].copy()


class Forgetful:
    """A flow table that never asks for a removal."""

    def __init__(self, flows: Any) -> None:
        self.flows = flows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.flows, name)

    def asks(self, most: int = 65_536) -> NDArray[Any]:
        asks = self.flows.asks(most)
        return asks[asks["ask"] != Asked.REMOVE]


@pytest.mark.parametrize(("hardware", "which"), [
    (BlindToEnds, "no FIN or RST"),
    (GivesBack, "exactly once"),
    (Swallows, "exactly once"),
    (WrongPort, "same bytes|audit"),
    (KeepsRules, "audit"),
    (SeesNobody, "busy stay"),
    (CountsBack, "counters"),
    (Twice, "one job"),
    (Third, "two rules"),
    (Loses, "audit"),
])  # fmt: skip
def test_a_defect_is_seen(hardware: type[SeenNic], which: str) -> None:
    with pytest.raises(Broken, match=f"^({which})"):
        Run(Plan(seed=1, talks=50, odd=0, nat="src"), hardware).go(PACKETS)


def test_wrong_bytes_are_seen_though_nobody_audits() -> None:
    run = Run(Plan(seed=1, talks=50, odd=0, nat="src"), WrongPort)
    run.watch.turned = lambda now: None
    with pytest.raises(Broken, match=r"^same bytes"):
        run.go(PACKETS)


@pytest.mark.parametrize(("deaf", "which"), [([], "ended leave"), (["ended_leave"], "idle leave"), (["turned"], "all destroyed")])
def test_rules_that_nobody_asks_to_remove_are_seen(deaf: list[str], which: str) -> None:
    """First where a connection ends, then where it is idle, and at last in any case."""
    run = Run(Plan(seed=1, talks=50, odd=0))
    run.offloaded.flows = Forgetful(run.offloaded.flows)
    for name in deaf:
        setattr(run.watch, name, lambda *_: None)
    with pytest.raises(Broken, match=f"^{which}"):
        run.go(PACKETS)


def test_without_a_defect_nothing_is_seen() -> None:
    run = Run(Plan(seed=1, talks=50, odd=0, nat="src"))
    run.go(PACKETS)
    assert run.watch.checks > 50 and run.offloaded.shares.hardware > PACKETS // 2

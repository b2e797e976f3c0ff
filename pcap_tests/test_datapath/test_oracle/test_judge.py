"""The running kernel before the scenarios: whatever they expect of conntrack is what this machine's kernel does.

Scenarios of the same settings share a namespace, which is emptied in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ctcore.config import Config
from ctcore.types import State
from datapath.differences import lines_of
from datapath.errors import KernelError
from datapath.oracle.judge import LONGEST_WAIT, KernelJudge
from datapath.oracle.oracle import Oracle
from datapath.scenario.judge import open_judge
from datapath.scenario.run import disagreements, play, settings_of
from datapath.scenario.steps import Scenario
from datapath.scenario.text import parse

SCENARIOS = sorted((Path(__file__).parent.parent.parent / "scenarios").rglob("*.ct"))
BASE = Config()


class Oracles:
    """One oracle for each zone and settings."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.made: dict[str, Oracle] = {}

    def judge(self, config: Config, zone: int) -> KernelJudge:
        """A judge with an empty table."""
        name = repr((config, zone))
        if name not in self.made:
            self.made[name] = self.stack.enter_context(Oracle(config, zone=zone))
        self.made[name].flush()
        return KernelJudge(self.made[name], zone)


@pytest.fixture(scope="module")
def oracles(running_kernel: None) -> Iterator[Oracles]:
    with ExitStack() as stack:
        yield Oracles(stack)


def limited(scenario: Scenario) -> bool:
    """Does it set what Linux does not have, or not in a namespace?"""
    return bool(scenario.zone_limit or scenario.zone_limits or scenario.zone_reserves or "max" in scenario.settings)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_kernel_does_what_the_scenario_says(oracles: Oracles, path: Path) -> None:
    scenario = parse(path.read_text(), str(path))
    if limited(scenario):
        with pytest.raises(KernelError, match="expected none, for the kernel has none"):
            oracles.judge(*settings_of(scenario, BASE))
        return
    judge = oracles.judge(*settings_of(scenario, BASE))
    found = list(disagreements(scenario, play(scenario, judge), judge))
    assert not found, "\n".join(text for text, _ in lines_of(found, ("expected", "kernel")))


def test_a_wrong_expectation_is_found(oracles: Oracles) -> None:
    scenario = parse("+0 A:1 > B:2 S seq 5 => established SYN_RECV 60 reply tcp.original.end=7\n", "wrong.ct")
    judge = oracles.judge(BASE, 0)
    (found,) = disagreements(scenario, play(scenario, judge), judge)
    fields = {difference.field: (difference.left, difference.right) for difference in found.fields}
    assert fields["state"] == ("established", "new") and fields["tcp.original.end"] == ("7", "6") and fields["dir"] == ("reply", "original")
    assert fields["timeout"][0] == 60 and 119.9 < fields["timeout"][1] <= 120


def test_the_judge_really_waits(oracles: Oracles) -> None:
    scenario = parse("+0 A:1 > B:2 udp\n+0.3 A:1 > B:2 udp\n", "wait.ct")
    first, second = play(scenario, oracles.judge(BASE, 0))
    assert second.record["ts"] - first.record["ts"] >= 290_000_000


def test_what_the_kernel_cannot_be_asked_is_refused(oracles: Oracles) -> None:
    judge = oracles.judge(BASE, 0)
    with pytest.raises(KernelError, match="expected at most 30 s"):
        judge.packet(b"", LONGEST_WAIT + 1)
    with pytest.raises(KernelError, match="cannot be shown to the kernel: not IP"):
        judge.packet(bytes(60), 0)


def test_what_leaves_in_fragments_is_seen_as_a_whole(oracles: Oracles) -> None:
    scenario = parse(
        "set snat 192.0.2.1:7000\n+0 A:1 > B:2 udp len 64 frag 0+16\n"
        "+0 A:1 > B:2 udp len 64 frag 16+ => out.src=192.0.2.1 out.sport=7000 out.dport=2\n",
        "out.ct",
    )
    judge = oracles.judge(*settings_of(scenario, BASE))
    assert not list(disagreements(scenario, play(scenario, judge), judge))


def test_packets_may_come_in_different_zones(oracles: Oracles) -> None:
    scenario = parse("".join(f"+0 A:1 > B:2 udp zone {zone}\n" for zone in (0, 1, 254, 257, 65024, 65535, 1)), "zones.ct")
    seen = play(scenario, oracles.judge(BASE, 0))
    assert [one.record["conn"] for one in seen] == [0, 1, 2, 3, 4, 5, 1]
    assert [one.conn["zone"] for one in seen if one.conn] == [0, 1, 254, 257, 65024, 65535, 1]


def test_a_fragment_is_held(oracles: Oracles) -> None:
    scenario = parse("+0 A:1 > B:2 udp len 64 frag 0+16 => not-seen held\n", "held.ct")
    (seen,) = play(scenario, oracles.judge(BASE, 0))
    assert (seen.record["state"], seen.record["verdict"]) == ("not-seen", "held") and State.NOT_SEEN == 0


def test_check_can_ask_it(running_kernel: None) -> None:
    with open_judge("kernel", BASE) as judge:
        (seen,) = play(parse("+0 A:1 > B:2 S seq 5 => new\n", "new.ct"), judge)
        assert seen.record["l4state"] == "SYN_SENT" and seen.record["reason"] is None and seen.conn["tcp"]["original"]["end"] == 6

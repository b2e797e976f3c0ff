"""A NIC makes no difference to what leaves: the same packets, with the same bytes, by the same ways, whether it has them or software alone.

What the contract changes all the same: a SYN on a tuple in hardware (A4.27); windows, once a connection is in a flow table; and of UDP that no reply
has been seen of, which hardware translates (A4.31) though it is new, and which stays new to it for a second after the reply (A6.44). NICs that take
no new connections (Linux before 6.3) have none of the latter; conversations are compared with such a one. And marks are as they were when a rule was
made (A4.36), so that no rule of these looks at them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from ctcore.config import Config
from ctcore.errors import CaptureError
from ctcore.types import Verdict
from datapath.capture import PcapSource
from datapath.commands.nic_rules import nic_rules
from datapath.commands.offloaded import Offloaded
from datapath.commands.offloaded_run import rules_for_any
from datapath.pipeline.rules import Hook, Ruleset
from datapath.ruled import RulePipeline
from datapath.ruled_run import leaving, pipeline_of
from offload.mirror import Mirror
from offload.simnic import profile
from offload.simnic.faults import Fault
from offload.simnic.nic import Nic
from pcap_tests.test_datapath.flowing import Coming, Seen, seen_by
from pcap_tests.test_datapath.flowing_rules import orderly
from pcap_tests.test_datapath.flowing_talks import Talks

HOOKS = (Hook("eth0"), Hook("eth1"))
PIPELINES = int(os.environ.get("CTMIRROR_PAIRS", "100000")) // 4000
BATCHES = 60
CHUNK = 16384
MS = 1_000_000


def behind_nic(pipeline: RulePipeline, kind: str = "perfect", faults: Iterable[Fault] = (), *, new: bool = True) -> Offloaded:
    loaded = profile.load(kind)
    loaded = loaded.model_copy(update={"rules": loaded.rules.model_copy(update={"new": new and loaded.rules.new})})
    nic = Nic(loaded, nic_rules(pipeline.program.ruleset, pipeline.program.device), faults)
    assert pipeline.flows is not None
    return Offloaded(pipeline, nic, Mirror(pipeline.flows.rows))


def checked(offloaded: Offloaded) -> None:
    """All of their invariants."""
    assert offloaded.flows is not None
    offloaded.flows.check()
    offloaded.tracker.check()
    offloaded.mirror.check()
    offloaded.nic.check()


# --- captures ---------------------------------------------------------------------------------------------------------------------------


def same_way(capture: Path, kind: str, faults: Iterable[Fault] = ()) -> Offloaded:
    """Software alone and a NIC before it, through rules that track everything."""
    given, config = rules_for_any(), Config(checksum=False)
    alone, together = pipeline_of(given, config), behind_nic(pipeline_of(given, config), kind, faults)
    for each in (alone, together):
        each.arrive([Hook("wire")])
    first = 0
    try:
        with PcapSource(str(capture)) as source:
            while len((chunk := source.read(CHUNK))[1]):
                memory, frames = chunk
                results = [each.process(memory, frames, results=True, outputs=True)[2] for each in (alone, together)]
                ends = [[(int(row["verdict"]), int(row["device"])) for row in rows] for rows in results]
                assert ends[0] == ends[1], f"packet {first + next(i for i, (a, b) in enumerate(zip(*ends, strict=True)) if a != b)}"
                assert _left(alone, memory, frames) == _left(together, memory, frames)
                first += len(frames)
    except CaptureError:
        pass  # what was read before the damage counts
    checked(together)
    # A connection may expire a little earlier or later, and its next packet be new or established; but each packet is counted once in each chain.
    assert alone.counters()["packets"].sum() == together.counters()["packets"].sum()
    return together


def _left(pipeline, memory, frames) -> list[tuple[int, int, bytes]]:
    left, out, rows = leaving(pipeline, memory, frames)
    pieces = [left[int(each["offset"]) :][: int(each["caplen"])].tobytes() for each in out]
    return sorted(zip(rows["frame"].tolist(), rows["device"].tolist(), pieces, strict=True))


OWN = sorted(path for folder in ("pcap_tests/captures", "examples") for path in (Path(__file__).parents[2] / folder).rglob("*.pcap*"))


def test_own_captures_leave_the_same_with_a_perfect_nic():
    assert sum(same_way(capture, "perfect").shares.hardware for capture in OWN) > 0


def test_captures_leave_the_same_with_a_perfect_nic(captures_of_others):
    hardware = frames = 0
    for capture in sorted(captures_of_others.glob("*.pcap*")):
        try:
            together = same_way(capture, "perfect")
        except AssertionError as error:
            raise AssertionError(f"{capture.name}: {error}") from error
        hardware, frames = hardware + together.shares.hardware, frames + together.shares.frames
    assert hardware > frames // 2


FAULTS = {
    "refused": [Fault("refuse", share=0.5)],
    "late": [Fault("delay", delay=20 * MS)],
    "lost": [Fault("lose-command", share=0.3), Fault("lose-reply", share=0.3)],
    "stuck counters": [Fault("stick")],
    "reset": [Fault("reset", at=1_001_000_000_000), Fault("reset", at=1_004_000_000_000)],  # the talks begin at 1,000 s
}


@pytest.mark.parametrize("kind", ["tiny", "connectx-6dx-sw", "none"])
def test_captures_lose_nothing_by_a_nic_of_any_kind(captures_of_others, kind):
    """No NIC but a perfect one cuts off what is behind the IP packet, so that bytes are not compared."""
    for capture in sorted(captures_of_others.glob("*.pcap*"))[::4]:
        together = behind_nic(pipeline_of(rules_for_any(), Config(checksum=False)), kind)
        together.arrive([Hook("wire")])
        try:
            with PcapSource(str(capture)) as source:
                while len((chunk := source.read(CHUNK))[1]):
                    _, _, results = together.process(*chunk, results=True, outputs=True)
                    decided_once(results["verdict"].tolist(), together.outputs()[0]["frame"].tolist())
        except CaptureError:
            pass
        checked(together)


def decided_once(verdicts: Sequence[int], left: Sequence[int]) -> None:
    """Every frame is forwarded by exactly one of the two, or dropped with a reason, or held."""
    for row, verdict in enumerate(verdicts):
        assert verdict != Verdict.PENDING
        most = len(left) if verdict == Verdict.ACCEPT else 0  # what was put together from fragments leaves in pieces
        assert (verdict == Verdict.ACCEPT) <= left.count(row) <= most, f"frame {row}"


# --- conversations ----------------------------------------------------------------------------------------------------------------------


def unmarked(ruleset: Ruleset) -> Ruleset:
    """Without the rules that look at a connection's mark."""
    return replace(ruleset, rules=tuple(rule for rule in ruleset.rules if all(match.name != "ct_mark" for match in rule.matches)))


def converse(random: Random, ruleset: Ruleset, faults: Iterable[Fault] = ()) -> Offloaded:
    """Conversations through rules: what leaves is answered, so that both have to agree all the way."""
    config = Config(tcp_liberal=True, max=1000, seed=random.getrandbits(32))
    alone, together = RulePipeline(ruleset, config), behind_nic(RulePipeline(ruleset, config), faults=faults, new=False)
    for each in (alone, together):
        each.arrive(HOOKS)
    talks = Talks(random, resets=True)
    for _ in range(BATCHES):
        coming, talking = talks.batch()
        if coming:
            talks.told(talking, same(coming, seen_by(alone, coming), seen_by(together, coming), ruleset).left)
    checked(together)
    return together


def same(coming: Sequence[Coming], alone: Seen, together: Seen, ruleset: Ruleset) -> Seen:
    for i, each in enumerate(coming):
        a, b = alone.results[i], together.results[i]
        wrong = [name for name in ("verdict", "device", "egress", "mark", "priority") if a[name] != b[name]]
        wrong += ["left"] if alone.left[i] != together.left[i] else []
        assert not wrong, story(i, each, alone, together, ruleset, wrong)
    return together


def story(i: int, each: Coming, alone: Seen, together: Seen, ruleset: Ruleset, wrong: list[str]) -> str:
    hits = {*alone.results[i]["hit"].tolist(), *together.results[i]["hit"].tolist()}
    lines = [f"packet {i} at {each.iface}, {each.frame.hex()}: {wrong}"]
    lines += [f"{seen.results[i]} {seen.left[i]} {seen.decisions[i]}" for seen in (alone, together)]
    return "\n".join(lines + [f"{n}: {rule.protocol} {rule.matches} {rule.actions}" for n, rule in enumerate(ruleset.rules) if n in hits])


@pytest.mark.parametrize("faults", [[], *FAULTS.values()], ids=["none", *FAULTS])
def test_conversations_leave_the_same_whatever_goes_wrong_with_the_nic(faults):
    random, hardware = Random(os.environ.get("CTMIRROR_SEED", "offloaded")), 0
    for number in range(PIPELINES):
        try:
            hardware += converse(random, unmarked(orderly(random)), faults).shares.hardware
        except AssertionError as error:
            raise AssertionError(f"pipeline {number}: {error}") from error
    assert hardware > 0

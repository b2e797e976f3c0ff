"""What the mirror makes of refusals (A8): why, when it tries again, and who has to go where hardware is full."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from offload.contract.why import Why
from offload.records import Op
from pcap_tests.test_datapath.tabled import IN, OUT, Tcp
from pcap_tests.test_offload.fake_nic import ACCEPT, LOSE, SECOND, FakeNic
from pcap_tests.test_offload.mirrored import Rig, refusing

# --- errors (A8) ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "counter", "why"),
    [
        (errno.EOPNOTSUPP, "refused_unsupported", Why.DRV_UNSUPPORTED), (errno.ENOMEM, "refused_full", Why.HW_FULL),
        (errno.ENOSPC, "refused_full", Why.HW_FULL), (errno.EINVAL, "refused_other", Why.HW_REFUSED),
    ],
)  # fmt: skip
def test_a8_60_refusals_are_told_apart(error: int, counter: str, why: Why) -> None:
    rig = Rig(nic=refusing(error))
    Tcp(rig).opened()
    assert (rig.mirror.counters()[counter], rig.mirror.why(0)["why"], rig.mirror.reasons()) == (2, why, {why: 1})
    outcome = {"refused_unsupported": "unsupported", "refused_full": "full", "refused_other": "other"}[counter]
    assert rig.mirror.counters()[f"add_{outcome}"] == rig.mirror.counters()["commands_add"] == 2


def test_a8_60_a_rule_that_is_there_already_is_one() -> None:
    rig = Rig(nic=refusing(errno.EEXIST))
    Tcp(rig).opened()
    assert (rig.in_hardware(), rig.mirror.counters()["existed"]) == (True, 2)


def test_a8_60_rules_that_hardware_has_lost_are_put_back() -> None:
    """STATS says ENOENT; the next packet, which is software's, asks for them again."""
    rig = Rig()
    talk = Tcp(rig).opened()
    rig.nic.rules.clear()
    rig.wait(5)
    assert (rig.in_hardware(), rig.mirror.counters()["missing"], rig.mirror.counters()["stats_missing"]) == (False, 2, 2)
    talk.say(OUT, "PA", b"hello")
    assert rig.in_hardware()


def test_a8_61_a_fin_is_softwares_and_takes_the_rule_along() -> None:
    rig = Rig()
    talk = Tcp(rig).opened()
    assert talk.say(OUT, "FA").offload == "not_teardown_fin"
    rig.wait(2)
    assert not rig.nic.rules


# --- back-off and room ----------------------------------------------------------------------------------------------------------------------


def test_refusals_are_tried_again_later_and_later() -> None:
    rig = Rig(nic=refusing(errno.ENOSPC), mirror={"backoff_most": 8})
    talk = Tcp(rig).opened()
    tried = []
    for second in range(40):
        before = rig.mirror.counters()["commands_add"]
        rig.now += SECOND + SECOND // 10
        talk.say(OUT, "PA", b"x")
        if rig.mirror.counters()["commands_add"] > before:
            tried.append(second)
    gaps = np.diff(tried)
    assert gaps.tolist() == sorted(gaps.tolist()) and gaps[-1] == gaps[-2] >= 7
    assert rig.flows.counters()["hw_asks"] == rig.mirror.counters()["commands_add"] // 2, "who was refused is not asked before it is time"


def crowd(policy: str) -> tuple[Rig, list[Tcp]]:
    """Hardware with room for one flow, which has it, and a second one with ten times its traffic."""
    rig = Rig(nic=FakeNic(capacity=2), mirror={"policy": policy, "backoff": 0.5, "backoff_most": 0.5})
    talks = [Tcp(rig, port=port).opened() for port in (40000, 40001)]
    for _ in range(20):
        rig.wait(1.1)
        rig.nic.hit(0, 0, 1, 100, rig.now)
        talks[1].say(OUT, "PA", bytes(1000))
    return rig, talks


@pytest.mark.parametrize(("policy", "row"), [("first-come", 0), ("by-rate", 1), ("by-bytes", 1)])
def test_who_has_to_go_where_hardware_is_full(policy: str, row: int) -> None:
    rig, _ = crowd(policy)
    assert {cookie >> 1 & 0xFFFFFFFF for cookie in rig.nic.rules} == {row}
    counts = rig.mirror.counters()
    assert (counts["evictions"], counts["spared"] > 0) == (row, True)
    assert rig.mirror.why(1 - row)["why"] in (Why.HW_FULL, Why.HW_EVICTED)


def test_flows_of_about_the_same_traffic_do_not_replace_each_other() -> None:
    rig = Rig(nic=FakeNic(capacity=2), mirror={"policy": "by-rate", "backoff": 0.5, "backoff_most": 0.5})
    talks = [Tcp(rig, port=port).opened() for port in (40000, 40001)]
    for _ in range(60):
        rig.wait(1.1)
        assert rig.nic.hit(0, 0, 1, 1040, rig.now)
        talks[1].say(OUT, "PA", bytes(1000))
    assert rig.mirror.counters()["evictions"] == 0


def test_who_had_to_go_may_have_been_busy_until_then() -> None:
    """Its counters go with its rules: the packet that nobody was told of keeps it from being idle."""
    rig = Rig(nic=FakeNic(capacity=2), mirror={"policy": "by-bytes", "backoff": 0.5, "backoff_most": 0.5})
    talks = [Tcp(rig, port=port).opened() for port in (40000, 40001)]
    rig.wait(20.5)
    assert rig.nic.hit(0, 0, 1, 60, rig.now)
    for _ in range(2):
        talks[1].say(OUT, "PA", bytes(1000))
    assert (rig.mirror.counters()["evictions"], rig.mirror.why(0)["why"]) == (1, Why.HW_EVICTED)
    rig.wait(25)
    assert (rig.flows.counters()["teardown_idle"], rig.flows.count) == (0, 2)
    rig.wait(10)
    assert rig.flows.counters()["teardown_idle"] == 2


def test_a_search_for_room_is_over_after_so_many_flows_whether_they_may_go_or_not() -> None:
    """128 of 130 have a question on its way, so that they cannot go. A search goes through a word of 64 rows: the third one finds who can."""
    rig = Rig(nic=FakeNic(capacity=260), mirror={"policy": "by-bytes", "look": 4, "backoff": 0.5, "backoff_most": 0.5})
    rig.nic.fate = lambda command: LOSE if command["op"] == Op.STATS and command["cookie"] >> 1 & 0xFFFFFFFF < 128 else ACCEPT
    [Tcp(rig, port=port).opened() for port in range(40000, 40130)]
    rig.wait(5)
    large = Tcp(rig, port=50000).opened()
    assert (rig.mirror.counters()["spared"], rig.mirror.counters()["evictions"]) == (1, 0)
    for evictions in (0, 1):
        rig.wait(1.1)
        large.say(OUT, "PA", bytes(1000))
        assert rig.mirror.counters()["evictions"] == evictions


@pytest.mark.parametrize("error", [errno.EIO, errno.ETIMEDOUT])
def test_a_removal_that_is_refused_is_asked_for_again_when_its_time_has_come(error: int) -> None:
    """Not at once and for ever, whatever hardware calls it."""
    rig = Rig(nic=FakeNic())
    rig.nic.fate = lambda command: error if command["op"] == Op.DESTROY else ACCEPT
    Tcp(rig).opened().say(IN, "FA")
    rig.wait(1)
    assert (rig.mirror.counters()["undestroyed"], rig.mirror.due > rig.now, len(rig.nic.rules)) == (2, True, 2)
    rig.nic.fate = lambda command: ACCEPT
    rig.wait(3)
    assert (rig.nic.rules, rig.flows.count) == ({}, 0)


def test_hardware_that_is_full_is_probed_and_not_flooded() -> None:
    rig = Rig(nic=FakeNic(capacity=2))
    talks = [Tcp(rig, port=port).opened() for port in range(40000, 40050)]
    counts = rig.mirror.counters()
    assert (counts["refused_full"], counts["kept_out"], counts["commands_add"]) == (2, 48, 4)
    assert rig.mirror.reasons() == {None: 1, Why.HW_FULL: 49}
    talks[0].say(IN, "FA")
    rig.wait(1.1)
    talks[7].say(OUT, "PA", b"there is room again")
    assert {cookie >> 1 & 0xFFFFFFFF for cookie in rig.nic.rules} == {7}

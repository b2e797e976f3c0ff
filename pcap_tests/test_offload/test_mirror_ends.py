"""The mirror with a flow table before it and a NIC behind it: aging, and how flows end (A6, A7)."""

from __future__ import annotations

import errno

import pytest

from ctcore.filter import Filter
from ctcore.types import Status
from datapath import craft
from offload.records import Ctinfo
from pcap_tests.test_datapath.tabled import DAY, IN, OUT, Tcp, assured_udp, udp
from pcap_tests.test_datapath.test_pipeline.laboratory import ruleset_of
from pcap_tests.test_offload.fake_nic import ACCEPT, SECOND, FakeNic
from pcap_tests.test_offload.mirrored import Rig

# --- aging (A6) -----------------------------------------------------------------------------------------------------------------------------


def test_a6_44_a_flow_that_hardware_takes_for_new_is_torn_down() -> None:
    """The update is refused, and nothing comes any more that would ask for it again."""
    nic = FakeNic()
    nic.fate = lambda command: errno.EINVAL if command["op"] == 1 and command["ctinfo"] != Ctinfo.NEW else ACCEPT
    rig = Rig(nic=nic)
    udp(rig)
    udp(rig, OUT)
    udp(rig, OUT)
    rig.wait(2)
    assert (rig.flows.counters()["teardown_outdated"], rig.flows.count, len(nic.rules)) == (1, 0, 0)


def test_a6_48_hardware_is_asked_for_counters_when_a_tenth_of_the_time_is_over() -> None:
    rig = Rig()
    Tcp(rig).opened()
    rig.wait(3)
    assert rig.mirror.counters()["commands_stats"] == 0
    rig.wait(1)
    assert rig.mirror.counters()["commands_stats"] == 2


def test_a6_49_what_hardware_has_seen_is_accounted_and_keeps_the_flow() -> None:
    rig = Rig()
    Tcp(rig).opened()
    before = rig.conn()["flow"]["packets"].tolist()
    for _ in range(100):
        rig.wait(1)
        assert rig.nic.hit(0, 0, 3, 100, rig.now) and rig.nic.hit(0, 1, 2, 1000, rig.now)
    rig.wait(5)
    assert rig.conn()["flow"]["packets"].tolist() == [before[0] + 300, before[1] + 200]
    assert (rig.flows.counters()["hw_bytes"], rig.flows.counters()["hw_packets_unsplit"]) == (100 * 2300, 0)
    assert not len(rig.flows.unsplit())


def test_a6_50_what_one_counter_counts_is_of_an_unknown_direction() -> None:
    rig = Rig()
    rig.nic.shared = True
    Tcp(rig).opened()
    before = rig.conn()["flow"]["packets"].tolist()
    rig.nic.hit(0, 0, 3, 100, rig.now)
    rig.nic.hit(0, 1, 4, 100, rig.now)
    rig.wait(5)
    assert rig.conn()["flow"]["packets"].tolist() == before
    assert rig.flows.unsplit().tolist() == [(0, 7, 700)]


@pytest.mark.parametrize("seen", [0, 17, 100])
def test_a6_51_an_idle_flow_leaves_within_its_time_and_three_seconds(seen: int) -> None:
    rig = Rig()
    Tcp(rig).opened()
    for _ in range(seen):
        rig.wait(1)
        rig.nic.hit(0, 0, 1, 60, rig.now)
    rig.wait(29)
    assert len(rig.nic.rules) == 2
    rig.wait(4)
    assert not rig.nic.rules


# --- the end (A7) ---------------------------------------------------------------------------------------------------------------------------


def test_a7_56_an_idle_connection_comes_back_with_the_rest_of_its_day() -> None:
    rig = Rig()
    Tcp(rig).opened()
    rig.wait(31)
    assert rig.flows.counters()["teardown_idle"] == 1
    assert rig.left() == pytest.approx(DAY - 31, abs=2)


def test_a7_57_the_rule_lives_until_its_removal_is_done() -> None:
    rig = Rig(nic=FakeNic(latency=SECOND // 2))
    talk = Tcp(rig).opened()
    rig.wait(1)
    talk.say(IN, "FA")
    assert rig.nic.hit(0, 1, 1, 60, rig.now)
    rig.wait(1.6)
    assert not rig.nic.rules


def test_a7_58_what_closes_is_not_put_back_and_what_was_idle_is() -> None:
    rig = Rig()
    talk = Tcp(rig).opened()
    rig.wait(34)
    assert not rig.nic.rules
    talk.say(OUT, "PA", b"back")
    assert len(rig.nic.rules) == 2
    talk.say(IN, "FA")
    rig.wait(1)
    talk.say(OUT)
    assert not rig.nic.rules


def test_a7_59_a_deleted_connection_takes_its_rules_with_it() -> None:
    rig = Rig()
    assured_udp(rig)
    udp(rig, OUT)
    assert len(rig.nic.rules) == 2
    rig.tracker.delete(Filter(proto=17))
    rig.wait(1)
    assert (len(rig.nic.rules), rig.flows.count, rig.flows.counters()["teardown_dying"]) == (0, 0, 1)


def test_a7_59_its_slot_may_be_anothers_by_then() -> None:
    rig = Rig(nic=FakeNic(latency=5 * SECOND), max=1)
    udp(rig)
    rig.wait(6)
    rig.tracker.delete(Filter(proto=17))
    rig.send(craft.udp("10.0.0.9", "198.51.100.7", 9, 9))
    rig.wait(12)
    assert rig.flows.count <= 1
    assert not rig.conn(1)["status"] & Status.HW_OFFLOAD or len(rig.nic.rules) == 1


def test_a7_59_a_zone_without_rules_leaves_hardware() -> None:
    rig = Rig()
    Tcp(rig).opened()
    rig.pipeline.load(ruleset_of("tc filter add dev in0 ingress protocol ip flower action pass\n"))
    assert rig.flows.count == 1
    rig.pump()
    assert (rig.flows.count, rig.nic.rules) == (0, {})

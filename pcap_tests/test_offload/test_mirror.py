"""The mirror with a flow table before it and a NIC behind it: jobs, rules, refusals, resets (A3, A4, A6, A7, A8)."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest

from ctcore.errors import ConfigError
from ctcore.filter import Filter
from ctcore.flow_changes import ASK_DTYPE, Asked, FlowFlag
from ctcore.types import Status
from datapath import craft
from offload.contract.why import Why
from offload.mirror import BYTES_PER_FLOW, Found, Mirror
from offload.mirror_settings import MirrorSettings
from offload.records import COMMAND_DTYPE, REPLY_DTYPE, Ctinfo
from pcap_tests.test_datapath.tabled import ANY, COMMITS, DAY, IN, OUT, Tcp, assured_udp, udp
from pcap_tests.test_datapath.test_pipeline.laboratory import SNAT
from pcap_tests.test_offload.fake_nic import ACCEPT, LOSE, LOSE_ANSWER, SECOND, FakeNic
from pcap_tests.test_offload.mirrored import Rig


def ops(nic: FakeNic) -> list[tuple[str, int]]:
    return [(op, direction) for op, _, direction in nic.log]


def refusing(error: int) -> FakeNic:
    nic = FakeNic()
    nic.fate = lambda command: error if command["op"] == 1 else ACCEPT
    return nic


# --- jobs (A3) -------------------------------------------------------------------------------------------------------------------------


def test_a1_2_hardware_is_a_bit_of_the_connections_status() -> None:
    rig = Rig()
    Tcp(rig).opened()
    assert rig.in_hardware()
    rig.flows.flush()
    rig.wait(2)
    assert not rig.in_hardware()


def test_a2_8_the_third_packet_brings_a_connection_into_hardware() -> None:
    rig = Rig()
    talk = Tcp(rig)
    for side, flags, rules in ((IN, "S", 0), (OUT, "SA", 0), (IN, "A", 2)):
        talk.say(side, flags)
        assert len(rig.nic.rules) == rules


def test_a2_11_udp_is_assured_after_two_seconds_and_then_goes_both_ways() -> None:
    rig = Rig()
    udp(rig)
    udp(rig, OUT)
    assert rig.directions() == [0]
    rig.wait(2.5)
    udp(rig, OUT)
    udp(rig, OUT)
    assert (rig.directions(), rig.in_hardware()) == ([0, 1], True)


def test_a3_20_a_slow_nic_holds_up_no_packet() -> None:
    rig = Rig(nic=FakeNic(latency=3 * SECOND))
    talk = Tcp(rig).opened()
    assert talk.say(OUT, "PA", b"hello").offload == "software"
    assert not rig.nic.rules
    rig.wait(4)
    assert len(rig.nic.rules) == 2


def test_a3_21_a_job_asked_for_while_another_is_pending_is_dropped_and_counted() -> None:
    rig = Rig(nic=FakeNic(latency=3 * SECOND))
    talk = Tcp(rig).opened()
    rig.wait(1.5)
    talk.say(OUT, "PA", b"hello")
    counts = rig.mirror.counters()
    assert (counts["dropped_add"], counts["pending_add"], counts["commands_add"]) == (1, 1, 2)


def test_a3_21_a_removal_asked_for_meanwhile_follows() -> None:
    rig = Rig(nic=FakeNic(latency=3 * SECOND))
    talk = Tcp(rig).opened()
    talk.say(IN, "FA")
    rig.wait(1)
    assert (rig.mirror.counters()["dropped_del"], rig.flows.count) == (1, 1)
    rig.wait(7)
    assert (ops(rig.nic)[-2:], rig.flows.count) == ([("DESTROY", 0), ("DESTROY", 1)], 0)


def test_a3_22_orig_comes_first_and_one_rule_is_enough() -> None:
    nic = FakeNic()
    nic.fate = lambda command: errno.ENOSPC if command["dir"] == 1 else ACCEPT
    rig = Rig(nic=nic)
    Tcp(rig).opened()
    assert (ops(nic), rig.in_hardware()) == ([("REPLACE", 0)], True)


def test_a3_22_without_a_rule_the_flow_lives_on_in_software() -> None:
    rig = Rig(nic=refusing(errno.ENOSPC))
    talk = Tcp(rig).opened()
    assert not rig.in_hardware()
    assert talk.say(OUT, "PA", b"hello").offload == "software"
    assert rig.mirror.why(0)["why"] == Why.HW_FULL


def test_a3_23_both_rules_are_destroyed_and_the_row_goes_behind_them() -> None:
    rig = Rig()
    talk = Tcp(rig).opened()
    talk.say(IN, "FA")
    assert (rig.flows.count, rig.in_hardware()) == (1, True)
    rig.wait(1)
    assert (rig.flows.count, rig.in_hardware(), ops(rig.nic)[2:]) == (0, False, [("DESTROY", 0), ("DESTROY", 1)])


def test_a3_24_gauges_count_the_jobs_that_are_pending() -> None:
    rig = Rig(nic=FakeNic(latency=SECOND // 2))
    talk = Tcp(rig).opened()
    gauges = lambda: tuple(rig.mirror.counters()[f"pending_{job}"] for job in ("add", "del", "stats"))  # noqa: E731
    assert gauges() == (1, 0, 0)
    rig.wait(4)
    assert gauges() == (0, 0, 1)
    rig.wait(1.9)
    talk.say(IN, "FA")
    rig.wait(1)
    assert gauges() == (0, 1, 0)


# --- rules (A4) ------------------------------------------------------------------------------------------------------------------------


def test_a4_25_a_flow_has_two_cookies_that_no_other_life_of_its_row_has() -> None:
    rig = Rig()
    seen: list[int] = []
    for port in (40000, 40001):
        Tcp(rig, port=port).opened()
        seen += rig.nic.rules
        rig.flows.flush()
        rig.wait(2)
    assert len(set(seen)) == 4
    assert {cookie >> 1 & 0xFFFFFFFF for cookie in seen} == {0}


def test_a4_27_a_rule_says_nothing_of_syn() -> None:
    """What matches is the tuple; so a SYN on it is hardware's."""
    assert set(COMMAND_DTYPE.names or ()) == {"match", "to", "cookie", "conn", "label", "mark", "op", "ctinfo", "dir", "pad"}


def test_a4_31_a_translated_connection_is_rewritten_both_ways() -> None:
    rig = Rig(SNAT)
    rig.send(craft.tcp("10.0.0.1", "198.51.100.7", 40000, 80, "S", seq=1))
    rig.send(craft.tcp("198.51.100.7", "192.0.2.1", 80, 40000, "SA", seq=5, ack=2), OUT)
    rig.send(craft.tcp("10.0.0.1", "198.51.100.7", 40000, 80, "A", seq=2, ack=6))
    orig, reply = (rule for _, rule in sorted(rig.nic.rules.items()))
    address = lambda key, end: ".".join(map(str, key[end][:4]))  # noqa: E731
    assert (address(orig["match"], "src"), address(orig["to"], "src")) == ("10.0.0.1", "192.0.2.1")
    assert (address(reply["match"], "dst"), address(reply["to"], "dst")) == ("192.0.2.1", "10.0.0.1")
    assert orig["match"]["dst"].tolist() == orig["to"]["dst"].tolist()


def test_a4_35_a_datagram_without_an_answer_is_new_and_the_answer_updates_it() -> None:
    rig = Rig()
    udp(rig)
    assert [rule["ctinfo"] for rule in rig.nic.rules.values()] == [Ctinfo.NEW]
    udp(rig, OUT)
    udp(rig, OUT)
    assert [rule["ctinfo"] for rule in rig.nic.rules.values()] == [Ctinfo.ESTABLISHED]
    assert rig.nic.accepted == 1


def test_a4_36_a_refresh_of_what_hardware_has_costs_no_command() -> None:
    rig = Rig()
    talk = Tcp(rig).opened()
    rig.tracker.update(Filter(), mark=7)
    rig.wait(2)
    talk.say(OUT, "PA", b"hello")
    assert rig.mirror.counters()["commands_add"] == 2
    assert {int(rule["mark"]) for rule in rig.nic.rules.values()} == {0}
    assert not len(rig.mirror.audit(rig.nic.held()))


# --- packets (A5) ----------------------------------------------------------------------------------------------------------------------


def test_a5_39_answers_that_hardware_knows_of_refresh_nothing() -> None:
    """UDP that is answered, and not two seconds old: the second answer changes nothing any more."""
    rig = Rig()
    udp(rig)
    for _ in range(4):
        udp(rig, OUT)
        rig.now += SECOND // 4
    asked = rig.flows.counters()["hw_asks"]
    udp(rig, OUT)
    assert rig.flows.counters()["hw_asks"] == asked


def test_a5_41_a_refused_rule_is_asked_for_about_once_a_second() -> None:
    rig = Rig(nic=refusing(errno.EINVAL), mirror={"backoff": 0.001, "backoff_most": 0.001})
    talk = Tcp(rig).opened()
    for _ in range(100):
        rig.now += SECOND // 10
        talk.say(OUT, "PA", b"x")
    assert 16 <= rig.mirror.counters()["commands_add"] <= 22


# --- aging (A6) ------------------------------------------------------------------------------------------------------------------------


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


# --- the end (A7) ----------------------------------------------------------------------------------------------------------------------


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
    from pcap_tests.test_datapath.test_pipeline.laboratory import ruleset_of

    rig = Rig()
    Tcp(rig).opened()
    rig.pipeline.load(ruleset_of("tc filter add dev in0 ingress protocol ip flower action pass\n"))
    assert rig.flows.count == 1
    rig.pump()
    assert (rig.flows.count, rig.nic.rules) == (0, {})


# --- errors (A8) -----------------------------------------------------------------------------------------------------------------------


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


# --- back-off and room -----------------------------------------------------------------------------------------------------------------


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


# --- what goes wrong -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", [LOSE, LOSE_ANSWER])
def test_a_lost_install_is_asked_for_again(fate: str) -> None:
    lost: list[Any] = []
    nic = FakeNic()
    nic.fate = lambda command: lost.append(1) or fate if len(lost) < 2 else ACCEPT
    rig = Rig(nic=nic)
    Tcp(rig).opened()
    assert not rig.in_hardware()
    rig.wait(11)
    assert (rig.in_hardware(), len(nic.rules), rig.mirror.counters()["lost"]) == (True, 2, 2)
    counts = rig.mirror.counters()
    again = "add_done" if fate == LOSE else "add_existed"
    assert (counts["commands_add"], counts["add_lost"], counts[again]) == (4, 2, 2)


def test_what_is_never_answered_is_destroyed_before_it_is_given_up() -> None:
    nic = FakeNic()
    nic.fate = lambda command: LOSE_ANSWER if command["op"] == 1 else ACCEPT
    rig = Rig(nic=nic)
    Tcp(rig).opened()
    rig.wait(32)
    assert (rig.mirror.why(0) or {"why": None})["why"] in (None, Why.HW_SILENT)
    rig.settle()
    assert not nic.rules


def test_a_lost_removal_is_asked_for_until_it_is_answered() -> None:
    lost: list[Any] = []
    nic = FakeNic()
    nic.fate = lambda command: lost.append(1) or LOSE if command["op"] == 2 and len(lost) < 6 else ACCEPT
    rig = Rig(nic=nic)
    Tcp(rig).opened().say(IN, "FA")
    rig.wait(25)
    assert (rig.flows.count, len(nic.rules)) == (1, 2)
    rig.wait(10)
    assert (rig.flows.count, len(nic.rules)) == (0, 0)


def test_after_a_reset_everything_is_put_back() -> None:
    rig = Rig()
    talks = [Tcp(rig, port=port).opened() for port in range(40000, 40010)]
    talks[3].say(IN, "FA")
    rig.nic.reset()
    rig.wait(1)
    rig.settle()
    assert (len(rig.nic.rules), rig.mirror.counters()["resets"], rig.mirror.counters()["offloaded"]) == (18, 1, 9)
    assert not len(rig.mirror.audit(rig.nic.held()))
    assert all(rig.in_hardware(i) for i in range(10) if i != 3)
    assert rig.mirror.used == 10 and rig.mirror.reasons(range(2, 6)) == {None: 3}, "a part of the rows"


def test_a_slow_intake_and_a_full_ring_of_asks_lose_nothing() -> None:
    nic = FakeNic()
    nic.intake = 3
    rig = Rig(nic=nic, asks=2)
    frames = [craft.udp("10.0.0.1", "198.51.100.7", 1000 + i, 53) for i in range(50)]
    for frame in frames:
        super(Rig, rig).send(frame)
    assert rig.flows.counters()["hw_asks_lost"] == 48
    rig.wait(25)
    assert len(nic.rules) == 50


def test_an_audit_finds_what_is_too_much_what_is_missing_and_what_differs() -> None:
    rig = Rig()
    for port in (40000, 40001, 40002):
        Tcp(rig, port=port).opened()
    held = rig.nic.held()
    held[1]["ctinfo"] = Ctinfo.NEW
    extra = held[3].copy()
    extra["cookie"] += 1 << 33
    found = rig.mirror.audit(np.append(np.delete(held, 5), extra))
    assert [(row, direction, Found(what).name) for _, row, direction, what, _ in found.tolist()] == [
        (0, 1, "DIFFERENT"), (1, 1, "EXTRA"), (2, 1, "MISSING"),
    ]  # fmt: skip


def test_a_table_that_is_mirrored_later_tells_all_it_has() -> None:
    from pcap_tests.test_datapath.tabled import Net

    net = Net(ANY)
    Tcp(net).opened()
    net.flows.mirrored()
    asks = net.flows.asks()
    assert asks["ask"].tolist() == [Asked.INSTALL]
    assert int(asks["flags"][0]) == FlowFlag.FLOW_BIDIRECTIONAL | FlowFlag.FLOW_ASSURED | FlowFlag.FLOW_SEEN_REPLY


class ResetsWhileHeard(FakeNic):
    """It begins anew while somebody asks for its replies, as soon as it is time. What is taken in that moment is new hardware's."""

    at = 1 << 62

    def replies(self, now: int) -> Any:
        if now >= self.at:
            self.at = 1 << 62
            self.reset()
            self.intake = 1 << 30
        return super().replies(now)


def test_a_reset_is_known_before_new_hardware_is_asked_for_anything() -> None:
    """Else an install that new hardware has taken is forgotten with the old one's, and its rule stays for good: its flow is on its way out."""
    nic = ResetsWhileHeard(latency=SECOND // 2)
    nic.intake = 0
    rig = Rig(nic=nic)
    talk = Tcp(rig).opened()
    talk.say(IN, "FA")
    rig.wait(1)
    assert (rig.mirror.waiting, rig.mirror.counters()["dropped_del"]) == (2, 1)
    nic.at = rig.now + 1
    rig.wait(5)
    rig.settle()
    assert (nic.resets, nic.rules, rig.flows.count) == (1, {}, 0)


def test_rows_that_wait_for_hardware_are_more_than_connections() -> None:
    """A full tracker makes room for newcomers while rows of those that had to go are still there: the mirror knows all of them."""
    rig = Rig(COMMITS, nic=FakeNic(latency=2 * SECOND), max=4, buckets=1)
    for port in range(1, 40):
        rig.send(craft.udp("10.0.0.1", "198.51.100.7", port, 53))
        rig.wait(0.2)
    assert rig.flows.count > 4
    rig.wait(40)
    rig.settle()
    rig.wait(3)
    assert (rig.mirror.counters()["strange"], rig.flows.count, rig.nic.rules) == (0, 0, {})


# --- what callers may get wrong --------------------------------------------------------------------------------------------------------


def test_nonsense_is_counted_and_changes_nothing() -> None:
    mirror = Mirror(4)
    asks = np.zeros(3, dtype=ASK_DTYPE)
    asks["row"], asks["ask"] = [4, 1, 1], [1, 9, 0]
    mirror.feed(asks, 1)
    replies = np.zeros(2, dtype=REPLY_DTYPE)
    replies["cookie"], replies["op"] = [2, (1 << 64) - 1], 1
    mirror.replies(replies, 1)
    assert (mirror.counters()["strange"], mirror.counters()["strays"], len(mirror.answers())) == (3, 2, 0)
    mirror.check()


def test_arrays_of_another_kind_are_refused() -> None:
    mirror = Mirror(4)
    with pytest.raises(ValueError, match="asks: expected"):
        mirror.feed(np.zeros(1), 0)
    with pytest.raises(ValueError, match="replies: expected"):
        mirror.replies(np.zeros(4, dtype=REPLY_DTYPE)[::2], 0)
    with pytest.raises(ValueError, match="sent: expected"):
        mirror.sent(1, 0)
    with pytest.raises(ConfigError, match="policy"):
        MirrorSettings(policy="by-colour")
    with pytest.raises(ConfigError, match="flows"):
        Mirror(0)


def test_a_flow_costs_less_than_two_hundred_bytes() -> None:
    """With the flow table's own 24 for what hardware counts of unknown directions."""
    assert BYTES_PER_FLOW + 24 <= 200

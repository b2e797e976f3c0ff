"""The mirror with a flow table before it and a NIC behind it: jobs, and what rules say (A1 to A5)."""

from __future__ import annotations

import errno

from ctcore.filter import Filter
from datapath import craft
from offload.contract.why import Why
from offload.records import COMMAND_DTYPE, Ctinfo
from pcap_tests.test_datapath.tabled import IN, OUT, Tcp, udp
from pcap_tests.test_datapath.test_pipeline.laboratory import SNAT
from pcap_tests.test_offload.fake_nic import ACCEPT, SECOND, FakeNic
from pcap_tests.test_offload.mirrored import Rig, ops, refusing

# --- jobs (A3) ------------------------------------------------------------------------------------------------------------------------------


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


def test_a3_20_counters_and_removals_wait_for_no_installs() -> None:
    """Hundreds of installs are waiting for a NIC that takes a command at a time."""
    rig = Rig()
    talks = [Tcp(rig, port=port).opened() for port in (40000, 40001)]
    rig.wait(1.5)
    rig.nic.intake = 1
    for port in range(1000, 1300):
        super(Rig, rig).send(craft.udp("10.0.0.1", "198.51.100.7", port, 53))
    rig.pump()
    assert rig.mirror.waiting > 290
    talks[1].say(IN, "FA")
    rig.wait(3)
    done = [op for op, row, _ in rig.nic.log if row in (0, 1)]
    assert done[4:].count("DESTROY") == 2 and done[4:].count("STATS") >= 2 and rig.mirror.waiting > 280


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


# --- rules (A4) -----------------------------------------------------------------------------------------------------------------------------


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


# --- packets (A5) ---------------------------------------------------------------------------------------------------------------------------


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

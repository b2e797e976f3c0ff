"""The contract's items of aging and teardown (A6, A7), of a flow table with a mirror behind it; in plain Python: test_contract_ends."""

from __future__ import annotations

import pytest

from ctcore.filter import Filter
from ctcore.types import Status, TcpFlag
from datapath import craft
from offload.records import Op
from pcap_tests.test_datapath.tabled import DAY, IN, OUT, SECOND, Tcp, assured_udp, udp
from pcap_tests.test_offload.fake_nic import ACCEPT, LOSE, FakeNic
from pcap_tests.test_offload.mirrored import Rig


def changes(nic: FakeNic) -> list[str]:
    return [op for op, _, _ in nic.log if op != "STATS"]


# --- aging (A6) ------------------------------------------------------------------------------------------------------------------------


def test_a6_44_who_is_busy_stays_and_who_is_idle_or_dead_goes() -> None:
    rig = Rig()
    for port in (40000, 40001):
        Tcp(rig, port=port).opened()
    udp(rig)
    for _ in range(12):
        rig.wait(3)
        assert rig.nic.hit(0, 0, 1, 60, rig.now)
    rig.tracker.delete(Filter(proto=17))
    rig.wait(1)
    counts = rig.flows.counters()
    assert (counts["flows"], counts["teardown_idle"], counts["teardown_dying"], {cookie >> 1 & 0xFFFFFFFF for cookie in rig.nic.rules}) == (
        1,
        2,
        0,
        {0},
    )


@pytest.mark.parametrize("extends", [True, False])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a6_45_less_than_five_minutes_become_a_day_in_hardware(kind: str, extends: bool) -> None:
    """Nobody but hardware sees a packet. Older kernels never extend."""
    rig = Rig(flowtable_extends=extends)
    if kind == "tcp":
        Tcp(rig).opened()
    else:
        assured_udp(rig)
        udp(rig, OUT)
    rig.tracker.update(Filter(), timeout=299)
    rig.nic.hit(0, 0, 1, 60, rig.now)
    rig.wait(1)
    assert rig.left() == pytest.approx(DAY if extends else 298, abs=1)


@pytest.mark.parametrize(("flags", "left"), [("FA", 300), ("RA", 9)])
def test_a6_45_what_closes_unseen_has_five_minutes_and_what_is_closed_keeps_what_it_has(flags: str, left: int) -> None:
    """With a TTL of 1 the table does not see it, and goes on serving."""
    rig = Rig()
    talk = Tcp(rig).opened()
    talk.say(OUT, flags, ttl=1)
    rig.wait(1)
    assert (rig.flows.count, rig.left()) == (1, pytest.approx(left, abs=0.1))


def test_a6_46_rules_are_removed_by_one_job_and_the_row_waits_for_it() -> None:
    rig = Rig(nic=FakeNic(latency=2 * SECOND + SECOND // 2))
    talk = Tcp(rig).opened()
    rig.wait(3)
    asked = rig.flows.counters()["hw_asks"]
    talk.say(IN, "FA")
    for second in range(3):
        assert (rig.flows.count, changes(rig.nic)) == (1, ["REPLACE"] * 2), second
        rig.wait(1)
    rig.wait(1)
    assert (rig.flows.count, changes(rig.nic)) == (0, ["REPLACE"] * 2 + ["DESTROY"] * 2)
    assert (rig.mirror.counters()["commands_del"], rig.flows.counters()["hw_asks"]) == (2, asked + 1)


def test_a6_46_rows_that_wait_for_their_removal_leave_the_ring_of_asks_to_others() -> None:
    """Hardware never answers a removal, and twenty wait for theirs, more than the ring has places: the one that is busy is asked for all the same."""
    nic = FakeNic()
    nic.fate = lambda command: LOSE if command["op"] == Op.DESTROY else ACCEPT
    rig = Rig(nic=nic, asks=8)
    talks = [Tcp(rig, port=port).opened() for port in range(40000, 40021)]
    for talk in talks[:20]:
        talk.say(IN, "FA")
    rig.wait(5)
    asked = rig.flows.counters()["hw_asks_lost"]
    for _ in range(60):
        rig.wait(1)
        assert rig.nic.hit(20, 0, 1, 60, rig.now)
    counts = rig.flows.counters()
    assert (counts["flows"], counts["teardown_idle"], counts["hw_asks_lost"]) == (21, 0, asked)


def test_a6_46_a_row_that_hardware_was_never_told_of_goes_at_once() -> None:
    rig = Rig()
    super(Rig, rig).send(craft.udp("10.0.0.1", "198.51.100.7", 1, 53))
    rig.flows.flush()
    rig.wait(1)
    assert (rig.flows.count, rig.nic.log) == (0, [])


def test_a6_47_act_ct_tears_down_at_once_so_that_nothing_of_what_closes_is_served() -> None:
    """CLOSING, which would keep the software entry, is nftables' only: from the FIN on packets are tracked, whatever hardware still has."""
    rig = Rig(nic=FakeNic(latency=SECOND // 2))
    talk = Tcp(rig).opened()
    rig.wait(1)
    served = rig.flows.counters()["served"]
    talk.say(IN, "FA")
    assert [talk.say(side).offload for side in (OUT, IN, OUT)] == ["not_tcp_state"] * 3
    assert (len(rig.nic.rules), rig.flows.counters()["served"]) == (2, served)
    rig.wait(2)
    assert (rig.nic.rules, rig.flows.count) == ({}, 0)


# --- the end (A7) ----------------------------------------------------------------------------------------------------------------------


def test_a7_52_only_the_first_teardown_fixes_the_connection_up() -> None:
    rig = Rig(nic=FakeNic(latency=2 * SECOND))
    talk = Tcp(rig).opened()
    rig.wait(3)
    talk.say(IN, "FA")
    assert not rig.conn()["status"] & Status.OFFLOAD
    left = rig.left()
    rig.flows.flush()
    talk.say(OUT, "RA", ttl=1)
    closed = rig.left()
    rig.wait(1)
    counts = rig.flows.counters()
    assert (counts["teardown_fin"], counts["teardown_flush"], counts["teardown_rst"]) == (1, 0, 0)
    assert (left, closed, rig.left()) == (120, 10, 9)


def test_a7_53_a_connection_that_ages_out_keeps_its_state_and_has_its_timeout() -> None:
    rig = Rig(timeouts={"tcp_timeout_established": 7440})
    Tcp(rig).opened()
    rig.wait(10)
    rig.flows.flush()
    assert (int(rig.conn()["tcp"]["state"]), rig.left()) == (3, 7440)
    rig.wait(2)
    assert not rig.in_hardware()


def test_a7_54_windows_are_learnt_anew_from_what_hardware_let_pass() -> None:
    rig = Rig()
    talk = Tcp(rig).opened()
    rig.wait(2)
    assert rig.nic.hit(0, 0, 10**6, 1500, rig.now)
    rig.flows.flush()
    assert rig.conn()["tcp"]["side"]["maxwin"].tolist() == [0, 0]
    assert not any(flags & TcpFlag.TF_MAXACK_SET for flags in rig.conn()["tcp"]["flags"].tolist())
    talk.next[IN] += 3_000_000_000
    said = talk.say(IN, "R")
    assert (said.l4state, said.state) == ("CLOSE", "established")


@pytest.mark.parametrize(("answered", "left"), [(False, 30), (True, 120)])
def test_a7_55_a_datagram_flow_comes_back_with_the_timeout_of_its_kind(answered: bool, left: int) -> None:
    rig = Rig()
    udp(rig)
    if answered:
        udp(rig, OUT)
    rig.wait(1)
    assert rig.left() >= DAY - 1
    rig.flows.flush()
    assert rig.left() == left


def test_a7_56_an_idle_stream_comes_back_with_ninety_seconds() -> None:
    rig = Rig()
    assured_udp(rig)
    udp(rig, OUT)
    rig.wait(31)
    assert (rig.flows.counters()["teardown_idle"], rig.left()) == (1, pytest.approx(89, abs=1.1))

"""The contract's items on how flows end (A6, A7), in plain Python."""

from __future__ import annotations

import pytest

from ctcore.types import Proto, Status, TcpState
from offload.contract import aging
from offload.contract.aging import Deed, collect, teardown
from offload.contract.objects import FlowFlag, Settings
from offload.contract.why import Why
from pcap_tests.test_offload.contracted import ASSURED, BOTH_WAYS, HZ, LINUX, ONE_WAY, T, flow

TCP, UDP, GRE = Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_GRE
DAY = 86_400 * HZ
IN_HARDWARE = int(Status.HW_OFFLOAD)


@pytest.mark.parametrize(("status", "flags", "now", "why"), [
    (ASSURED, FlowFlag.HW, T - 1, None),
    (ASSURED, FlowFlag.HW, T, Why.TEARDOWN_IDLE),
    (ASSURED | Status.DYING, FlowFlag.HW, 0, Why.TEARDOWN_DYING),
    (BOTH_WAYS | IN_HARDWARE, FlowFlag.HW, 0, Why.TEARDOWN_OUTDATED),
    (BOTH_WAYS, FlowFlag.HW, 0, None),
    (ONE_WAY | IN_HARDWARE, FlowFlag.HW, 0, None),
    (BOTH_WAYS | IN_HARDWARE, FlowFlag.HW | FlowFlag.HW_PENDING, 0, None),
    (BOTH_WAYS | IN_HARDWARE, FlowFlag.HW | FlowFlag.HW_ESTABLISHED, 0, None),
])  # fmt: skip
def test_a6_44_what_is_idle_dying_or_outdated_is_torn_down(status, flags, now, why):
    one = flow(UDP, status, flags=flags)
    assert aging.ending(one, now) == why
    collect(one, now, LINUX)
    assert bool(one.flags & FlowFlag.TEARDOWN) is (why is not None)


@pytest.mark.parametrize(("proto", "state", "left"), [
    (UDP, None, DAY), (TCP, TcpState.TCP_ESTABLISHED, DAY), (TCP, TcpState.FIN_WAIT, 300 * HZ), (TCP, TcpState.TIME_WAIT, 300 * HZ),
    (TCP, TcpState.SYN_RECV, 299 * HZ), (TCP, TcpState.CLOSE, 299 * HZ), (GRE, None, 299 * HZ),
])  # fmt: skip
def test_a6_45_less_than_five_minutes_become_more(proto, state, left):
    one = flow(proto, tcp_state=state)
    one.conn.timeout = 299 * HZ
    collect(one, 0, LINUX)
    assert one.conn.timeout == left
    one.conn.timeout = 299 * HZ
    collect(one, 0, Settings(extends=False))
    assert one.conn.timeout == 299 * HZ


def test_a6_46_a_flow_in_hardware_is_freed_only_behind_its_rules():
    one = flow()
    deeds = [collect(one, T, LINUX), collect(one, T + HZ, LINUX)]
    aging.rules_gone(one)
    assert [*deeds, collect(one, T + 2 * HZ, LINUX)] == [Deed.DELETE, Deed.NOTHING, Deed.FREE]
    assert collect(flow(flags=FlowFlag(0)), T, LINUX) == Deed.FREE


def test_a6_47_a_closing_flow_loses_its_rules_and_stays():
    one = flow(flags=FlowFlag.HW | FlowFlag.CLOSING)
    assert [collect(one, 0, LINUX), collect(one, HZ, LINUX)][0] == Deed.DELETE
    assert not one.flags & FlowFlag.TEARDOWN


@pytest.mark.parametrize(("now", "deed"), [(3 * HZ, Deed.NOTHING), (3 * HZ + 1, Deed.COUNT)])
def test_a6_48_hardware_is_asked_when_a_tenth_of_the_time_is_over(now, deed):
    assert collect(flow(), now, LINUX) == deed


def test_a6_49_what_hardware_saw_keeps_a_flow():
    one = flow()
    aging.counted(one, 7 * HZ, LINUX)
    aging.counted(one, 5 * HZ, LINUX)
    assert one.timeout == 7 * HZ + T


def test_a7_52_only_the_first_teardown_changes_the_connection():
    one = flow()
    teardown(one, 0, LINUX)
    assert not one.conn.status & Status.OFFLOAD
    one.conn.timeout, one.conn.windows_known = 5, [True, True]
    teardown(one, 0, LINUX)
    assert (one.conn.timeout, one.conn.windows_known) == (5, [True, True])


def test_a7_53_a_closing_connection_is_closed():
    one = flow(flags=FlowFlag.HW | FlowFlag.CLOSING)
    teardown(one, 0, LINUX)
    assert (one.conn.tcp_state, one.conn.timeout) == (TcpState.CLOSE, 10 * HZ)


def test_a7_54_windows_are_forgotten():
    one = flow()
    teardown(one, 0, LINUX)
    assert one.conn.windows_known == [False, False]


@pytest.mark.parametrize(("status", "left"), [(ONE_WAY, 30), (BOTH_WAYS, 120), (ASSURED, 120)])
def test_a7_55_a_datagram_flow_gets_its_own_timeout_back(status, left):
    one = flow(UDP, status)
    teardown(one, 0, LINUX)
    assert one.conn.timeout == left * HZ


def test_a7_55_others_keep_what_they_have():
    one = flow(GRE)
    teardown(one, 0, LINUX)
    assert one.conn.timeout == DAY


@pytest.mark.parametrize(("proto", "status", "left"), [(UDP, ASSURED, 90), (UDP, ONE_WAY, 0), (TCP, ASSURED, 86_400 - 30)])
def test_a7_56_what_was_idle_has_lost_its_idle_time(proto, status, left):
    """Of TCP the day that came with the admission is less than 432,000 - 30 s."""
    one = flow(proto, status)
    teardown(one, T, LINUX)
    assert one.conn.timeout - T == left * HZ

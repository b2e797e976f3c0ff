"""A connection as an entry: made of either direction's command, told by the kernel, counted. Without a kernel; with one: test_conntrack_entries."""

from __future__ import annotations

import socket
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.types import CONN_DTYPE, Status, TcpState
from offload.entry import FRESH, RAISED, Entry, Told, bypass_key, commands_of, rows_for, told_of, turned
from offload.netlink.conntrack import OFFLOAD, UNCOUNTED
from offload.records import Ctinfo, Op
from pcap_tests.test_offload.commanded import GRE, UDP, Flow, S, commands

BOTH = Flow(4, sport=41_000, to=("198.51.100.1", 6000, "203.0.113.5", 8080), zone=9, mark=0x42, label=7 << 64 | 5)
SIX = Flow(3, src="2001:db8:1::7", dst="2001:db8:2::9", to=("2001:db8:1::7", 40_000, "2001:db8:3::1", 8080))
FLOWS = (Flow(1), BOTH, SIX, Flow(2, UDP, to=("198.51.100.1", 6000, "192.0.2.9", 80)), Flow(5, GRE, sport=0, dport=0))


def entry_of(flow: Flow, *directions: int, ctinfo: int = Ctinfo.ESTABLISHED) -> Entry:
    both = list(commands_of(commands(Op.REPLACE, flow, ctinfo=ctinfo)))
    entry = Entry(both[directions[0]], 300.0, S)
    for d in directions:
        entry.ctinfo[d] = both[d].ctinfo
    return entry


@pytest.mark.parametrize("flow", FLOWS)
def test_either_direction_knows_both_tuples(flow):
    first, second = commands_of(commands(Op.REPLACE, flow))
    a, b = entry_of(flow, 0), entry_of(flow, 1)
    assert a.keys == b.keys == (first.match, second.match) and a.number == b.number == flow.cookie() >> 1
    assert a.means(first) and a.means(second) and not a.means(next(commands_of(commands(Op.REPLACE, Flow(1, dport=81)))))
    assert turned(turned(first.match)) == first.match and (a.cookie(0), a.cookie(1)) == (first.cookie, second.cookie)


def test_what_is_let_by_is_what_a_packet_has():
    """Source, destination, ports in network order, protocol, family; and no zone."""
    expected = struct.pack("16s16sBBBBBB2x", socket.inet_aton("10.1.0.7"), socket.inet_aton("192.0.2.9"), 41_000 >> 8, 41_000 & 0xFF, 0, 80, 6, 4)
    assert bypass_key(entry_of(BOTH, 0).keys[0]) == expected


NAT = int(Status.SRC_NAT), int(Status.DST_NAT)


@pytest.mark.parametrize(
    ("flow", "directions", "ctinfo", "status"),
    [
        (Flow(1), (0,), Ctinfo.ESTABLISHED, RAISED),
        (BOTH, (0, 1), Ctinfo.ESTABLISHED, RAISED | sum(NAT)),
        (SIX, (0, 1), Ctinfo.ESTABLISHED, RAISED | NAT[1]),
        (FLOWS[3], (0,), Ctinfo.NEW, NAT[0]),
        (FLOWS[3], (0,), Ctinfo.ESTABLISHED, NAT[0] | int(Status.SEEN_REPLY)),
        (FLOWS[3], (0, 1), Ctinfo.ESTABLISHED, NAT[0] | RAISED),
        (FLOWS[3], (1,), Ctinfo.ESTABLISHED, NAT[0] | RAISED),
        (FLOWS[4], (0,), Ctinfo.ESTABLISHED, RAISED),
    ],
)
def test_status_says_who_has_answered_and_what_is_translated(flow, directions, ctinfo, status):
    assert int(rows_for([entry_of(flow, *directions, ctinfo=ctinfo)], 250)["status"][0]) == status | Status.CONFIRMED


def test_what_the_kernel_has_seen_is_not_taken_back():
    entry = entry_of(FLOWS[3], 0, ctinfo=Ctinfo.NEW)
    entry.seen = RAISED
    assert int(rows_for([entry], 250)["status"][0]) & RAISED == RAISED


def test_rows_say_what_commands_said():
    entries = [entry_of(flow, 0, 1) for flow in FLOWS]
    rows = rows_for(entries, 77_000)
    told = list(told_of(rows, rows["status"].astype(np.uint32), 250))
    assert [each.keys for each in told] == [entry.keys for entry in entries]
    assert [(each.mark, each.label) for each in told] == [(entry.mark, entry.label) for entry in entries]
    assert {each.left for each in told} == {308.0}
    assert [each.state for each in told] == [TcpState.TCP_ESTABLISHED if flow.proto == 6 else 0 for flow in FLOWS]
    assert list(told_of(np.zeros(0, dtype=CONN_DTYPE), np.zeros(0, dtype=np.uint32), 250)) == []


# --- as the kernel tells it -------------------------------------------------------------------------------------------------------------------


def said(entry: Entry, packets=(0, 0), *, status: int = RAISED, left: float = 300.0, state: int = 3) -> Told:
    return Told(entry.keys, status, left, state, 0, bytes(16), list(packets), [100 * n for n in packets])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=20))
def test_all_that_was_counted_is_told_once(steps):
    entry, total = entry_of(Flow(1), 0, 1), [0, 0]
    sum_told = [0, 0]
    for second, (orig, reply) in enumerate(steps, 2):
        total = [total[0] + orig, total[1] + reply]
        entry.takes(said(entry, total), second * S)
        for d in range(2):
            packets, octets = entry.untold(d)
            assert octets == 100 * packets and entry.untold(d) == (0, 0)
            sum_told[d] += packets
            if (orig, reply)[d]:
                assert entry.used[d] == second * S
    assert sum_told == total


def test_one_that_was_made_anew_has_counted_what_it_says():
    entry = entry_of(Flow(1), 0, 1)
    entry.takes(said(entry, (100, 100)), 2 * S)
    entry.untold(0)
    entry.takes(said(entry, (7, 0)), 3 * S)
    assert entry.untold(0) == (7, 700)


def test_what_was_counted_before_may_be_left_out():
    entry = entry_of(Flow(1), 0, 1)
    entry.takes(said(entry, (100, 5)), 2 * S)
    entry.forgive()
    assert (entry.untold(0), entry.untold(1), tuple(entry.used)) == ((0, 0), (0, 0), (0, 0))


@pytest.mark.parametrize(
    ("left", "status", "used"),
    [(290, 0, False), (291.4, 0, False), (300, 0, True), (120, 0, True), (432_000, 0, True), (0, OFFLOAD, True)],
)
def test_without_counters_a_lifetime_says_that_packets_came(left, status, used):
    """300 s were left ten seconds ago."""
    entry = entry_of(Flow(1), 0, 1)
    entry.takes(said(entry, left=left, status=RAISED | UNCOUNTED | status), 11 * S)
    assert tuple(entry.used) == ((11 * S, 11 * S) if used else (0, 0)) and not entry.counted


@pytest.mark.parametrize(("state", "over"), [(0, False), (3, False), (4, True), (7, True), (8, True)])
def test_a_talk_that_is_about_to_end(state, over):
    entry = entry_of(Flow(1), 0)
    entry.takes(said(entry, state=state), 2 * S)
    assert entry.over == over


def test_what_was_asked_for_one_direction_serves_the_other_for_a_moment():
    entry = entry_of(Flow(1), 0, 1)
    entry.takes(said(entry), 2 * S)
    entry.owed = 1
    assert entry.known(1, 2 * S + FRESH - 1)
    assert not entry.known(1, 2 * S + FRESH) and not entry.known(0, 2 * S) and not entry.known(1, S)

"""What a rule of a connection matches and does (offload contract A4), by item."""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from datapath import craft
from offload.records import Ctinfo, Op
from offload.simnic.results import Flag, Verdict, Why
from offload.simnic.rules import Match, NicRule, Send
from pcap_tests.test_offload.test_simnic import nic_side as side
from pcap_tests.test_offload.test_simnic.nic_side import Conn, forwarding, ruled

A = Conn("10.0.0.1", "192.0.2.9", 40000, 80)
A6 = Conn("2001:db8::1", "2001:db8::9", 40000, 80)
NATED = replace(A, to_src="198.51.100.1", to_sport=1024)


def tcp(flags: str = "A", **more) -> bytes:
    return craft.tcp("10.0.0.1", "192.0.2.9", 40000, 80, flags, **more)


def anew(data: bytes) -> bytes:
    """The frame with all checksums as scapy makes them."""
    packet = Ether(data)
    for layer in (IP, TCP, UDP):
        if layer in packet:
            del packet[layer].chksum
    return bytes(packet)


def test_a4_25_each_direction_has_a_cookie_of_its_own():
    back = Conn("192.0.2.9", "10.0.0.1", 80, 40000, ctinfo=Ctinfo.ESTABLISHED_REPLY, cookie=3)
    nic = forwarding(A, back)
    assert nic.destroy(A) == 0
    assert nic.frame(tcp()).why == Why.CT_MISS
    assert nic.frame(craft.tcp("192.0.2.9", "10.0.0.1", 80, 40000, "A")).verdict == Verdict.FORWARDED


@pytest.mark.parametrize("other", [
    craft.udp("10.0.0.1", "192.0.2.9", 40000, 80),
    craft.tcp("10.0.0.2", "192.0.2.9", 40000, 80, "A"),
    craft.tcp("10.0.0.1", "192.0.2.8", 40000, 80, "A"),
    craft.tcp("10.0.0.1", "192.0.2.9", 40001, 80, "A"),
    craft.tcp("10.0.0.1", "192.0.2.9", 40000, 81, "A"),
])  # fmt: skip
def test_a4_26_a_rule_matches_its_tuple_and_no_other(other):
    nic = forwarding(A)
    assert nic.frame(tcp()).verdict == Verdict.FORWARDED
    assert nic.frame(other).why == Why.CT_MISS


@pytest.mark.parametrize("flags", ["F", "FA", "R", "RA", "FR"])
def test_a4_27_fin_and_rst_miss_and_are_never_counted(flags):
    nic = forwarding(A)
    assert nic.frame(tcp(flags)).why == Why.CT_CLOSING
    assert nic.stats(A)["packets"] == 0 and nic.counters()["packets"].sum() == 0


def test_a4_27_a_syn_is_forwarded_as_established_counted_and_flagged():
    nic = forwarding(A)
    syn = nic.frame(tcp("S"))
    assert (syn.verdict, syn.state) == (Verdict.FORWARDED, side.TRK | side.EST)
    assert syn.row["flags"] & Flag.SYN and nic.syns == 1
    assert not nic.frame(tcp("A")).row["flags"] & Flag.SYN and nic.syns == 1


def test_a4_28_the_zone_is_that_of_the_table():
    nic = forwarding(replace(A, zone=side.ZONE + 1))
    assert nic.frame(tcp()).why == Why.CT_MISS


def test_a4_29_both_directions_match_as_received():
    back = Conn("192.0.2.9", "198.51.100.1", 80, 1024, to_dst="10.0.0.1", to_dport=40000, ctinfo=Ctinfo.ESTABLISHED_REPLY, cookie=3)
    nic = forwarding(NATED, back)
    there = nic.frame(tcp(payload=b"hello"))
    assert there.left == [(craft.tcp("198.51.100.1", "192.0.2.9", 1024, 80, "A", payload=b"hello"), side.OUT, False)]
    again = nic.frame(craft.tcp("192.0.2.9", "198.51.100.1", 80, 1024, "A", payload=b"world"))
    assert again.left == [(craft.tcp("192.0.2.9", "10.0.0.1", 80, 40000, "A", payload=b"world"), side.OUT, False)]
    assert again.state == side.TRK | side.EST | side.RPL


def test_a4_30_addresses_and_ports_are_written_before_the_next_chain_sees_the_metadata():
    """What follows matches on all that the entry's actions have made of the frame."""
    conn = replace(A, to_src="198.51.100.1", to_dst="10.9.9.9", to_sport=5, to_dport=8080, mark=7)
    behind = [("src_ip", 0xC6336401 << 96), ("dst_ip", 0x0A090909 << 96), ("src_port", 5), ("dst_port", 8080), ("ct_mark", 7), ("ct_zone", side.ZONE)]
    bits = {"src_ip": 0xFFFFFFFF << 96, "dst_ip": 0xFFFFFFFF << 96, "src_port": 0xFFFF, "dst_port": 0xFFFF, "ct_mark": 0xFFFFFFFF, "ct_zone": 0xFFFF}
    matches = tuple(Match(name, value, bits[name]) for name, value in behind)
    nic = ruled(side.track(), NicRule(1, 0, 1, matches, (Send(side.OUT),)))
    side.installed(nic, [conn])
    assert nic.frame(tcp()).left == [(craft.tcp("198.51.100.1", "10.9.9.9", 5, 8080, "A"), side.OUT, False)]


@pytest.mark.parametrize("change", [{"to_src": "198.51.100.1"}, {"to_dst": "10.9.9.9"}, {"to_sport": 5}, {"to_dport": 8080}, {
    "to_src": "198.51.100.1", "to_dst": "10.9.9.9", "to_sport": 5, "to_dport": 8080,
}])  # fmt: skip
@pytest.mark.parametrize("proto", [side.TCP, side.UDP])
def test_a4_31_what_differs_is_written_and_nothing_else(change, proto):
    conn = replace(A, proto=proto, **change)
    make = {side.TCP: lambda *key: craft.tcp(*key, "A", payload=b"odd"), side.UDP: lambda *key: craft.udp(*key, b"odd")}[proto]
    (left,) = forwarding(conn).frame(make("10.0.0.1", "192.0.2.9", 40000, 80)).left
    to = conn.to_src or conn.src, conn.to_dst or conn.dst, conn.to_sport or conn.sport, conn.to_dport or conn.dport
    assert left[0] == make(*to) == anew(left[0])


@pytest.mark.parametrize("proto", [side.TCP, side.UDP])
def test_a4_32_ipv6_addresses_are_written_word_by_word(proto):
    conn = replace(A6, proto=proto, to_src="2001:db8:ffff:eeee:dddd:cccc:bbbb:aaaa", to_dport=8080)
    make = {side.TCP: lambda *key: craft.tcp(*key, "A", payload=b"odd"), side.UDP: lambda *key: craft.udp(*key, b"odd")}[proto]
    (left,) = forwarding(conn).frame(make("2001:db8::1", "2001:db8::9", 40000, 80)).left
    assert left[0] == make("2001:db8:ffff:eeee:dddd:cccc:bbbb:aaaa", "2001:db8::9", 40000, 8080) == anew(left[0])
    assert Ether(left[0])[IPv6].hlim == 64


def test_a4_32_only_tcp_and_udp_are_translated():
    gre = Conn("10.0.0.1", "192.0.2.9", 0, 0, side.GRE)
    nic = forwarding()
    assert nic.replace(replace(gre, to_src="198.51.100.1")) == errno.EOPNOTSUPP
    assert nic.replace(gre) == 0
    assert nic.frame(craft.frame("10.0.0.1", "192.0.2.9", 47, bytes(8))).verdict == Verdict.FORWARDED
    assert nic.frame(craft.frame("10.0.0.1", "192.0.2.9", 47, b"\0\1" + bytes(6))).why == Why.CT_PROTO


def test_a4_33_checksums_are_right_and_nothing_else_of_the_frame_changes():
    frame = tcp(payload=b"x" * 31, ttl=7)
    (left,) = forwarding(NATED).frame(frame).left
    changed = {i for i, (one, other) in enumerate(zip(frame, left[0], strict=True)) if one != other}
    assert changed <= {*range(24, 26), *range(26, 30), *range(34, 36), *range(50, 52)}  # IP checksum and source, source port, TCP checksum
    assert left[0] == anew(left[0]) and Ether(left[0])[IP].ttl == 7


def test_a4_33_a_wrong_checksum_stays_as_wrong_and_udp_without_one_stays_without():
    wrong = forwarding(NATED).frame(tcp(l4_checksum=0x1234)).left[0][0]
    assert wrong != anew(wrong)
    udp = replace(NATED, proto=side.UDP)
    left = forwarding(udp).frame(craft.udp("10.0.0.1", "192.0.2.9", 40000, 80, l4_checksum=0)).left[0][0]
    assert left == craft.udp("198.51.100.1", "192.0.2.9", 1024, 80, l4_checksum=0)


def test_a4_33_a_frame_that_was_captured_in_part_is_translated():
    whole = tcp(payload=bytes(100))
    (left,) = forwarding(NATED).frame(whole[:60], missing=len(whole) - 60).left
    assert left[0] == craft.tcp("198.51.100.1", "192.0.2.9", 1024, 80, "A", payload=bytes(100))[:60]


def test_a4_34_metadata_is_the_connection_its_mark_and_labels():
    nic = forwarding(replace(A, conn=77, mark=0xDEADBEEF, label=1 << 100 | 5))
    row = nic.frame(tcp()).row
    assert (row["conn"], row["mark"], row["zone_restore"]) == (77, 0xDEADBEEF, side.ZONE)
    assert nic.label(int(row["labels"])) == 1 << 100 | 5


@pytest.mark.parametrize(("ctinfo", "state"), [
    (Ctinfo.NEW, side.TRK | side.NEW), (Ctinfo.ESTABLISHED, side.TRK | side.EST), (Ctinfo.ESTABLISHED_REPLY, side.TRK | side.EST | side.RPL),
])  # fmt: skip
def test_a4_35_the_state_is_that_of_the_metadata(ctinfo, state):
    udp = replace(A, proto=side.UDP, ctinfo=ctinfo, cookie=2 | (ctinfo == Ctinfo.ESTABLISHED_REPLY))
    nic = forwarding(udp)
    assert nic.frame(craft.udp("10.0.0.1", "192.0.2.9", 40000, 80)).state == state


def test_a4_36_a_mark_alone_is_not_propagated_and_another_state_is():
    udp = replace(A, proto=side.UDP, ctinfo=Ctinfo.NEW, mark=1)
    frame = craft.udp("10.0.0.1", "192.0.2.9", 40000, 80)
    nic = forwarding(udp)
    assert nic.replace(replace(udp, mark=2)) == errno.EEXIST
    assert nic.frame(frame).row["mark"] == 1
    assert nic.replace(replace(udp, mark=2, ctinfo=Ctinfo.ESTABLISHED)) == 0
    then = nic.frame(frame)
    assert (then.row["mark"], then.state) == (2, side.TRK | side.EST)
    assert nic.stats(udp)["packets"] == 2, "an update keeps the counter"
    assert nic.entries == 1


def test_held_gives_the_rules_back():
    conns = [replace(NATED, conn=77, mark=5, label=1 << 70 | 3), replace(A6, cookie=8)]
    nic = forwarding(*conns)
    held = nic.held()
    assert sorted(held.tobytes()[i : i + 120] for i in (0, 120)) == sorted(conn.command().tobytes() for conn in conns)
    assert (held["op"] == Op.REPLACE).all() and isinstance(held, np.ndarray)

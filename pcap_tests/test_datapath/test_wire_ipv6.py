"""parse() on IPv6: chains of extension headers, their lengths, atomic fragments, jumbograms.

Not here: what is the same over IPv4 (test_wire).
"""

from __future__ import annotations

import numpy as np
import pytest

from ctcore.types import Reason, Verdict
from datapath import craft as t
from pcap_tests.test_datapath.rows import SYN6, assert_invalid, assert_l4, assert_not_seen, eth6, parse

A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "2001:db8::1", "2001:db8::2"


CHAINS = [
    ((t.HOP_BY_HOP, t.options6()),),
    ((t.ROUTING, bytes([0, 4, 0, 0, 0, 0, 0])),),
    ((t.AH, bytes([4]) + bytes(22)),),
    ((t.AH, bytes([1]) + bytes(10)),),
    ((t.FRAGMENT, t.fragment6()),),
    ((t.HOP_BY_HOP, t.options6(2)), (t.DESTINATION, t.options6()), (t.FRAGMENT, t.fragment6()), (t.AH, bytes([4]) + bytes(22)),
     (t.DESTINATION, t.options6(30))),
]  # fmt: skip


@pytest.mark.parametrize("ext", CHAINS)
def test_extension_headers_are_skipped(ext):
    row = parse(eth6(ext=ext))
    assert_l4(row, "ok")
    skipped = sum(1 + len(rest) for kind, rest in ext if kind != t.FRAGMENT)
    assert (row["l4_len"], row["ip_len"], row["key"]["proto"], row["key"]["dport"]) == (20, 60 + skipped, t.TCP, 2)


@pytest.mark.parametrize("proto", [t.ESP, 135, 139, 253, 41])
def test_other_protocols_end_the_chain(proto):
    row = parse(t.frame(A6, B6, proto, b"abc"))
    assert_l4(row, "ok")
    assert (row["key"]["proto"], row["key"]["sport"], row["key"]["dport"], row["l4_len"]) == (proto, 0, 0, 3)


BAD_CHAINS = [
    t.frame(A6, B6, t.NO_NEXT),
    t.frame(A6, B6, t.NO_NEXT, bytes(40)),
    t.frame(A6, B6, t.DESTINATION),
    t.frame(A6, B6, t.DESTINATION, b"\6"),
    t.frame(A6, B6, t.DESTINATION, b"", ext=((t.DESTINATION, t.options6()),)),
]


@pytest.mark.parametrize("packet", BAD_CHAINS)
def test_unparsable_chain(packet):
    assert_invalid(parse(packet), "ip6_chain")


@pytest.mark.parametrize("proto", [t.TCP, t.UDP, t.SCTP, t.UDPLITE, t.ICMPV6, t.ICMP])
def test_transport_header_beyond_the_packet(proto):
    assert_invalid(parse(t.frame(A6, B6, t.DESTINATION, bytes([proto, 1, 1, 4, 0, 0, 0, 0]))), "l4_beyond")


@pytest.mark.parametrize("units", [0, 3], ids=["ends with the packet", "ends beyond"])
@pytest.mark.parametrize("proto", [253, t.GRE, t.ESP])
def test_nothing_behind_the_headers_is_tracked_where_the_tuple_needs_no_bytes(proto, units):
    row = parse(t.frame(A6, B6, t.DESTINATION, bytes([proto, units, 1, 4, 0, 0, 0, 0])))
    assert_l4(row, "ok")
    assert (row["l4_len"], row["l4_have"], row["ip_len"]) == (0, 0, 48)
    assert_l4(parse(t.frame(A, B, proto)), "ok")


@pytest.mark.parametrize("header", [b"", b"\6", bytes([6, 1, 1, 4, 0, 0, 0, 0]), bytes([59, 255, 1, 4, 0, 0, 0, 0])])
def test_a_hop_by_hop_header_beyond_the_packet_is_dropped_before_conntrack(header):
    assert_not_seen(parse(t.frame(A6, B6, t.HOP_BY_HOP, header)), "ip_header")


@pytest.mark.parametrize(
    ("options", "fine"),
    [
        (bytes(6), True),  # Pad1 each
        (bytes([1, 4, 0, 0, 0, 0]), True),
        (bytes([200, 4, 1, 2, 3, 4]), True),  # unknown, and to be refused: by hosts, that is
        (bytes([5, 2, 0, 0, 0, 0]), True),  # router alert
        (bytes([1, 5, 0, 0, 0, 0]), False),  # reaches beyond the header
        (bytes([200, 9, 0, 0, 0, 0]), False),
        (bytes([0, 0, 0, 0, 0, 5]), False),  # no room for its length
        (bytes([194, 4, 0, 1, 0, 0]), False),  # a jumbo payload, beside a length
        (bytes([194, 3, 0, 1, 0, 0]), False),
    ],
)
def test_malformed_hop_by_hop_options_cost_the_packet_before_conntrack(options, fine):
    segment = t.tcp_segment(A6, B6, 1, 2, "S")
    header = (t.HOP_BY_HOP, bytes([0]) + options)
    row = parse(t.eth(t.ipv6(A6, B6, t.TCP, segment, ext=(header,)), t.ETH_IPV6))
    assert_l4(row, "ok") if fine else assert_not_seen(row, "ip6_malformed")
    # Where it is not the first header, nobody looks into it before conntrack.
    assert_l4(parse(t.eth(t.ipv6(A6, B6, t.TCP, segment, ext=((t.DESTINATION, t.options6()), header)), t.ETH_IPV6)), "ok")


def test_a_jumbo_payload_has_to_be_one():
    """RFC 2675: larger than 65,535 bytes, all there, aligned, and the usual length is 0."""

    def jumbo(length: int, there: int) -> np.void:
        options = bytes([6, 0, 194, 4]) + length.to_bytes(4, "big")
        return parse(t.eth(t.ipv6(A6, B6, t.HOP_BY_HOP, options + bytes(there - 8), length=0), t.ETH_IPV6))

    assert jumbo(70000, 70000)["reason"] != Reason.R_IP6_MALFORMED
    for length, there in ((65535, 70000), (70001, 70000), (20, 20)):
        assert_not_seen(jumbo(length, there), "ip6_malformed")
    unaligned = bytes([6, 1, 0, 194, 4, 0, 1, 0x11, 0x70, 0, 0, 0, 0, 0, 0, 0])
    assert_not_seen(parse(t.eth(t.ipv6(A6, B6, t.HOP_BY_HOP, unaligned + bytes(70000 - 16), length=0), t.ETH_IPV6)), "ip6_malformed")


@pytest.mark.parametrize("proto", [t.HOP_BY_HOP, t.ROUTING, t.DESTINATION, t.AH, t.FRAGMENT, t.NO_NEXT])
def test_nothing_behind_an_atomic_fragments_header_is_refused_by_reassembly(proto):
    atomic = (t.FRAGMENT, t.fragment6())
    assert_not_seen(parse(t.frame(A6, B6, proto, ext=(atomic,))), "ip6_malformed")
    for length in (1, 2, 3):
        assert_not_seen(parse(t.frame(A6, B6, t.FRAGMENT, bytes(length))), "ip6_malformed")
        assert_invalid(parse(t.frame(A6, B6, t.FRAGMENT, bytes(length), ext=(atomic,))), "ip6_chain")
    # Without a length there is nothing to reassemble.
    assert_invalid(parse(t.eth(t.ipv6(A6, B6, proto, bytes(8), ext=(atomic,), length=0), t.ETH_IPV6)), "ip6_chain")
    # Anything behind it, or a transport protocol, is conntrack's business.
    assert_invalid(parse(t.frame(A6, B6, proto, b"\x3b", ext=(atomic,))), "ip6_chain")
    assert_invalid(parse(t.frame(A6, B6, t.UDP, ext=(atomic,))), "tuple_short")


@pytest.mark.parametrize(("proto", "need"), [(t.TCP, 20), (t.UDP, 8), (t.ICMPV6, 8), (253, 1)])
def test_a_first_fragment_that_ends_within_its_header_is_not_held(proto, need):
    def first(length: int) -> np.void:
        return parse(t.frame(A6, B6, proto, bytes(length), ext=((t.FRAGMENT, t.fragment6(0, True)),)))

    assert_not_seen(first(need), "fragment")
    for length in range(need):
        assert first(length)["verdict"] != Verdict.HELD
    if proto == t.TCP:
        assert_invalid(first(3), "tuple_short")
        assert_l4(first(8), "tcp_short")


def test_the_header_of_an_atomic_fragment_is_not_counted():
    """Linux takes the first one out; of an empty packet, and of a second header, it leaves it."""
    atomic = (t.FRAGMENT, t.fragment6())
    assert parse(t.udp(A6, B6, 1, 2, payload=b"x", ext=(atomic,)))["ip_len"] == 49
    assert parse(t.udp(A6, B6, 1, 2, payload=b"x", ext=(atomic, atomic)))["ip_len"] == 57
    assert parse(t.frame(A6, B6, 253, b"", ext=(atomic,)))["ip_len"] == 48


def test_only_the_first_fragment_header_can_hold_a_packet():
    atomic = (t.FRAGMENT, t.fragment6())
    assert_l4(parse(t.frame(A6, B6, 253, b"abc", ext=(atomic, (t.FRAGMENT, t.fragment6(0, True))))), "ok")
    assert_invalid(parse(t.frame(A6, B6, 253, b"abc", ext=(atomic, (t.FRAGMENT, t.fragment6(8))))), "ip6_chain")


def test_without_a_length_but_with_hop_by_hop_options_a_packet_ends_where_the_frame_ends():
    packet = t.eth(t.ipv6(A6, B6, t.TCP, SYN6, ext=((t.HOP_BY_HOP, t.options6()),), length=0), t.ETH_IPV6)
    row = parse(packet)
    assert_l4(row, "ok")
    assert row["ip_len"] == 68
    row = parse(t.eth(t.ipv6(A6, B6, t.TCP, SYN6, length=0), t.ETH_IPV6))
    assert_invalid(row, "tuple_short")
    assert row["ip_len"] == 40

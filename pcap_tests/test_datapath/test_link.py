"""Link layers: the same IP packet in every wrapping gives the same row."""

from __future__ import annotations

import struct

import pytest

from ctcore import reasons
from ctcore.types import Verdict
from datapath import craft as t
from datapath import frame as f
from datapath.frame import frames_of
from datapath.wire import parse_batch

PACKET4 = t.tcp("10.0.0.1", "10.0.0.2", 40000, 80, "S", seq=7)[14:]
PACKET6 = t.tcp("2001:db8::1", "2001:db8::2", 40000, 80, "S", seq=7)[14:]
PACKETS = {4: PACKET4, 6: PACKET6}
TYPES = {4: t.ETH_IPV4, 6: t.ETH_IPV6}


def null(family: int, order: str) -> bytes:
    return struct.pack(order + "I", family)


def wrappings(version: int) -> list[tuple[str, int, bytes]]:
    """(name, link type, frame) for each way a packet of this IP version may come."""
    ip, kind = PACKETS[version], TYPES[version]
    families = (2,) if version == 4 else (10, 24, 28, 30)
    ppp = 0x0021 if version == 4 else 0x0057
    return [
        ("ethernet", f.LINK_ETHERNET, t.eth(ip, kind)),
        *[(f"vlan {tag:#x}", f.LINK_ETHERNET, t.eth(ip, kind, vlan=(5,), tag=tag)) for tag in (0x8100, 0x88A8, 0x9100, 0x9200)],
        ("four tags", f.LINK_ETHERNET, t.eth(ip, kind, vlan=(5, 6, 7, 8))),
        ("mpls", f.LINK_ETHERNET, t.eth(t.mpls(ip, 100), 0x8847)),
        ("mpls multicast, 16 labels", f.LINK_ETHERNET, t.eth(t.mpls(ip, *range(16)), 0x8848)),
        ("mpls in vlan", f.LINK_ETHERNET, t.eth(t.mpls(ip, 1, 2, 3), 0x8847, vlan=(9,))),
        ("pppoe", f.LINK_ETHERNET, t.eth(t.pppoe(ip, ppp), 0x8864)),
        ("pppoe compressed", f.LINK_ETHERNET, t.eth(t.pppoe(ip, ppp, compressed=True), 0x8864)),
        ("pppoe in two vlans", f.LINK_ETHERNET, t.eth(t.pppoe(ip, ppp), 0x8864, vlan=(1, 2))),
        ("sll", f.LINK_SLL, t.sll(ip, kind)),
        ("sll vlan", f.LINK_SLL, t.sll(struct.pack("!HH", 5, kind) + ip, t.ETH_VLAN)),
        ("sll2", f.LINK_SLL2, t.sll2(ip, kind)),
        ("sll2 vlan", f.LINK_SLL2, t.sll2(struct.pack("!HH", 5, kind) + ip, t.ETH_VLAN)),
        *[(f"raw {link}", link, ip) for link in (f.LINK_RAW, f.LINK_RAW_12, f.LINK_RAW_14)],
        ("ip only", f.LINK_IPV4 if version == 4 else f.LINK_IPV6, ip),
        *[(f"null {order} {af}", f.LINK_NULL, null(af, order) + ip) for af in families for order in "<>"],
        *[(f"loop {af}", f.LINK_LOOP, null(af, ">") + ip) for af in families],
    ]


def parse(packet: bytes, link: int):
    return parse_batch(*frames_of([packet], link=link)).array[0]


@pytest.mark.parametrize(("version", "case"), [(v, case) for v in (4, 6) for case in wrappings(v)], ids=lambda x: x if isinstance(x, int) else x[0])
def test_every_wrapping_gives_the_same_packet(version, case):
    _, link, frame = case
    expected = parse(t.eth(PACKETS[version], TYPES[version]), f.LINK_ETHERNET)
    row = parse(frame, link)
    assert row["l3_off"] == len(frame) - len(PACKETS[version])
    assert row["key"] == expected["key"]
    for field in ("seq", "l4_len", "l4_have", "ip_len", "doff", "tcp_flags", "verdict", "state", "reason", "l4_reason"):
        assert row[field] == expected[field], field


@pytest.mark.parametrize(("version", "case"), [(v, case) for v in (4, 6) for case in wrappings(v)], ids=lambda x: x if isinstance(x, int) else x[0])
def test_every_cut_of_the_wrapping(version, case):
    """On the wire: short in its link layer. In the capture: snapped."""
    _, link, frame = case
    headers = len(frame) - len(PACKETS[version])
    nibble = link in (f.LINK_RAW, f.LINK_RAW_12, f.LINK_RAW_14) or "mpls" in case[0]
    for length in range(headers + (1 if nibble else 0)):
        row = parse(frame[:length], link)
        assert (reasons.NAMES[row["reason"]], row["verdict"]) == ("frame_short", Verdict.DROP), length
        memory, frames = frames_of([frame[:length]], link=link)
        frames["len"] = len(frame)
        row = parse_batch(memory, frames).array[0]
        assert (reasons.NAMES[row["reason"]], row["verdict"], row["wire_len"]) == ("snapped", Verdict.ACCEPT, len(frame)), length


NOT_IP = {
    "arp": (f.LINK_ETHERNET, t.eth(bytes(46), 0x0806)),
    "llc": (f.LINK_ETHERNET, t.eth(b"\x42\x42\x03" + bytes(35), 38)),
    "snap with IP": (f.LINK_ETHERNET, t.eth(b"\xaa\xaa\x03\0\0\0\x08\0" + PACKET4, 8 + len(PACKET4))),
    "snap with IP in a vlan": (f.LINK_ETHERNET, t.eth(b"\xaa\xaa\x03\0\0\0\x08\0" + PACKET4, 8 + len(PACKET4), vlan=(3,))),
    "five tags": (f.LINK_ETHERNET, t.eth(PACKET4, vlan=(1, 2, 3, 4, 5))),
    "mpls pseudowire": (f.LINK_ETHERNET, t.eth(t.mpls(bytes(4) + t.eth(PACKET4), 100), 0x8847)),
    "seventeen labels": (f.LINK_ETHERNET, t.eth(t.mpls(PACKET4, *range(17)), 0x8847)),
    "pppoe discovery": (f.LINK_ETHERNET, t.eth(t.pppoe(PACKET4), 0x8863)),
    "pppoe with a code": (f.LINK_ETHERNET, t.eth(t.pppoe(PACKET4, code=9), 0x8864)),
    "ppp lcp": (f.LINK_ETHERNET, t.eth(t.pppoe(bytes(10), 0xC021), 0x8864)),
    "ppp compressed": (f.LINK_ETHERNET, t.eth(t.pppoe(bytes(10), 0xFD, compressed=True), 0x8864)),
    "sll arp": (f.LINK_SLL, t.sll(bytes(28), 0x0806)),
    "sll 802.3": (f.LINK_SLL, t.sll(PACKET4, 1)),
    "sll2 arp": (f.LINK_SLL2, t.sll2(bytes(28), 0x0806)),
    "raw version 5": (f.LINK_RAW, b"\x50" + PACKET4[1:]),
    "null family 7": (f.LINK_NULL, null(7, "<") + PACKET4),
    "loop little endian": (f.LINK_LOOP, null(2, "<") + PACKET4),
    "null with both halves": (f.LINK_NULL, bytes([2, 0, 2, 0]) + PACKET4),
    "unknown link type": (147, PACKET4),
}


@pytest.mark.parametrize("case", NOT_IP)
def test_not_ip(case):
    link, frame = NOT_IP[case]
    row = parse(frame, link)
    assert (reasons.NAMES[row["reason"]], row["verdict"], row["key"]["family"]) == ("not_ip", Verdict.ACCEPT, 0)


def test_pppoe_length_bounds_the_packet():
    """Bytes behind it are padding; an IP length beyond it is beyond the packet; a length beyond the frame makes the frame too short."""
    padded = t.eth(t.pppoe(PACKET4) + b"\xaa" * 9, 0x8864)
    assert reasons.NAMES[parse(padded, f.LINK_ETHERNET)["reason"]] == "ok"
    inside = t.eth(t.pppoe(PACKET4, length=len(PACKET4) + 1), 0x8864)
    assert reasons.NAMES[parse(inside, f.LINK_ETHERNET)["reason"]] == "ip_truncated"
    beyond = t.eth(t.pppoe(PACKET4, length=len(PACKET4) + 3), 0x8864)
    assert reasons.NAMES[parse(beyond, f.LINK_ETHERNET)["reason"]] == "frame_short"
    assert reasons.NAMES[parse(t.eth(t.pppoe(PACKET4, length=1), 0x8864), f.LINK_ETHERNET)["reason"]] == "frame_short"


def test_a_version_that_contradicts_the_link_layer():
    for link, packet in ((f.LINK_IPV4, PACKET6), (f.LINK_IPV6, PACKET4), (f.LINK_SLL, t.sll(PACKET6)), (f.LINK_NULL, null(30, "<") + PACKET4)):
        assert reasons.NAMES[parse(packet, link)["reason"]] == "ip_version"

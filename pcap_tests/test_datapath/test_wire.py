"""parse(): what a packet's row says, and why a packet has none to say anything with.

Not here: chains of IPv6 (test_wire_ipv6), link layers (test_link), cuts and random bytes (test_wire_hostile), comparison with scapy
(test_wire_scapy).
"""

from __future__ import annotations

import struct

import numpy as np
import pytest

import datapath.wire
from ctcore.types import State, Verdict
from datapath import craft as t
from datapath.frame import FRAME_DTYPE, frames_of
from datapath.wire import parse_batch
from pcap_tests.test_datapath.rows import SYN6, assert_invalid, assert_l4, assert_not_seen, eth6, parse

A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "2001:db8::1", "2001:db8::2"
NO_FLOW = 0xFFFFFFFF


def test_the_compiled_module_is_loaded():
    assert datapath.wire.__file__.endswith(".so")


def as_dict(row: np.void) -> dict:
    values = {field: row[field].item() for field in row.dtype.names if field not in ("key", "l4")}
    key = row["key"]
    return values | {field: key[field].tobytes() if field in ("src", "dst") else key[field].item() for field in key.dtype.names}


@pytest.mark.parametrize("tags", [(), (5,)], ids=["straight way", "general way"])
def test_every_field_of_a_tcp_packet(tags):
    segment = t.tcp_segment(A, B, 40000, 80, "PA", seq=0xFEDCBA98, ack=0x12345678, win=0xABCD, options=b"\1\1\1\0", payload=b"hello")
    packet = t.eth(t.ipv4(A, B, t.TCP, segment, ttl=7), vlan=tags, pad=72)
    memory, frames = frames_of([b"\xee" * 3, packet], ts=[1, 1_700_000_000_123_456_789])
    batch = parse_batch(memory, frames, zone=0xBEEF)
    row = batch.array[1]
    off = 14 + 4 * len(tags)
    assert as_dict(row) == {
        "src": t.address(A) + bytes(12), "dst": t.address(B) + bytes(12), "sport": 40000, "dport": 80, "zone": 0xBEEF, "proto": 6, "family": 4,
        "now": 1_700_000_000_123_456_789, "hash": 0, "flow": NO_FLOW, "seq": 0xFEDCBA98, "ack": 0x12345678, "win": 0xABCD, "doff": 24,
        "tcp_flags": 0x18, "l4_len": 29, "l4_have": 29, "ip_len": 49, "wire_len": 72, "l4_reason": 0, "verdict": Verdict.PENDING, "reason": 0,
        "state": State.NOT_SEEN, "hop_limit": 7, "flaw": 0, "l3_off": off, "index": 1,
    }  # fmt: skip
    assert row["l4"] - memory.ctypes.data == 3 + off + 20
    assert batch.l4_bytes(1) == segment


def test_every_field_of_an_ipv6_packet():
    packet = t.udp(A6, B6, 53, 5353, b"abc", ttl=255, ext=((t.HOP_BY_HOP, t.options6()), (t.DESTINATION, t.options6(1))))
    row = parse(packet, ts=5)
    assert as_dict(row) == {
        "src": t.address(A6), "dst": t.address(B6), "sport": 53, "dport": 5353, "zone": 0, "proto": 17, "family": 6, "now": 5, "hash": 0,
        "flow": NO_FLOW, "seq": 0, "ack": 0, "win": 0, "doff": 0, "tcp_flags": 0, "l4_len": 11, "l4_have": 11, "ip_len": 40 + 8 + 16 + 11,
        "wire_len": 14 + 40 + 8 + 16 + 11, "l4_reason": 0, "verdict": Verdict.PENDING, "reason": 0, "state": State.NOT_SEEN, "hop_limit": 255,
        "l3_off": 14, "index": 0, "flaw": 0,
    }  # fmt: skip


def test_a_row_holds_nothing_of_the_packet_before():
    """Both ways through parse() write every field: the rows of a batch do not depend on their neighbours."""
    packets = [t.tcp(A, B, 1, 2, "A", payload=b"x" * 99), b"", t.udp(A6, B6, 3, 4), t.tcp(A, B, 1, 2, "SF"), t.icmp(A, B, 8), t.tcp(A, B, 1, 2, "S")]
    alone = [as_dict(parse(p)) | {"index": i} for i, p in enumerate(packets)]
    assert [as_dict(row) for row in parse_batch(*frames_of(packets)).array] == alone


ABOUT, ABOUT6 = t.udp(A, B, 1, 2), t.udp(A6, B6, 1, 2)


@pytest.mark.parametrize(
    ("packet", "settings", "flaw"),
    [
        (t.icmp_error(B, A, 3, 3, ABOUT, l4_checksum=1), {"checksum": False, "nat": True}, 1),
        (t.icmp_error(B, A, 5, 1, ABOUT, l4_checksum=1), {"checksum": False, "nat": True}, 1),
        (t.icmp_error(B6, A6, 1, 4, ABOUT6, l4_checksum=1), {"checksum": False, "nat": True}, 1),
        (t.icmp_error(B6, A6, 137, 0, ABOUT6, l4_checksum=1), {"checksum": False, "nat": True}, 1),
        (t.icmp_error(B, A, 3, 3, ABOUT), {"checksum": False, "nat": True}, 0),
        (t.icmp_error(B, A, 3, 3, ABOUT, l4_checksum=1), {"checksum": False}, 0),
        (t.icmp(A, B, 8, l4_checksum=1), {"checksum": False, "nat": True}, 0),
        (t.tcp(A, B, 1, 2, "S", l4_checksum=1), {"checksum": False, "nat": True}, 0),
    ],
)
def test_translation_looks_at_the_sums_of_errors_that_nobody_verifies(packet, settings, flaw):
    """With --checksum 0 they pass; translated they would leave with good ones, so they must not."""
    row = parse_batch(*frames_of([packet]), **settings).array[0]
    assert (row["flaw"], row["verdict"]) == (flaw, Verdict.PENDING)


def test_more_packets_than_are_fetched_ahead():
    packets = [t.tcp(A, B, i, 80, "S", seq=i) for i in range(100)]
    array = parse_batch(*frames_of(packets)).array
    assert array["key"]["sport"].tolist() == array["seq"].tolist() == array["index"].tolist() == list(range(100))


# --- packets that conntrack does not see ---------------------------------------------------------------------------------------------------

SYN = t.tcp_segment(A, B, 1, 2, "S")


def eth4(**fields) -> bytes:
    return t.eth(t.ipv4(A, B, t.TCP, SYN, **fields))


NOT_SEEN = {
    "not_ip": [t.eth(bytes(46), 0x0806), t.eth(bytes(46), 46), t.eth(bytes(46), 0x8863)],
    "frame_short": [b"", bytes(13), t.eth(b"\0", vlan=(1,))[:17]],
    "ip_version": [eth4(version=6), eth4(version=5), eth4(version=0), eth6(version=4), t.eth(t.ipv4(A, B, 6, bytes(40)), t.ETH_IPV6)],
    "ip_header": [eth4(ihl=4), eth4(ihl=0), t.eth(t.ipv4(A, B, t.TCP, ihl=6)), t.eth(b"\x45" * 19), t.eth(b"\x60" * 39, t.ETH_IPV6), t.eth(b"")],
    "ip_length": [eth4(length=19), eth4(length=0), t.eth(t.ipv4(A, B, t.TCP, SYN, options=bytes(8), length=27))],
    "ip_truncated": [eth4(length=41), eth4(length=0xFFFF), eth6(length=21), eth6(length=0xFFFF)],
    "ip_checksum": [eth4(ip_checksum=0), eth4(ip_checksum=0x1234), t.eth(t.ipv4(A, B, t.TCP, SYN, options=bytes(4), ip_checksum=1))],
    "fragment": [
        eth4(frag=0x2000), eth4(frag=1), eth4(frag=0x1FFF), t.eth(t.ipv4(A, B, t.TCP, b"", frag=0x2000)),
        eth6(ext=((t.FRAGMENT, t.fragment6(0, True)),)), eth6(ext=((t.FRAGMENT, t.fragment6(8)),)),
        eth6(ext=((t.HOP_BY_HOP, t.options6()), (t.FRAGMENT, t.fragment6(1480, True)))),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "packet"), [(reason, packet) for reason, packets in NOT_SEEN.items() for packet in packets])
def test_not_seen(reason, packet):
    assert_not_seen(parse(packet), reason)
    assert_not_seen(parse(packet, checksum=False), reason)


@pytest.mark.parametrize("reason", ["ip_length", "ip_truncated", "ip_checksum", "fragment"])
def test_a_readable_header_is_named_in_the_record(reason):
    for packet in NOT_SEEN[reason]:
        key = parse(packet)["key"]
        a, b = (A, B) if key["family"] == 4 else (A6, B6)
        assert (key["src"].tobytes(), key["dst"].tobytes(), key["proto"]) == (t.address(a).ljust(16, b"\0"), t.address(b).ljust(16, b"\0"), t.TCP)


def test_dont_fragment_and_the_reserved_bit_are_no_fragments():
    for frag in (0x4000, 0x8000, 0xC000):
        assert_l4(parse(eth4(frag=frag)), "ok")


def test_padding_is_cut_off_and_not_counted():
    row = parse(eth4().ljust(60, b"\xaa"))
    assert_l4(row, "ok")
    assert (row["l4_len"], row["ip_len"], row["wire_len"]) == (20, 40, 60)
    row = parse(eth6().ljust(90, b"\xaa"))
    assert_l4(row, "ok")
    assert (row["l4_len"], row["ip_len"], row["wire_len"]) == (20, 60, 90)


def test_a_caplen_beyond_the_wire_length_counts_as_the_wire_length():
    memory, frames = frames_of([eth4()])
    frames["len"] = 10
    row = parse_batch(memory, frames).array[0]
    assert_l4(row, "ok")
    assert row["wire_len"] == 54


# --- tuples --------------------------------------------------------------------------------------------------------------------------------


def ports(packet: bytes) -> tuple[int, int]:
    row = parse(packet)
    assert_l4(row, "ok")
    return row["key"]["sport"].item(), row["key"]["dport"].item()


@pytest.mark.parametrize(("a", "b"), [(A, B), (A6, B6)])
def test_tuples_of_each_protocol(a, b):
    assert ports(t.tcp(a, b, 40000, 80)) == (40000, 80)
    assert ports(t.udp(a, b, 65535, 1)) == (65535, 1)
    assert ports(t.udplite(a, b, 5, 6, sum_proto=t.UDP)) == (5, 6)
    assert ports(t.sctp(a, b, 7, 8, 0, t.sctp_init(1))) == (7, 8)
    assert ports(t.icmp(a, b, 8 if a == A else 128, 3, ident=0xABCD)) == (0xABCD, (8 if a == A else 128) << 8 | 3)
    assert ports(t.gre(a, b, payload=b"12345678")) == (0, 0)
    assert ports(t.gre(a, b, version=1, proto=0x880B, call=0x1234)) == (0, 0x1234)
    assert ports(t.gre(a, b, version=2, payload=b"12345678")) == (0, 0)
    assert ports(t.frame(a, b, t.ESP, b"12345678")) == (0, 0)


def test_icmp_types_without_an_id_still_fill_the_tuple():
    assert ports(t.icmp(A, B, 9, 0, ident=0x0102, sequence=0x0304, payload=bytes(8))) == (0x0102, 9 << 8)


@pytest.mark.parametrize("length", range(8))
def test_short_gre_is_one_connection_per_pair_of_addresses(length):
    whole = struct.pack("!BBHHH", 0x20, 1, 0x880B, 4, 99)
    assert ports(t.frame(A, B, t.GRE, whole[:length])) == (0, 0)
    assert ports(t.frame(A, B, t.GRE, whole)) == (0, 99)


def test_icmp_of_the_other_family_has_a_tuple_and_no_checks():
    row = parse(t.frame(A, B, t.ICMPV6, struct.pack("!BBHHH", 128, 0, 1, 77, 0)))
    assert_l4(row, "ok")
    assert (row["key"]["sport"], row["key"]["dport"]) == (77, 128 << 8)
    assert_l4(parse(t.frame(A6, B6, t.ICMP, struct.pack("!BBHHH", 8, 0, 1, 77, 0))), "ok")
    assert_invalid(parse(t.frame(A, B, t.ICMPV6, bytes(7))), "tuple_short")


INVALID = {
    "tuple_short": [t.frame(a, b, p, bytes(n)) for a, b in ((A, B), (A6, B6)) for p in (t.TCP, t.UDP, t.SCTP, t.UDPLITE) for n in (0, 3)],
    "gre_not_ppp": [t.gre(A, B, version=1, proto=0x0800, call=1)],
    "icmp_short": [t.frame(A, B, t.ICMP, bytes(7)), t.frame(A6, B6, t.ICMPV6, bytes(7)), t.frame(A, B, t.ICMP)],
}


@pytest.mark.parametrize(("reason", "packet"), [(reason, packet) for reason, packets in INVALID.items() for packet in packets])
def test_invalid_before_the_lookup(reason, packet):
    assert_invalid(parse(packet), reason)
    assert_invalid(parse(packet, checksum=False), reason)


# --- checks whose outcome the tracker hears of -----------------------------------------------------------------------------------------------


def cut_l4(a: str, b: str, proto: int, segment: bytes, length: int) -> bytes:
    """A packet whose IP length says that its L4 ends after `length` bytes."""
    return t.frame(a, b, proto, segment[:length])


@pytest.mark.parametrize(("a", "b"), [(A, B), (A6, B6)])
def test_l4_cut_at_every_length(a, b):
    """Whatever is missing, the first check that misses it says so."""
    tcp = t.tcp_segment(a, b, 1, 2, "A", options=b"\1\1\1\1", payload=b"data")
    udp = t.udp_segment(a, b, 1, 2, b"data")
    crc = t.sctp(a, b, 1, 2, 0, t.sctp_init(1))[14 + (20 if a == A else 40) :]
    steps = {
        t.TCP: (tcp, [(4, "tuple_short"), (20, "tcp_short"), (24, "tcp_doff"), (28, "tcp_checksum")]),
        t.UDP: (udp, [(4, "tuple_short"), (8, "udp_short"), (12, "udp_length")]),
        t.SCTP: (crc, [(4, "tuple_short"), (12, "sctp_short"), (32, "sctp_checksum")]),
    }
    for proto, (segment, limits) in steps.items():
        for length in range(len(segment) + 1):
            reason = next((reason for limit, reason in limits if length < limit), "ok")
            row = parse(cut_l4(a, b, proto, segment, length))
            (assert_invalid if reason == "tuple_short" else assert_l4)(row, reason)


@pytest.mark.parametrize("doff", range(16))
def test_tcp_data_offset(doff):
    row = parse(t.tcp(A, B, 1, 2, "A", payload=bytes(12), doff=doff))
    assert_l4(row, "ok" if 5 <= doff <= 8 else "tcp_doff")
    assert row["doff"] == 4 * doff


@pytest.mark.parametrize("flags", range(256))
def test_tcp_flags(flags):
    core = "".join(letter for letter in "FSRAU" if flags & t.FLAG_BITS[letter])
    valid = core in ("S", "SU", "SA", "R", "RA", "FA", "FAU", "A", "AU")
    for packet in (t.tcp(A, B, 1, 2, flags), t.tcp(A6, B6, 1, 2, flags)):
        row = parse(packet)
        assert_l4(row, "ok" if valid else "tcp_flags")
        assert row["tcp_flags"] == flags


def test_order_of_the_tcp_checks():
    assert_l4(parse(t.tcp(A, B, 1, 2, "SF", doff=15, l4_checksum=1)), "tcp_doff")
    assert_l4(parse(t.tcp(A, B, 1, 2, "SF", l4_checksum=1)), "tcp_checksum")
    assert_l4(parse(t.tcp(A, B, 1, 2, "SF", l4_checksum=1), checksum=False), "tcp_flags")


@pytest.mark.parametrize(("a", "b"), [(A, B), (A6, B6)])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 9, 40, 1459, 1460])
def test_every_bit_of_checksummed_packets_counts(a, b, size):
    payload = bytes(i * 7 & 0xFF for i in range(size))
    builders = {
        "tcp_checksum": t.tcp(a, b, 1, 2, "A", payload=payload),
        "udp_checksum": t.udp(a, b, 1, 2, payload),
        "icmp_checksum": t.icmp(a, b, 8 if a == A else 128, payload=payload),
        "sctp_checksum": t.sctp(a, b, 1, 2, 0, t.sctp_chunk(0, 3, payload)),
    }
    for reason, packet in builders.items():
        assert_l4(parse(packet), "ok")
        at = len(packet) - 1
        broken = packet[:at] + bytes([packet[at] ^ 0x10])
        judge = assert_invalid if reason == "icmp_checksum" else assert_l4
        judge(parse(broken), reason)
        assert_l4(parse(broken, checksum=False), "ok")


def test_udp_without_a_checksum():
    assert_l4(parse(t.udp(A, B, 1, 2, b"abc", l4_checksum=0)), "ok")
    assert_l4(parse(t.udp(A6, B6, 1, 2, b"abc", l4_checksum=0)), "ok")


@pytest.mark.parametrize(("length", "reason"), [(0, "udp_length"), (7, "udp_length"), (8, "udp_checksum"), (11, "ok"), (12, "udp_length")])
def test_udp_length_and_the_sum_over_all_bytes_present(length, reason):
    """Linux sums what is there, whatever the header says: a sender's sum over a shorter UDP length does not fit."""
    segment = t.udp_segment(A, B, 1, 2, b"abc", length=length)
    if length == 8:
        short = t.udp_segment(A, B, 1, 2)
        segment = short + b"abc"
    assert_l4(parse(t.frame(A, B, t.UDP, segment)), reason)


@pytest.mark.parametrize(
    ("coverage", "reason"),
    [(0, "ok"), (1, "udp_length"), (7, "udp_length"), (8, "ok"), (9, "ok"), (11, "ok"), (12, "udp_length")],
)
@pytest.mark.parametrize(("a", "b"), [(A, B), (A6, B6)])
def test_udplite_coverage(a, b, coverage, reason):
    assert_l4(parse(t.udplite(a, b, 1, 2, b"abc", coverage=coverage, sum_proto=t.UDP)), reason)


def test_an_icmp_message_of_zeros_has_a_good_sum():
    """A quirk of Linux, over IPv4: it sums the IP header as well, so that nothing makes 0xFFFF."""
    assert_l4(parse(t.frame(A, B, t.ICMP, bytes(40))), "ok")
    assert_invalid(parse(t.frame(A, B, t.ICMP, bytes(39) + b"\1")), "icmp_checksum")
    assert_invalid(parse(t.frame(A6, B6, t.ICMPV6, bytes([129]) + bytes(39))), "icmp_checksum")


def test_udplite_sum_is_taken_with_udps_protocol_number():
    """A quirk of Linux: what RFC 3828 asks for is taken for bad. A missing checksum is bad even where none is verified."""
    assert_l4(parse(t.udplite(A, B, 1, 2, b"abc")), "udp_checksum")
    assert_l4(parse(t.udplite(A, B, 1, 2, b"abc"), checksum=False), "ok")
    assert_l4(parse(t.udplite(A, B, 1, 2, b"abc", l4_checksum=0), checksum=False), "udp_checksum")
    assert_l4(parse(t.udplite(A, B, 1, 2, b"ab")[:42] + b"xx"), "udp_checksum")
    uncovered = t.udplite(A, B, 1, 2, b"abc", coverage=8, sum_proto=t.UDP)
    assert_l4(parse(uncovered[:-1] + b"X"), "ok")


@pytest.mark.parametrize(("a", "b", "length"), [(A, B, 264 & 0xFF), (A6, B6, 264)])
def test_udplite_sum_over_ipv4_has_the_lowest_byte_of_the_length(a, b, length):
    """Another quirk of Linux: from 256 bytes on, what UDP would ask for is bad over IPv4."""
    for coverage in (0, 8):
        data = struct.pack("!HHHH", 1, 2, coverage, 0) + bytes(256)
        for summed, reason in ((length, "ok"), (length ^ 256, "udp_checksum")):
            value = t.checksum(t.pseudo(a, b, t.UDP, summed) + data[: coverage or len(data)])
            assert_l4(parse(t.frame(a, b, t.UDPLITE, data[:6] + value.to_bytes(2, "big") + data[8:])), reason)


def test_pseudo_header_uses_the_fixed_headers_destination():
    """Segments left in a routing header or not: nf_ip6_checksum takes the address of the fixed header."""
    routing = (t.ROUTING, bytes([2, 0, 1, 0, 0, 0, 0]) + t.address("2001:db8::99"))
    assert_l4(parse(t.eth(t.ipv6(A6, B6, t.TCP, SYN6, ext=(routing,)), t.ETH_IPV6)), "ok")
    final = t.tcp_segment(A6, "2001:db8::99", 1, 2, "S")
    assert_l4(parse(t.eth(t.ipv6(A6, B6, t.TCP, final, ext=(routing,)), t.ETH_IPV6)), "tcp_checksum")


# --- the interface -------------------------------------------------------------------------------------------------------------------------


def test_no_frames_at_all():
    batch = parse_batch(b"", np.zeros(0, dtype=FRAME_DTYPE))
    assert len(batch) == 0 and len(batch.array) == 0


@pytest.mark.parametrize(
    ("offset", "caplen"), [(0, 101), (1, 100), (101, 0), (1 << 63, 1), ((1 << 64) - 1, 2), ((1 << 64) - 1, 0xFFFFFFFF), (50, 0xFFFFFFFF)]
)
def test_frames_outside_memory_are_refused(offset, caplen):
    frames = np.zeros(3, dtype=FRAME_DTYPE)
    frames[1]["offset"], frames[1]["caplen"] = offset, caplen
    with pytest.raises(ValueError, match=r"frames\[1\]: expected offset \+ caplen within the 100 bytes"):
        parse_batch(bytes(100), frames)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros(10, dtype=np.uint16), np.zeros(0, dtype=FRAME_DTYPE)),
        (np.zeros((2, 5), dtype=np.uint8), np.zeros(0, dtype=FRAME_DTYPE)),
        (b"", np.zeros(0, dtype=np.uint8)),
        (b"", np.zeros((0, 2), dtype=FRAME_DTYPE)),
        (b"", [(0, 0, 0, 0, 0, 0)]),
    ],
)
def test_wrong_arrays_are_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        parse_batch(*arguments)


def test_wrong_zone_is_refused():
    with pytest.raises(ValueError, match="zone = 65536: expected 0 to 65535"):
        parse_batch(b"", np.zeros(0, dtype=FRAME_DTYPE), zone=65536)


def test_strided_frames_and_read_only_memory():
    packets = [t.tcp(A, B, i, 80, "S") for i in range(10)]
    memory, frames = frames_of(packets)
    assert parse_batch(bytes(memory), frames[::3]).array["key"]["sport"].tolist() == [0, 3, 6, 9]


def test_the_batch_keeps_the_memory_alive():
    def parsed():
        return parse_batch(*frames_of([t.udp(A, B, 1, 2, b"payload that must live on")]))

    batch = parsed()
    _ = [bytes(100) for _ in range(1000)]
    assert batch.l4_bytes(0).endswith(b"payload that must live on")

"""parse() and input that wants to hurt: packets cut everywhere, snapped everywhere, random bytes, between guard pages.

Invariant: whatever the bytes, parse() reads only the captured ones, every row has a verdict or a tuple to be looked up, and l4 + l4_have
exceeds neither the capture nor the IP length.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore import reasons
from ctcore.types import State, Verdict
from datapath import craft as t
from datapath.wire import parse_batch
from pcap_tests.conftest import examples
from pcap_tests.test_datapath.guarded import LINKS, Guarded, check_row

A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "2001:db8::1", "2001:db8::2"

UDP4, UDP6 = t.udp(A, B, 1, 2, b"question"), t.udp(A6, B6, 1, 2, b"question")
EXT6 = ((t.HOP_BY_HOP, t.options6()), (t.FRAGMENT, t.fragment6()), (t.AH, bytes([4]) + bytes(22)))

# name -> (frame, bytes that must have been captured for the packet to be judged)
SAMPLES = {
    "tcp": (t.tcp(A, B, 1, 2, "A", payload=b"x" * 30), 54),
    "tcp options": (t.tcp(A, B, 1, 2, "A", options=bytes(40), payload=b"x" * 3), 94),
    "tcp ip options": (t.eth(t.ipv4(A, B, t.TCP, t.tcp_segment(A, B, 1, 2, "A", payload=b"abc"), options=b"\1" * 12)), 66),
    "tcp ipv6": (t.tcp(A6, B6, 1, 2, "A", payload=b"x" * 5), 74),
    "udp": (UDP4, 42),
    "udp ipv6 chain": (t.udp(A6, B6, 1, 2, b"abc", ext=EXT6), 14 + 40 + 8 + 8 + 24 + 8),
    "udplite": (t.udplite(A, B, 1, 2, b"abcdefgh", sum_proto=t.UDP), 42),
    "echo": (t.icmp(A, B, 8, payload=b"x" * 20), 42),
    "echo ipv6": (t.icmp(A6, B6, 128, payload=b"x" * 20), 62),
    "error": (t.icmp_error(B, A, 3, 3, UDP4), 14 + 20 + 8 + 20 + 4),
    "error quoting icmp": (t.icmp_error(B, A, 11, 0, t.icmp(A, B, 8)), 14 + 20 + 8 + 20 + 8),
    "error quoting a fragment": (t.icmp_error(B, A, 11, 0, t.udp(A, B, 1, 2, b"abc", frag=8)), 14 + 20 + 8 + 20),
    "error ipv6": (t.icmp_error(B6, A6, 1, 4, UDP6), 14 + 40 + 8 + 40 + 4),
    "error ipv6 quoting a chain": (t.icmp_error(B6, A6, 3, 0, t.udp(A6, B6, 1, 2, ext=EXT6)), 14 + 40 + 8 + 40 + 40 + 4),
    "redirect ipv6": (t.icmp(A6, B6, 137, payload=bytes(48)), 14 + 40 + 8 + 48),
    "sctp": (t.sctp(A, B, 1, 2, 0, t.sctp_init(9)), 14 + 20 + 12 + 20),
    "gre": (t.gre(A, B, payload=b"x" * 10), 38),
    "pptp": (t.gre(A, B, version=1, proto=0x880B, call=3, payload=b"x" * 10), 42),
    "generic": (t.frame(A, B, 253, b"x" * 10), 34),
}


@pytest.fixture(scope="module")
def guarded() -> Guarded:
    return Guarded()


def parse_guarded(guarded: Guarded, packet: bytes, **kwargs) -> np.void:
    """The row of a packet that ends where the memory ends, the same as of one that begins where it begins."""
    rows = []
    for place in (guarded.at_end, guarded.at_start):
        frame = place(packet, **kwargs)
        row = parse_batch(guarded.memory, frame).array[0]
        check_row(row, guarded.memory, frame)
        rows.append(row.copy())
    assert [rows[0][name] for name in rows[0].dtype.names if name != "l4"] == [rows[1][name] for name in rows[1].dtype.names if name != "l4"]
    return rows[0]


@pytest.mark.parametrize("name", SAMPLES)
def test_cut_on_the_wire(guarded, name):
    packet, _ = SAMPLES[name]
    header = 20 if packet[14] >> 4 == 4 else 40
    for length in range(len(packet)):
        row = parse_guarded(guarded, packet[:length])
        expected = "frame_short" if length < 14 else "ip_header" if length < 14 + header else "ip_truncated"
        if name == "tcp ip options" and 34 <= length < 46:
            expected = "ip_header"
        assert (reasons.NAMES[row["reason"]], row["verdict"], row["state"]) == (expected, Verdict.DROP, State.NOT_SEEN), length


@pytest.mark.parametrize("name", SAMPLES)
def test_snapped(guarded, name):
    """Below what is needed the packet is not judged; from there on it is, as if it were whole, but for its checksum."""
    packet, need = SAMPLES[name]
    whole = parse_guarded(guarded, packet)
    assert reasons.NAMES[whole["reason"]] == reasons.NAMES[whole["l4_reason"]] == "ok"
    for length in range(len(packet)):
        row = parse_guarded(guarded, packet[:length], wire_len=len(packet))
        if length < need:
            assert (reasons.NAMES[row["reason"]], row["verdict"], row["state"]) == ("snapped", Verdict.ACCEPT, State.NOT_SEEN), length
            continue
        differing = [field for field in row.dtype.names if row[field] != whole[field] and field not in ("l4", "l4_have")]
        assert not differing, length
        assert row["l4_have"] == int(whole["l4_have"]) - (len(packet) - length)


def test_what_is_too_short_on_the_wire_is_not_called_snapped(guarded):
    """A UDP header that ends in the packet is short, however little was captured beyond its ports."""
    packet = t.frame(A, B, t.UDP, bytes(6))
    for length in range(38, 41):
        row = parse_guarded(guarded, packet[:length], wire_len=len(packet))
        assert reasons.NAMES[row["l4_reason"]] == "udp_short"
    row = parse_guarded(guarded, t.tcp(A, B, 1, 2, "A", options=bytes(8), doff=15)[:54], wire_len=62)
    assert reasons.NAMES[row["l4_reason"]] == "tcp_doff"


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=200), st.sampled_from(LINKS), st.integers(min_value=0, max_value=40))
def test_random_bytes(guarded, packet, link, missing):
    parse_guarded(guarded, packet, link=link, wire_len=len(packet) + missing)


@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_sound_packets_with_broken_bytes(guarded, data):
    """Random bytes rarely get far; sound packets with a few wrong ones do. Checksums are off so that they reach the inner checks."""
    packet = bytearray(SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))][0])
    for _ in range(data.draw(st.integers(min_value=1, max_value=4))):
        packet[data.draw(st.integers(min_value=0, max_value=len(packet) - 1))] = data.draw(st.integers(min_value=0, max_value=255))
    if packet[14] >> 4 == 4:
        header = packet[14:34][: (packet[14] & 15) * 4]
        packet[24:26] = t.checksum(bytes(header[:10] + b"\0\0" + header[12:])).to_bytes(2, "big")
    length = data.draw(st.integers(min_value=0, max_value=len(packet)))
    for checksum in (True, False):
        frame = guarded.at_end(bytes(packet[:length]), wire_len=len(packet))
        row = parse_batch(guarded.memory, frame, checksum=checksum).array[0]
        check_row(row, guarded.memory, frame)


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_random_extension_header_chains(guarded, data):
    kinds = st.sampled_from([t.HOP_BY_HOP, t.ROUTING, t.DESTINATION, t.AH, t.FRAGMENT, t.NO_NEXT, t.TCP, t.UDP, t.ICMPV6, t.ICMP, t.GRE, t.SCTP, 253])
    body = b"".join(
        bytes([data.draw(kinds), data.draw(st.integers(min_value=0, max_value=4))]) + data.draw(st.binary(min_size=2, max_size=14)) for _ in range(5)
    )
    packet = t.frame(A6, B6, data.draw(kinds), body)
    parse_guarded(guarded, packet)
    parse_guarded(guarded, packet[: data.draw(st.integers(min_value=0, max_value=len(packet)))], wire_len=len(packet))


def test_a_jumbogram_of_nothing_but_headers(guarded):
    """The longest chain there can be is walked to its end."""
    body = bytes([t.DESTINATION, 0, 1, 4, 0, 0, 0, 0]) * 8000
    row = parse_guarded(guarded, t.eth(t.ipv6(A6, B6, t.HOP_BY_HOP, body, length=0), t.ETH_IPV6))
    assert reasons.NAMES[row["reason"]] == "ip6_chain"

"""Frames in words: every layer by its name, nothing of what was not captured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.model.conn import MASK32
from ctcore.model.tcp_window import after, before
from ctcore.reasons import NAMES
from ctcore.types import Reason
from datapath import app, dissect, explain, stages
from datapath.craft import eth, gre, ipv4, ipv6, mpls, pppoe, sctp, sctp_chunk, tcp, tcp_segment, udp, udp_segment
from datapath.window import near, window_of
from datapath.worker import Pipeline
from pcap_tests import stories
from pcap_tests.conftest import examples
from pcap_tests.stories import CLIENT, MS, SERVER
from pcap_tests.test_datapath.explained import lines_of, said

HANDSHAKE = stories.closed_by_client()[:3]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (eth(b"", 0x0806), "Ethernet 02:00:00:00:00:01 > 02:00:00:00:00:02, ARP"),
        (eth(b"", 0x0800, vlan=(5, 7)), "VLAN 5, VLAN 7, IPv4"),
        (eth(mpls(b"", 3), 0x8847), "MPLS"),
        (eth(pppoe(b""), 0x8864), "PPPoE session, IPv4"),
        (eth(pppoe(b"", 0xC021), 0x8864), "PPPoE session, LCP"),
        (eth(pppoe(b"E", 0x21, compressed=True), 0x8864), "PPPoE session, IPv4"),
        (eth(pppoe(b"", 0x1234), 0x8864), "PPPoE session, PPP protocol 0x1234"),
        (eth(b"", 0x8864), "PPPoE session"),
        (eth(b"", 60), "802.3 frame of 60 bytes"),
        (bytes(5), "cut short"),
    ],
)
def test_link_layers(frame, text):
    assert text in dissect.link_line(frame, 1)


def test_other_link_types_have_names():
    assert dissect.link_line(b"", 113) == "Linux cooked"


@pytest.mark.parametrize(
    ("link", "frame", "text"),
    [
        (113, bytes(14) + b"\x08\x06", "Linux cooked, ARP"),
        (276, b"\x86\xdd", "IPv6"),
        (0, b"\x02\0\0\0", "BSD loopback, address family 2"),
        (0, b"\0\0\0\x1e", "BSD loopback, address family 30"),
        (108, b"\0\0\0\x02", "OpenBSD loopback, address family 2"),
        (0, b"\x02", "BSD loopback"),
    ],
)
def test_what_other_link_types_carry(link, frame, text):
    assert dissect.link_line(frame, link).endswith(text)


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (ipv4("1.2.3.4", "5.6.7.8", 50, bytes(4), frag=0x2001, ident=9), "fragment of datagram 0x0009 at byte 8, more follow, carries esp"),
        (ipv4("1.2.3.4", "5.6.7.8", 6, options=bytes(4)), "header of 24 bytes"),
        (ipv6("2001:db8::1", "::2", 17, bytes(8), ttl=3), "IPv6 2001:db8::1 > ::2, 8 bytes of payload, hop limit 3, next header udp"),
        (ipv4("1.2.3.4", "5.6.7.8", 4), "carries ipip"),
        (ipv6("::1", "::2", 0), "next header hopopt"),
        (ipv6("::1", "::2", 44), "next header frag"),
        (ipv6("::1", "::2", 0, bytes((60, 0)) + bytes(6) + bytes((44, 1)) + bytes(14) + bytes((17, 0)) + bytes(14)), "hopopt, dstopts, frag, udp"),
        (ipv6("::1", "::2", 44, bytes((17, 0, 0, 8)) + bytes(20)), "next header frag"),
        (ipv6("::1", "::2", 253), "next header 253"),
        (b"\x90", "version 9, neither 4 nor 6"),
        (b"\x45\x00", "cut short"),
        (b"", "cut short"),
    ],
)
def test_ip_headers(packet, text):
    assert text in dissect.ip_line(packet)


def test_a_long_chain_of_headers_is_shortened():
    frags = bytes((44, 0)) + bytes(6)
    text = dissect.ip_line(ipv6("::1", "::2", 44, frags * 39 + bytes((17, 0)) + bytes(14)))
    assert text.endswith("next header frag (40 times), udp")
    mixed = (bytes((60, 0)) + bytes(6) + bytes((44, 0)) + bytes(6)) * 20
    text = dissect.ip_line(ipv6("::1", "::2", 44, mixed + bytes((17, 0)) + bytes(14)))
    assert text.endswith("next header frag, dstopts, frag, dstopts, frag, dstopts, frag, ... (42 headers), udp")
    assert len(text) < 200


def test_tcp_options_that_matter_have_values():
    syn = tcp(CLIENT, SERVER, 1, 2, "S", options=bytes.fromhex("020405b4 01030307 0402 0000"))[34:]
    assert list(dissect.tcp_options(syn)) == ["mss 1460", "window scale 7", "SACK permitted"]
    sack = tcp(CLIENT, SERVER, 1, 2, "A", options=bytes.fromhex("0101050a") + (5).to_bytes(4, "big") + (9).to_bytes(4, "big"))[34:]
    assert list(dissect.tcp_options(sack)) == ["SACK 5-9"]


@pytest.mark.parametrize("proto", [1, 6, 17, 47, 50, 58, 132, 136])
@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_can_be_described(proto, data):
    """No frame, however short or wrong, makes a description fail."""
    assert dissect.link_line(data, 1)
    assert dissect.ip_line(data)
    assert dissect.l4_line(proto, data, len(data))
    assert dissect.brief(proto, data, len(data))
    assert isinstance(dissect.sctp_chunks(data), list)


@settings(max_examples=examples(150), deadline=None)
@given(st.binary(max_size=120))
def test_any_packet_can_be_explained(tmp_path_factory, data):
    """Whatever bytes a frame has, explain answers with its reason."""
    path = tmp_path_factory.mktemp("any")
    story = [*HANDSHAKE, (9 * MS, (tcp(CLIENT, SERVER, 40000, 80, "A", seq=101, ack=501)[:34] + data)), (10 * MS, data)]
    for number in (3, 4):
        lines = lines_of(path, story, number)
        assert said(lines, "reason")[0].split(":")[0] in NAMES


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, MASK32), st.integers(0, MASK32))
def test_sequence_numbers_compare_by_distance(a, b):
    """Exactly one of before, after and equal holds, but where both are half the space apart; near() keeps the order."""
    if (a - b) & MASK32 != 1 << 31:
        assert before(a, b) + after(a, b) + (a == b) == 1
        assert (near(a, b) < b) == before(a, b)
    assert near(a, b) & MASK32 == a


def test_every_guard_names_a_reason():
    assert set(stages.GUARDS) <= set(Reason)


def test_the_window_of_a_first_packet_needs_no_connection():
    from datapath.frame import frames_of
    from datapath.wire import parse_batch

    memory, frames = frames_of([tcp(CLIENT, SERVER, 1, 2, "S", seq=10, win=99)])
    batch = parse_batch(memory, frames)
    window = window_of(batch.array[0], batch.l4_bytes(0), None, 0, Config())
    assert (window.sender.end, window.sender.maxwin, window.numbers.end) == (11, 99, 11)
    assert window.note.endswith("accepted at once") or all(one.holds for one in window.inequalities)
    assert np.all(batch.array["doff"] == 20)


def test_gre_and_udp_have_lines():
    assert dissect.l4_line(47, gre(CLIENT, SERVER, version=1, proto=0x880B, call=9)[34:], 8) == "version 1, carries 0x880b, call id 9"
    assert dissect.l4_line(17, udp(CLIENT, SERVER, 1, 2, l4_checksum=0)[34:], 8) == "1 > 2, 0 bytes of payload, no checksum"
    assert ", header of 16 bytes, of 20" in dissect.l4_line(6, tcp_segment(CLIENT, SERVER, 1, 2, doff=4), 20)
    assert ", header of 24 bytes, of 20" in dissect.l4_line(6, tcp_segment(CLIENT, SERVER, 1, 2, doff=6), 20)
    assert dissect.l4_line(17, udp(CLIENT, SERVER, 1, 2, payload=b"abc")[34:], 11) == "1 > 2, 3 bytes of payload"
    assert dissect.l4_line(17, udp_segment(CLIENT, SERVER, 1, 2, length=50), 8) == "1 > 2, 0 bytes of payload, its length says 42"
    assert dissect.sctp_chunks(sctp(CLIENT, SERVER, 1, 2, 3, sctp_chunk(10) + sctp_chunk(0))[34:]) == [10, 0]


def test_a_life_is_told_without_copying_the_table(monkeypatch, office):
    """A look at every connection for each chunk would make explain slower the more there are."""

    class WithoutConns:
        def __init__(self, tracker):
            self.real = tracker

        def __getattr__(self, name):
            assert name != "conns"
            return getattr(self.real, name)

    class Watched:
        def __init__(self, *settings, **more):
            real = Pipeline(*settings, **more)
            self.process, self.clock, self.tracker = real.process, real.clock, WithoutConns(real.tracker)
            self.datagrams = real.datagrams

    expected = explain.explain_conn([office], 0, app.Tracking())
    monkeypatch.setattr(explain, "Pipeline", Watched)
    monkeypatch.setattr(explain, "CHUNK", 3)
    life = explain.explain_conn([office], 0, app.Tracking())
    assert (life.conn, [step.number for step in life.steps]) == (expected.conn, [step.number for step in expected.steps])

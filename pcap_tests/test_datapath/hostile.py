"""Conversations in every protocol, some of their frames broken, and the invariant of what becomes of them; for tests and fuzzers.

Invariant (judge): whatever bytes the frames hold, whatever was captured of them and whatever the clock says, the pipeline touches no byte behind a
frame (there is a guard page); decides alike whether frames come one by one or all at once; decides as the model does; no decision contradicts
itself; and the tracker's check() holds afterwards.
Not here: who makes up the bytes that story() reads (test_hostile, fuzz_pipeline).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ctcore import Config, reasons
from ctcore.model import ModelTracker
from ctcore.types import State, Verdict
from datapath import Pipeline, frames_of
from datapath import craft as t
from datapath.frame import LINK_ETHERNET
from datapath.scenario.gather import ModelGatherer
from pcap_tests.scene import SECOND, START, options, sack
from pcap_tests.test_ctcore.twins import same
from pcap_tests.test_datapath.guarded import LINKS, Guarded

A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "2001:db8::1", "2001:db8::2"
ROUTER6 = "fe80::1"
IP = 14  # bytes before the IP header
EXT6 = ((t.HOP_BY_HOP, t.options6()), (t.FRAGMENT, t.fragment6()), (t.AH, bytes([4]) + bytes(22)))
SETTINGS, HEADER = 6, 6  # bytes of a story: before its first packet, and of a packet before its patch
PER_STORY = 64  # packets

# Seconds since the packet before; beyond them, times that no clock shows.
WAITS = (*(0,) * 20, 0.004, 1, 3, 31, 121, 601, 500_000, 10_000_000, -1)
NEVER = (-(1 << 63), -1, 0, (1 << 62), (1 << 63) - 1)


def tcp_talk(a: str, b: str, port: int) -> list[bytes]:
    """An opening with all options, data with SACK blocks, an end, and a reset."""
    syn, timestamps = options(wscale=7, sack_perm=True) + b"\2\4\5\xb4", b"\1\1\10\12" + bytes(8)
    return [
        t.tcp(a, b, port, 80, "S", seq=99, options=syn + timestamps),
        t.tcp(b, a, 80, port, "SA", seq=499, ack=100, options=syn),
        t.tcp(a, b, port, 80, "A", seq=100, ack=500, options=timestamps),
        t.tcp(a, b, port, 80, "PA", seq=100, ack=500, payload=b"x" * 50),
        t.tcp(b, a, 80, port, "A", seq=500, ack=100, options=sack((120, 130), (140, 150))),
        t.tcp(b, a, 80, port, "FA", seq=500, ack=150),
        t.tcp(a, b, port, 80, "FA", seq=150, ack=501, options=bytes(40)),
        t.tcp(b, a, 80, port, "A", seq=501, ack=151),
        t.tcp(a, b, port, 80, "R", seq=151),
    ]


def sctp_talk(port: int) -> list[bytes]:
    """An association set up (tags 7 and 8), used and shut down."""
    said = [
        (0, t.sctp_init(7)),
        (7, t.sctp_init(8, ack=True)),
        (8, t.sctp_chunk(10, 0, b"cookie") + t.sctp_chunk(0, 3, bytes(13))),
        (7, t.sctp_chunk(11) + t.sctp_chunk(3, 0, bytes(12))),
        (8, t.sctp_chunk(4, 0, bytes(8))),
        (7, t.sctp_chunk(5, 0, bytes(8))),
        (8, t.sctp_chunk(7, 0, bytes(4))),
        (7, t.sctp_chunk(8)),
        (8, t.sctp_chunk(14)),
        (7, t.sctp_chunk(6)),
    ]
    ways = ((A, B, port, 2000), (B, A, 2000, port))
    return [t.sctp(*ways[tag == 7], tag, chunks) for tag, chunks in said]


def with_errors(*frames: bytes) -> list[bytes]:
    """Each frame, then an ICMP error back about it."""
    told = []
    for about in frames:
        six = about[12:14] == b"\x86\xdd"
        told += [about, t.icmp_error(*((B6, A6) if six else (B, A)), 1 if six else 3, 3, about)]
    return told


def redirect6(about: bytes) -> bytes:
    """From the router on the link, quoting `about` (RFC 4861 4.5)."""
    quoted = about[IP:] + bytes(-len(about[IP:]) % 8)
    return t.icmp(ROUTER6, A6, 137, payload=bytes(32) + bytes([4, 1 + len(quoted) // 8]) + bytes(6) + quoted, ttl=255)


def cut(src: str, dst: str, ident: int, size: int) -> list[bytes]:
    """A question in fragments, the last one twice."""
    data = t.udp_segment(src, dst, 9, 9, b"question" * 5)
    pieces = [(at, data[at : at + size], at + size < len(data)) for at in range(0, len(data), size)]
    if ":" in src:
        ext = [(t.HOP_BY_HOP, t.options6())]
        frames = [t.frame(src, dst, t.UDP, piece, ext=(*ext, (t.FRAGMENT, t.fragment6(at, more, ident)))) for at, piece, more in pieces]
    else:
        frames = [t.frame(src, dst, t.UDP, piece, ident=ident, frag=at // 8 | more << 13) for at, piece, more in pieces]
    return [*frames, frames[-1]]


UDP6 = t.udp(A6, B6, 5, 6, b"question", ext=EXT6)
CONVERSATIONS = (
    tcp_talk(A, B, 40000),
    tcp_talk(A6, B6, 40001),
    sctp_talk(1000),
    with_errors(t.udp(A, B, 5, 6, b"question"), t.udp(B, A, 6, 5, b"answer"), t.tcp(A, B, 40002, 80, "S"), t.icmp(A, B, 8, ident=1)),
    with_errors(t.sctp(A, B, 3, 4, 0, t.sctp_init(7)), t.gre(A, B), t.gre(A, B, version=1, proto=0x880B, call=3), t.frame(A, B, 253, b"?")),
    [*with_errors(UDP6, t.icmp(A6, B6, 128, ident=1)), redirect6(UDP6), redirect6(t.udp(B6, A6, 6, 5))],
    [t.udplite(A, B, 1, 2, b"abcdefgh", sum_proto=t.UDP), t.udplite(B, A, 2, 1, b"answer", coverage=8, sum_proto=t.UDP)],
    [t.icmp(A, B, 8, ident=2), t.icmp(B, A, 0, ident=2), t.icmp(A, B, 13, ident=2), t.icmp(A6, B6, 135, payload=bytes(16), ttl=255)],
    [*cut(A, B, 1, 24), *cut(A6, B6, 2, 24), *reversed(cut(A, B, 3, 16)), *reversed(cut(A6, B6, 4, 16))],
    [t.udp(A, B, 7, 7, bytes(20), frag=0x2000), t.eth(t.ipv4(A, B, t.UDP, t.udp_segment(A, B, 8, 8), options=b"\1" * 8), vlan=(5, 6))],
)  # fmt: skip


class Packet(NamedTuple):
    """One frame as a capture has it. missing: bytes of it that were not captured."""

    data: bytes
    ts: int
    missing: int = 0
    link: int = LINK_ETHERNET


class Story(NamedTuple):
    config: Config
    zone: int
    packets: list[Packet]


def story(data: bytes) -> Story:
    """Read bytes as settings and packets.

    First the settings. A packet: which conversation goes on, damage, time, cut, position, length, and `length` % 24 bytes to write at the position.
    """
    config = Config(
        tcp_liberal=bool(data[0] & 1),
        tcp_loose=bool(data[0] & 2),
        tcp_ignore_invalid_rst=bool(data[0] & 4),
        checksum=bool(data[0] & 8),
        acct=bool(data[0] & 16),
        tcp_max_retrans=data[1] % 4,
        max=(1, 3, 100)[data[2] % 3],
        hz=(1, 100, 250, 1000)[data[3] % 4],
        seed=data[4],
        events=frozenset({"new", "update", "destroy"}),
        event_buffer=16,
    )
    packets: list[Packet] = []
    said = [0] * len(CONVERSATIONS)
    at, now = SETTINGS, START
    while at + HEADER <= len(data) and len(packets) < PER_STORY:
        which, damage, when, cut, position, length = data[at : at + HEADER]
        at += HEADER + length % 24
        which %= len(CONVERSATIONS)
        frame = CONVERSATIONS[which][said[which] % len(CONVERSATIONS[which])]
        said[which] += 1
        now += round(WAITS[when % len(WAITS)] * SECOND)
        packet = broken(frame, data[at - length % 24 : at], position, damage, cut)
        packets.append(packet._replace(ts=NEVER[cut % len(NEVER)] if when == 255 else now))
    return Story(config, (0, 1, 65535)[data[5] % 3], packets)


def broken(frame: bytes, patch: bytes, position: int, damage: int, cut: int) -> Packet:
    """damage: 1: cut on the wire, 2: cut by the capture, 4: IP says so and has a good checksum, 8: another link, 16: Ethernet is patched."""
    first = 0 if damage & 16 else IP
    position = first + position % (len(frame) - first)
    frame = (frame[:position] + patch + frame[position + len(patch) :])[: max(len(frame), position + len(patch))]
    if damage & 1:
        frame = frame[: len(frame) - cut % len(frame)]
    if damage & 4:
        frame = repaired(shortened(frame) if damage & 1 else frame, IP)
    missing = cut % (len(frame) + 1) if damage & 2 else 0
    link = LINKS[cut % len(LINKS)] if damage & 8 else LINK_ETHERNET
    return Packet(frame[: len(frame) - missing], 0, missing, link)


def shortened(frame: bytes) -> bytes:
    """The frame with an IP length that ends where the frame ends, if there is an IP header."""
    if len(frame) < IP + 20:
        return frame
    at, length = (IP + 2, len(frame) - IP) if frame[IP] >> 4 == 4 else (IP + 4, max(0, len(frame) - IP - 40))
    return frame[:at] + length.to_bytes(2, "big") + frame[at + 2 :]


def repaired(frame: bytes, at: int) -> bytes:
    """The frame with a good checksum in the IPv4 header at `at`, if there is room for one."""
    header = frame[at : at + (frame[at] & 15) * 4] if len(frame) > at else b""
    if len(header) < 20 or header[0] >> 4 != 4:
        return frame
    value = t.checksum(header[:10] + b"\0\0" + header[12:])
    return frame[: at + 10] + value.to_bytes(2, "big") + frame[at + 12 :]


def judge(guarded: Guarded, story: Story) -> np.ndarray:
    """The invariant above. Returns the decisions."""
    config, zone, packets = story
    one_by_one, at_once, model = Pipeline(config, zone=zone), Pipeline(config, zone=zone, batch=8), ModelTracker(config)
    decisions = np.concatenate([one_by_one.process(guarded.memory, frame_at_end(guarded, packet)) for packet in packets])
    memory, frames = frames_of([packet.data for packet in packets], ts=[packet.ts for packet in packets], link=[packet.link for packet in packets])
    frames["len"] += np.array([packet.missing for packet in packets], dtype=frames["len"].dtype)
    same(decisions, at_once.process(memory, frames), "decisions, one by one or at once")
    gatherer = ModelGatherer(config, zone=zone)
    same(decisions, np.concatenate([model.advance(gatherer.parse(memory, frames[i : i + 1])) for i in range(len(frames))]), "decisions")
    assert gatherer.reassembler.counters() == one_by_one.reassembler.counters() == at_once.reassembler.counters()
    for reassembler in (one_by_one.reassembler, at_once.reassembler, gatherer.reassembler):
        reassembler.check()
    for other in (at_once.tracker, model):
        same(one_by_one.tracker.conns(), other.conns(), "conns")
        assert one_by_one.tracker.counters() == other.counters()
        other.check()
    one_by_one.tracker.check()
    for decision in decisions:
        check_decision(decision)
    assert list(one_by_one.summary()["packets"]) == np.bincount(decisions["state"], minlength=6).tolist()
    return decisions


def frame_at_end(guarded: Guarded, packet: Packet) -> np.ndarray:
    frame = guarded.at_end(packet.data, link=packet.link, wire_len=len(packet.data) + packet.missing)
    frame["ts"] = packet.ts
    return frame


def check_decision(decision: np.void) -> None:
    """Who has a connection has all that goes with it; who has none has a reason."""
    d = {name: int(decision[name]) for name in decision.dtype.names}
    if d["conn"] >= 0:
        assert d["state"] in (State.NEW, State.ESTABLISHED, State.RELATED) and d["verdict"] == Verdict.ACCEPT
        assert d["dir"] in (0, 1) and d["timeout"] >= 0
    else:
        assert d["state"] in (State.NOT_SEEN, State.INVALID, State.UNTRACKED) and 0 < d["reason"] < len(reasons.NAMES)
        assert (d["conn"], d["dir"], d["timeout"], d["status"], d["mark"]) == (-1, 255, -1, 0, 0)
        assert d["verdict"] in ((Verdict.ACCEPT, Verdict.DROP, Verdict.HELD) if d["state"] == State.NOT_SEEN else (Verdict.ACCEPT,))

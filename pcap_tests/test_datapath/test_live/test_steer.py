"""Whose a frame is: the same for both directions and for an ICMP error about either, however it is wrapped; and nothing is read beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.steering import owner
from datapath import craft
from datapath.frame import frames_of
from datapath.live.steer import course_of
from datapath.wire import parse_batch

V4, V6 = ("10.0.0.1", "198.51.100.7"), ("2001:db8::1", "2001:db8:2::7")
ports = st.integers(0, 65535)
counts = st.integers(1, 64)
tags = st.sampled_from([(), (5,), (5, 7), (1, 2, 3, 4)])


@dataclass(frozen=True)
class Talk:
    """Two ends, and what goes to and fro between them. ext: extension headers in front, of IPv6."""

    ends: tuple[str, str]
    kind: str
    ports: tuple[int, int]
    ext: tuple

    def packet(self, d: int) -> bytes:
        src, dst = self.ends[d], self.ends[1 - d]
        sport, dport = self.ports[d], self.ports[1 - d]
        more = {"ext": self.ext} if ":" in src else {}
        if self.kind == "icmp":
            return craft.icmp(src, dst, (128 + d) if ":" in src else 8 * (1 - d), ident=self.ports[0], **more)
        if self.kind == "sctp":
            return craft.sctp(src, dst, sport, dport, 0, craft.sctp_init(7), **more)
        if self.kind == "tcp":
            return craft.tcp(src, dst, sport, dport, "S", seq=1, **more)
        return craft.udp(src, dst, sport, dport, b"hello", **more)

    def error(self, d: int) -> bytes:
        """Some router tells the sender of a packet of direction d."""
        router = "2001:db8:ff::1" if ":" in self.ends[0] else "192.0.2.254"
        return craft.icmp_error(router, self.ends[d], 1 if ":" in router else 3, 1, self.packet(d))


chains = st.sampled_from([(), ((60, craft.options6()),), ((0, craft.options6(1)), (43, craft.options6())), ((44, craft.fragment6()),)])
talks = st.builds(Talk, st.sampled_from([V4, V6]), st.sampled_from(["tcp", "udp", "icmp", "sctp"]), st.tuples(ports, ports), chains)


def tagged(frame: bytes, vlans: tuple[int, ...]) -> bytes:
    return frame[:12] + b"".join(b"\x81\x00" + vlan.to_bytes(2, "big") for vlan in vlans) + frame[12:]


@given(talks, counts, tags)
def test_one_worker_for_both_directions_and_errors_about_them(talk, count, vlans):
    frames = [talk.packet(0), talk.packet(1), talk.error(0), talk.error(1)]
    courses = {course_of(tagged(frame, vlans), count) for frame in frames}
    assert len(courses) == 1
    who, gatherer = courses.pop()
    assert 0 <= who < count and gatherer is None


@given(talks, counts)
def test_the_frame_belongs_to_whom_its_tuple_belongs(talk, count):
    """As the door reads the tuple (wire)."""
    frame = talk.packet(0)
    key = parse_batch(*frames_of([frame])).array["key"][0].tobytes()
    assert course_of(frame, count) == (owner(key, count), None)


@pytest.mark.parametrize(
    "wrap", [lambda ip: craft.eth(craft.mpls(ip, 7), 0x8847), lambda ip: craft.eth(craft.pppoe(ip), 0x8864)], ids=["mpls", "pppoe"]
)
def test_other_wrappings(wrap):
    frame = craft.udp(*V4, 1000, 53)
    assert course_of(wrap(frame[14:]), 64) == course_of(frame, 64)


@pytest.mark.parametrize("frame", [b"", b"x" * 13, craft.eth(bytes(28), 0x0806), craft.eth(b"", 0x0800), craft.tcp(*V4, 1, 2, "S")[:36]])
def test_what_has_no_tuple_stays(frame):
    assert course_of(frame, 2) is None


def test_protocols_without_ports_are_the_first_workers():
    assert course_of(craft.gre(*V4), 8) == course_of(craft.frame(*V6, 50, bytes(20)), 8) == (0, None)


@given(st.sampled_from([V4, V6]), ports, ports, counts, st.integers(0, 0xFFFF), tags)
def test_fragments_have_one_gatherer_and_the_first_one_knows_the_owner(ends, sport, dport, count, ident, vlans):
    first, *others = pieces(ends, sport, dport, ident)
    courses = [course_of(tagged(piece, vlans), count) for piece in (first, *others)]
    assert len({gatherer for _, gatherer in courses}) == 1 and courses[0][1] < count
    assert courses[0][0] == course_of(craft.udp(*ends, sport, dport), count)[0]
    assert [who for who, _ in courses[1:]] == [None] * len(others)


def pieces(ends: tuple[str, str], sport: int, dport: int, ident: int, sizes: tuple[int, ...] = (64, 64, 24)) -> list[bytes]:
    """A UDP datagram in fragments."""
    data = craft.udp_segment(*ends, sport, dport, bytes(sum(sizes) - 8))
    found, at = [], 0
    for size in sizes:
        part, more = data[at : at + size], at + size < len(data)
        if ":" in ends[0]:
            found.append(craft.frame(*ends, 17, part, ext=((44, craft.fragment6(at, more, ident)),)))
        else:
            found.append(craft.frame(*ends, 17, part, ident=ident, frag=at // 8 | more << 13))
        at += size
    return found


def test_a_first_fragment_without_its_ports_tells_nothing():
    hidden = craft.frame(*V6, 60, craft.options6()[:0] + bytes([17]) + craft.options6(), ext=((44, craft.fragment6(0, True, 7)),))
    who, gatherer = course_of(hidden, 4)
    assert who is None and gatherer is not None


@given(st.one_of(talks.map(lambda talk: talk.packet(0)), talks.map(lambda talk: talk.error(1)), st.binary(max_size=200)), st.data(), counts)
def test_whatever_is_cut_off_or_changed(frame, data, count):
    """Anything is said of it but nothing outside of it is read: the frame ends where its memory ends (make asan)."""
    if frame:
        at = data.draw(st.integers(0, len(frame) - 1))
        frame = frame[:at] + bytes([data.draw(st.integers(0, 255))]) + frame[at + 1 :]
    course = course_of(bytearray(frame[: data.draw(st.integers(0, len(frame)))]), count)
    assert course is None or all(number is None or 0 <= number < count for number in course)


@pytest.mark.parametrize("count", [0, 65])
def test_counts_that_cannot_be(count):
    with pytest.raises(ValueError, match="count = "):
        course_of(b"", count)

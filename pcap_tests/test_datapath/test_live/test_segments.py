"""Frames that hold several segments, cut up, held against what a sound stack sends one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import craft
from datapath.live.segments import cut_up

ENDS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("2001:db8::1", "2001:db8::2")}
TCP4, TCP6, UDP, ECN = 1, 4, 5, 0x80
PAYLOAD, SIZE = st.binary(min_size=1, max_size=500), st.integers(20, 600)


def pieces(payload: bytes, size: int) -> list[bytes]:
    return [payload[at : at + size] for at in range(0, len(payload), size)]


def ident(version: int, number: int) -> dict[str, int]:
    return {"ident": (65535 + number) & 0xFFFF} if version == 4 else {}


@pytest.mark.parametrize("version", ENDS)
@given(payload=PAYLOAD, size=SIZE, options=st.sampled_from([b"", bytes(8)]), seq=st.integers(0, 2**32 - 1))
def test_tcp_is_cut_as_a_stack_would_have_sent_it(version, payload, size, options, seq):
    def segment(number: int, at: int, data: bytes, flags: str) -> bytes:
        return craft.tcp(*ENDS[version], 1, 2, flags, seq=seq + at, ack=7, options=options, payload=data, **ident(version, number))

    parts = pieces(payload, size)
    whole = segment(0, 0, payload, "FPAC")
    expected = [segment(i, i * size, part, "A" + ("C" if i == 0 else "") + ("FP" if i == len(parts) - 1 else "")) for i, part in enumerate(parts)]
    assert cut_up(whole, (TCP4 if version == 4 else TCP6) | ECN, size) == expected


@pytest.mark.parametrize("version", ENDS)
@given(payload=PAYLOAD, size=SIZE)
def test_udp_is_cut_into_datagrams(version, payload, size):
    whole = craft.udp(*ENDS[version], 1, 2, payload, **ident(version, 0))
    expected = [craft.udp(*ENDS[version], 1, 2, part, **ident(version, i)) for i, part in enumerate(pieces(payload, size))]
    assert cut_up(whole, UDP, size) == expected


@given(data=st.binary(max_size=100), kind=st.integers(0, 255), size=st.integers(0, 40), link=st.sampled_from([b"\x08\x00", b"\x86\xdd"]))
def test_whatever_comes_segments_are_within_bounds(data, kind, size, link):
    for segment in cut_up(bytes(12) + link + data, kind, size):
        assert 14 < len(segment) <= 14 + len(data)


@pytest.mark.parametrize("kind", [0, 3, UDP, TCP6 + 1])
def test_what_is_not_what_it_says_is_not_cut(kind):
    assert cut_up(craft.tcp(*ENDS[4], 1, 2, payload=bytes(100)), kind, 10) == []


def test_what_was_cut_short_is_not_cut_up():
    whole = craft.tcp(*ENDS[4], 1, 2, payload=bytes(100))
    assert cut_up(whole[:-1], TCP4, 10) == []
    assert cut_up(whole, TCP4, 0) == []
    assert cut_up(whole[:54], TCP4, 10) == []

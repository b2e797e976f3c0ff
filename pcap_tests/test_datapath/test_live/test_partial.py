"""Checksums that a local stack has left to its NIC: completed where they are just that, and nothing else is ever changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import craft
from datapath.frame import frames_of
from datapath.live.partial import complete_frames

ENDS = {4: ("10.0.0.1", "10.200.255.2"), 6: ("2001:db8::1", "2001:db8:ffff::2")}
PROTOCOLS = {"tcp": (craft.tcp, craft.TCP, 16), "udp": (craft.udp, craft.UDP, 6)}


def partial(frame: bytes, proto: int, at: int, ends: tuple[str, str], l4: int) -> bytes:
    """As a stack leaves it: the sum of the pseudo-header, folded, not complemented."""
    value = 0xFFFF - craft.checksum(craft.pseudo(*ends, proto, len(frame) - l4))
    return frame[: l4 + at] + value.to_bytes(2, "big") + frame[l4 + at + 2 :]


def completed(*frames: bytes) -> tuple[int, list[bytes]]:
    memory, rows = frames_of(frames)
    memory = memory.copy()
    changed = complete_frames(memory, rows)
    return changed, [memory[int(row["offset"]) :][: int(row["caplen"])].tobytes() for row in rows]


@pytest.mark.parametrize("version", ENDS)
@pytest.mark.parametrize("name", PROTOCOLS)
@given(payload=st.binary(max_size=200), sport=st.integers(1, 65535), pad=st.integers(0, 80), tags=st.integers(0, 2))
def test_completing_makes_what_a_sound_stack_sends(version, name, payload, sport, pad, tags):
    make, proto, at = PROTOCOLS[name]
    good = make(*ENDS[version], sport, 80, payload=payload)
    l4 = 14 + (20 if version == 4 else 40)
    left = partial(good, proto, at, ENDS[version], l4)
    link = b"\x81\x00\x00\x07" * tags

    def framed(frame: bytes) -> bytes:
        return (frame[:12] + link + frame[12:]).ljust(pad, b"\0")

    changed, (result,) = completed(framed(left))
    assert result == framed(good)
    assert changed == (left != good)
    assert completed(result) == (0, [result])


@given(frame=st.binary(max_size=120), kind=st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00\x00\x01\x08\x00", b"\x88\xa8\x00\x01\x86\xdd"]))
def test_nothing_outside_a_frame_is_touched_and_twice_is_as_once(frame, kind):
    data = bytes(12) + kind + frame
    memory, rows = frames_of([b"\xaa" * 64, data, b"\xbb" * 64])
    memory = memory.copy()
    complete_frames(memory, rows[1:2])
    assert memory[:64].tobytes() == b"\xaa" * 64 and memory[-64:].tobytes() == b"\xbb" * 64
    once = memory.copy()
    assert complete_frames(memory, rows[1:2]) == 0 and np.array_equal(memory, once)


@pytest.mark.parametrize("frag", [0x2000, 0x0001], ids=["first", "later"])
def test_fragments_are_left_alone(frag):
    frame = craft.udp(*ENDS[4], 1, 2, b"x" * 8, frag=frag)
    left = partial(frame, craft.UDP, 6, ENDS[4], 34)
    assert completed(left) == (0, [left])


def test_a_wrong_checksum_stays_wrong():
    for make, *_ in PROTOCOLS.values():
        frame = make(*ENDS[4], 1, 2, payload=b"abc", l4_checksum=0x1234)
        assert completed(frame) == (0, [frame])


def test_udp_without_a_checksum_stays_without():
    frame = craft.udp(*ENDS[4], 1, 2, b"abc", l4_checksum=0)
    assert completed(frame) == (0, [frame])


def test_behind_option_headers_of_ipv6():
    ext = ((craft.HOP_BY_HOP, craft.options6()), (craft.DESTINATION, craft.options6(1)))
    good = craft.tcp(*ENDS[6], 1, 2, payload=b"abc", ext=ext)
    l4 = 14 + 40 + 8 + 16
    assert completed(partial(good, craft.TCP, 16, ENDS[6], l4)) == (1, [good])


def test_sctp_that_was_left_gets_its_crc():
    good = craft.sctp(*ENDS[4], 1, 2, 7, craft.sctp_init(9))
    assert completed(good[:42] + bytes(4) + good[46:], good) == (1, [good, good])


def test_a_frame_captured_in_part_stays():
    left = partial(craft.tcp(*ENDS[4], 1, 2, payload=b"abc"), craft.TCP, 16, ENDS[4], 34)
    memory, rows = frames_of([left])
    rows["caplen"] -= 1
    assert complete_frames(memory.copy(), rows) == 0

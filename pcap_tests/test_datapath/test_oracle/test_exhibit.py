"""What can be shown to the kernel: IP packets, completed where they were snapped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.types import Reason
from datapath import craft
from datapath.frame import frames_of
from datapath.link import inner
from datapath.oracle import exhibit
from datapath.wire import parse_batch

A, B, A6, B6 = "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"


def shown(frame: bytes, *, snapped_to: int | None = None, link: int = 1):
    """What becomes of a frame of which the first bytes were captured."""
    memory, frames = frames_of([frame[:snapped_to]], link=link)
    frames["len"] = len(frame)
    row = parse_batch(memory, frames).array[0]
    return exhibit.exhibit(row, inner(memory, frames)[0], memory)


def test_the_link_layer_is_left_behind() -> None:
    packet = craft.ipv4(A, B, craft.UDP, craft.udp_segment(A, B, 1, 2, b"hello"))
    assert shown(craft.eth(packet)) == packet
    assert shown(craft.eth(packet, vlan=(5, 6))) == packet
    assert shown(craft.eth(craft.pppoe(packet), 0x8864)) == packet
    assert shown(packet, link=101) == packet


def test_padding_stays_for_the_kernel_has_to_cut_it_off_itself() -> None:
    packet = craft.ipv4(A, B, craft.UDP, craft.udp_segment(A, B, 1, 2))
    assert shown(craft.eth(packet, pad=60)) == packet + bytes(60 - 14 - len(packet))


def test_behind_a_packet_with_hop_by_hop_options_nothing_is_shown() -> None:
    """A bridge reads these options before it cuts the packet off, a router after."""
    ext = ((craft.HOP_BY_HOP, craft.options6()),)
    packet = craft.ipv6(A6, B6, craft.UDP, craft.udp_segment(A6, B6, 1, 2), ext=ext)
    assert shown(craft.eth(packet + b"behind", 0x86DD)) == packet
    lying = craft.ipv6(A6, B6, craft.UDP, craft.udp_segment(A6, B6, 1, 2), ext=ext, length=3)
    assert shown(craft.eth(lying, 0x86DD)) == lying[:43]
    beyond = craft.ipv6(A6, B6, craft.UDP, craft.udp_segment(A6, B6, 1, 2), ext=ext, length=200)
    assert shown(craft.eth(beyond, 0x86DD)) == beyond


@pytest.mark.parametrize(
    "frame, why",
    [
        (craft.eth(b"who has", 0x0806), exhibit.NOT_IP),
        (craft.eth(b"\x60" + bytes(65600), 0x86DD), exhibit.TOO_LARGE),
        (craft.udp(A6, B6, 1, 2, ext=((craft.HOP_BY_HOP, craft.options6()),), length=0), exhibit.JUMBOGRAM),
    ],
)
def test_what_cannot_be_shown_says_why(frame: bytes, why: str) -> None:
    assert shown(frame) == why


def test_a_fragment_is_shown_if_it_is_there_as_a_whole() -> None:
    fragment = craft.udp(A, B, 1, 2, bytes(32), frag=0x2000)
    assert shown(fragment) == fragment[14:]
    assert shown(fragment, snapped_to=len(fragment) - 1) == exhibit.FRAGMENT


def test_without_its_headers_a_packet_is_not_shown() -> None:
    assert shown(craft.tcp(A, B, 1, 2, payload=bytes(100)), snapped_to=14 + 20 + 8) == exhibit.SNAPPED


@given(
    make=st.sampled_from([
        lambda payload: craft.tcp(A, B, 1, 2, "A", payload=payload), lambda payload: craft.tcp(A6, B6, 1, 2, "A", payload=payload),
        lambda payload: craft.udp(A, B, 1, 2, payload), lambda payload: craft.udp(A6, B6, 1, 2, payload),
        lambda payload: craft.udp(A, B, 1, 2, payload, l4_checksum=0),
        lambda payload: craft.icmp(A, B, 8, ident=1, payload=payload), lambda payload: craft.icmp(A6, B6, 128, ident=1, payload=payload),
    ]),
    payload=st.binary(min_size=1, max_size=200),
    cut=st.integers(1, 200),
)  # fmt: skip
def test_a_completed_packet_is_sound(make, payload: bytes, cut: int) -> None:
    """However much of the payload is missing, what is shown has its length on the wire, its headers, and a right checksum."""
    frame = make(payload)
    kept = len(frame) - min(cut, len(payload))
    packet = shown(frame, snapped_to=kept)
    assert len(packet) == len(frame) - 14
    row = parse_batch(*frames_of([frame[:14] + packet])).array[0]
    assert (row["reason"], row["l4_reason"]) == (Reason.R_OK, Reason.R_OK)
    checksum = {6: 16, 17: 6, 1: 2, 58: 2}[int(row["key"]["proto"])] + len(packet) - int(row["l4_len"])
    same = np.frombuffer(packet, np.uint8)[: kept - 14] == np.frombuffer(frame, np.uint8)[14:kept]
    assert set(np.flatnonzero(~same).tolist()) <= {checksum, checksum + 1}

"""Helpers' edits made in a draft: the bytes that datapath.edits makes of any packet and any edits, or as little as that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.types import EDIT_DTYPE
from datapath import craft
from datapath.edits import edited
from datapath.frame import frames_of
from datapath.pipeline.draft_ct import edited_draft
from datapath.wire import parse_batch

Piece = tuple[int, int, bytes]


def edits_of(pieces: list[Piece]) -> np.ndarray:
    """(at, bytes that go, text that comes) of each."""
    rows = np.zeros(len(pieces), EDIT_DTYPE)
    for row, (at, old, text) in zip(rows, pieces, strict=True):
        row["at"], row["old_len"], row["new_len"] = at, old, len(text)
        row["text"][: len(text)] = np.frombuffer(text, np.uint8)
    return rows


def slowly(frame: bytes, edits: np.ndarray) -> bytes | None:
    memory, frames = frames_of([frame])
    batch = parse_batch(memory, frames, checksum=False, fragments="passed")
    row = batch.array[0]
    return edited(frame, row, int(row["l4"]) - memory.ctypes.data, edits) if row["l4"] else None


ENDS = st.sampled_from([("10.0.0.2", "198.51.100.1"), ("2001:db8:1::2", "2001:db8:2::1")])
OPTIONS = st.sampled_from([b"", b"\x01\x01\x05\x0a" + bytes(8)])


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Sound packets, with PPPoE in front of some, and something behind them."""
    src, dst = draw(ENDS)
    kind, payload = draw(st.sampled_from(["tcp", "tcp", "udp", "icmp", "sctp"])), draw(st.binary(max_size=80))
    if kind == "tcp":
        frame = craft.tcp(src, dst, 40000, 21, "PA", options=draw(OPTIONS), payload=payload, l4_checksum=draw(st.sampled_from([None, 0, 0xFFFF, 7])))
    elif kind == "udp":
        frame = craft.udp(src, dst, 5060, 5060, payload, l4_checksum=draw(st.sampled_from([None, 0, 7])))
    elif kind == "icmp":
        frame = craft.icmp(src, dst, 3, payload=payload)
    else:
        frame = craft.sctp(src, dst, 1, 2, 7, craft.sctp_chunk(0, 3, payload))
    if draw(st.booleans()):
        proto = 0x57 if ":" in src else 0x21
        frame = craft.eth(craft.pppoe(frame[14:], proto, compressed=draw(st.booleans())), 0x8864)
    return frame + bytes(draw(st.sampled_from([0, 0, 3])))


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    """Edits in order, numbers of the header first; some reach where none may."""
    found: list[Piece] = []
    for _ in range(draw(st.integers(0, 2))):
        at, size = draw(st.integers(0, 34)), draw(st.sampled_from([2, 4, 4, 3]))
        found.append((at, size, draw(st.binary(min_size=size, max_size=size))))
    at = draw(st.sampled_from([8, 20, 20, 32]))
    for _ in range(draw(st.integers(0, 3))):
        at += draw(st.integers(0, 20))
        old = draw(st.integers(0, 20))
        found.append((at, old, draw(st.binary(max_size=64))))
        at += old
    return sorted(found, key=lambda piece: piece[0]) if draw(st.booleans()) else found


@given(packets(), pieces())
def test_a_draft_is_edited_as_a_frame_is(frame: bytes, edits: list[Piece]) -> None:
    rows = edits_of(edits)
    assert edited_draft(frame, rows) == slowly(frame, rows)


def test_a_command_becomes_longer() -> None:
    old, new = b"PORT 10,0,0,2,4,1\r\n", b"PORT 198,51,100,200,156,64\r\n"
    came = craft.tcp("10.0.0.2", "192.0.2.1", 40000, 21, "PA", payload=old) + bytes(4)
    assert edited_draft(came, edits_of([(20, len(old), new)])) == craft.tcp("10.0.0.2", "192.0.2.1", 40000, 21, "PA", payload=new)


def test_no_packet_becomes_longer_than_ip_allows() -> None:
    for size, fits in ((65535 - 40 - 7, True), (65535 - 40 - 6, False)):
        came = craft.tcp("10.0.0.2", "192.0.2.1", 40000, 21, "PA", payload=bytes(size))
        assert (edited_draft(came, edits_of([(20, 0, b"7 bytes")])) is not None) == fits


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="EDIT_DTYPE"):
        edited_draft(b"frame", np.zeros(1))
    assert edited_draft(craft.eth(b"", 0x88CC), edits_of([])) is None

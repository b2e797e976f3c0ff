"""Helpers' edits: what leaves is what a sender would have sent who had written the other text."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.types import RewriteFlag
from datapath import craft
from datapath.frame import frames_of
from datapath.rewrite import rewritten
from pcap_tests.test_datapath.translating import SRC, Ends, told

EDIT_DTYPE = np.dtype([("at", "u4"), ("old_len", "u2"), ("new_len", "u2"), ("text", "u1", 64)])
EDIT = RewriteFlag.REWRITE_EDIT
NEAR, FAR = Ends("10.0.0.2", "198.51.100.1", 40000, 21), Ends("192.0.2.1", "198.51.100.1", 1024, 21)
NEAR6, FAR6 = Ends("2001:db8:1::2", "2001:db8:2::1", 40000, 21), Ends("2001:db8:3::1", "2001:db8:2::1", 1024, 21)


def edits_of(*edits: tuple[int, int, bytes]) -> np.ndarray:
    """(at, bytes that go, text that comes) of each."""
    rows = np.zeros(len(edits), EDIT_DTYPE)
    for row, (at, old, text) in zip(rows, edits, strict=True):
        row["at"], row["old_len"], row["new_len"] = at, old, len(text)
        row["text"][: len(text)] = np.frombuffer(text, np.uint8)
    return rows


def leaves(frame: bytes, row: np.ndarray, edits: np.ndarray, caplen: int | None = None) -> bytes | None:
    memory, frames = frames_of([frame[:caplen]])
    frames["len"] = len(frame)
    row = row.copy()
    row["flags"] |= np.uint8(EDIT)
    row["n_edits"] = len(edits)
    memory, frames = rewritten(memory, frames, row, edits)
    return memory[int(frames["offset"][0]) : int(frames["offset"][0] + frames["caplen"][0])].tobytes() if len(frames) else None


@pytest.mark.parametrize(("near", "far", "command"), [
    (NEAR, FAR, (b"PORT 10,0,0,2,156,64\r\n", b"PORT 192,0,2,1,4,0\r\n")),
    (NEAR6, FAR6, (b"EPRT |2|2001:db8:1::2|40000|\r\n", b"EPRT |2|2001:db8:3::1|1024|\r\n")),
])  # fmt: skip
def test_a_command_leaves_with_the_outer_address(near, far, command):
    old, new = command
    came = craft.tcp(near.src, near.dst, near.sport, near.dport, "PA", seq=5, ack=9, payload=old)
    left = leaves(came, told(far, craft.TCP, SRC), edits_of((20, len(old), new)))
    assert left == craft.tcp(far.src, far.dst, far.sport, far.dport, "PA", seq=5, ack=9, payload=new)


payloads = st.binary(min_size=1, max_size=60)


@given(st.sampled_from([(NEAR, FAR), (NEAR6, FAR6)]), st.sampled_from(["tcp", "udp"]), payloads, st.data())
def test_any_pieces_may_become_others(ends, kind, payload, data):
    """Whatever pieces of a payload are replaced by whatever: the frame is the one that was built with the new payload."""
    near, far = ends
    cuts = sorted(data.draw(st.lists(st.integers(0, len(payload)), min_size=2, max_size=6)))
    header, edits, new, at = (20 if kind == "tcp" else 8), [], b"", 0
    for start, end in zip(cuts[::2], cuts[1::2], strict=False):
        text = data.draw(st.binary(max_size=64))
        edits.append((header + start, end - start, text))
        new += payload[at:start] + text
        at = end
    new += payload[at:]
    build = craft.tcp if kind == "tcp" else craft.udp
    proto = craft.TCP if kind == "tcp" else craft.UDP
    came = build(near.src, near.dst, near.sport, near.dport, payload=payload) + b"\xee" * data.draw(st.integers(0, 5))
    wanted = build(far.src, far.dst, far.sport, far.dport, payload=new)
    if kind == "tcp" and wanted[14 + (20 if near.family == 4 else 40) + 16 :][:2] == b"\0\0":
        return  # written as 0xFFFF by Linux
    assert leaves(came, told(far, proto, SRC), edits_of(*edits)) == wanted


def test_no_udp_checksum_stays_none():
    came = craft.udp("10.0.0.2", "198.51.100.1", 1, 69, b"long text", l4_checksum=0)
    row = told(Ends("10.0.0.2", "198.51.100.1", 1, 69), craft.UDP, 0)
    assert leaves(came, row, edits_of((8, 4, b"short"))) == craft.udp("10.0.0.2", "198.51.100.1", 1, 69, b"short text", l4_checksum=0)


def test_a_wrong_checksum_becomes_right():
    """As in Linux, which makes it anew."""
    came = craft.tcp("10.0.0.2", "198.51.100.1", 1, 21, "PA", payload=b"abc", l4_checksum=1)
    row = told(Ends("10.0.0.2", "198.51.100.1", 1, 21), craft.TCP, 0)
    assert leaves(came, row, edits_of((20, 3, b"xyz"))) == craft.tcp("10.0.0.2", "198.51.100.1", 1, 21, "PA", payload=b"xyz")


@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=4, max_size=4), st.integers(-99, 99), st.sampled_from([None, 0x1234]))
def test_sack_edges_move_and_the_checksum_stays_as_right_or_wrong_as_it_was(edges, by, value):
    def segment(numbers: list[int], l4_checksum: int | None) -> bytes:
        options = bytes([1, 1, 5, 18]) + struct.pack("!4I", *numbers)
        return craft.tcp("10.0.0.2", "198.51.100.1", 1, 21, "A", seq=7, ack=8, options=options, l4_checksum=l4_checksum)

    moved = [(edge + by) & 0xFFFFFFFF for edge in edges]
    edits = edits_of(*((24 + 4 * i, 4, struct.pack("!I", edge)) for i, edge in enumerate(moved)))
    row = told(Ends("10.0.0.2", "198.51.100.1", 1, 21), craft.TCP, 0)
    left = leaves(segment(edges, value), row, edits)
    assert left is not None
    if value is None:
        assert left == segment(moved, None)
    else:
        back = edits_of(*((24 + 4 * i, 4, struct.pack("!I", edge)) for i, edge in enumerate(edges)))
        assert leaves(left, row, back) == segment(edges, value)


ROW = told(Ends("10.0.0.2", "198.51.100.1", 1, 21), craft.TCP, 0)


@pytest.mark.parametrize("edits", [
    [(20, 4, b"beyond the end")],
    [(22, 1, b""), (21, 1, b"")],
    [(18, 4, b"over the header's end")],
    [(4, 4, b"longer")],
    [(4, 3, b"odd")],
    [(0xFFFFFFFF, 0xFFFF, b"")],
])  # fmt: skip
def test_edits_that_do_not_fit_stop_the_packet(edits):
    assert leaves(craft.tcp("10.0.0.2", "198.51.100.1", 1, 21, "PA", payload=b"abc"), ROW, edits_of(*edits)) is None


def test_a_packet_that_would_be_too_long_or_was_captured_in_part_does_not_leave():
    long = craft.tcp("10.0.0.2", "198.51.100.1", 1, 21, "PA", payload=bytes(0xFFFF - 40))
    assert leaves(long, ROW, edits_of((20, 1, b"yz"))) is None
    assert leaves(craft.tcp("10.0.0.2", "198.51.100.1", 1, 21, "PA", payload=b"abcdef"), ROW, edits_of((20, 1, b"yz")), caplen=58) is None


def test_sack_edges_move_in_a_packet_that_was_captured_in_part():
    """They lie in the header, which is there."""

    def segment(edge: int) -> bytes:
        options = bytes([1, 1, 5, 10]) + struct.pack("!2I", edge, 99)
        return craft.tcp("10.0.0.2", "198.51.100.1", 1, 21, "A", options=options, payload=bytes(80), l4_checksum=None)

    memory, frames = frames_of([segment(7)[:70]])
    frames["len"] = len(segment(7))
    row = ROW.copy()
    row["flags"], row["n_edits"] = EDIT, 1
    memory, laid = rewritten(memory, frames, row, edits_of((24, 4, struct.pack("!I", 8))))
    assert memory[int(laid["offset"][0]) :].tobytes() == segment(8)[:70]
    assert (laid["caplen"].tolist(), laid["len"].tolist()) == ([70], [len(segment(7))])


def test_pppoe_counts_what_an_edit_adds():
    def session(payload: bytes) -> bytes:
        return craft.eth(craft.pppoe(craft.tcp("10.0.0.2", "198.51.100.1", 1, 21, "PA", payload=payload)[14:]), 0x8864)

    assert leaves(session(b"abc"), ROW, edits_of((20, 3, b"longer"))) == session(b"longer")


def test_only_frames_with_edits_are_edited():
    frames = [craft.tcp("10.0.0.2", "198.51.100.1", 1, 21, "PA", payload=text) for text in (b"one", b"two", b"three")]
    rows = np.repeat(ROW, 3)
    rows["flags"], rows["first_edit"], rows["n_edits"] = [0, EDIT, 0], [0, 1, 0], [0, 1, 0]
    memory, laid = rewritten(*frames_of(frames), rows, edits_of((20, 3, b"not this"), (20, 3, b"twelve")))
    left = [memory[f["offset"] : f["offset"] + f["caplen"]].tobytes()[54:] for f in laid]
    assert left == [b"one", b"twelve", b"three"]

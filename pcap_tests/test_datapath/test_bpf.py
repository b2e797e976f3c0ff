"""The assembler: distances of jumps, two-word instructions, the bytes of RFC 9669."""

from __future__ import annotations

import errno
import struct

import pytest

from datapath import bpf
from datapath.bpf import FP, R0, R1, R2, assemble
from datapath.errors import KernelError


def decoded(code: bytes) -> list[tuple[int, int, int, int, int]]:
    """(code, dst, src, offset, value) of each instruction."""
    return [(c, registers & 15, registers >> 4, offset, value) for c, registers, offset, value in struct.iter_unpack("<BBhi", code)]


def test_instructions_are_those_of_the_rfc() -> None:
    program = [bpf.load(R1, R2, 8), bpf.load(R1, R2, 4, 1), bpf.store(FP, -8, R1), bpf.store_value(FP, -4, 7, 4), bpf.call(118), bpf.leave()]
    assert decoded(assemble(program)) == [
        (0x79, 1, 2, 8, 0), (0x71, 1, 2, 4, 0), (0x7B, 10, 1, -8, 0), (0x62, 10, 0, -4, 7), (0x85, 0, 0, 0, 118), (0x95, 0, 0, 0, 0),
    ]  # fmt: skip


def test_jumps_count_from_the_next_instruction_in_both_directions() -> None:
    program = [
        bpf.label("top", bpf.move_value(R0, 0)),
        bpf.jump_equal(R0, 0, "end"),
        *bpf.map_address(R1, 3),
        bpf.jump("top"),
        bpf.label("end", bpf.leave()),
    ]
    assert [step[3] for step in decoded(assemble(program))] == [0, 3, 0, 0, -5, 0]


def test_large_values_are_signed_as_the_kernel_reads_them() -> None:
    assert decoded(assemble([bpf.jump_unequal32(R1, 0xF0000000, "out"), bpf.label("out", bpf.leave())]))[0][4] == 0xF0000000 - (1 << 32)


def test_a_program_the_kernel_refuses_is_named_with_its_words(running_kernel: None) -> None:
    with pytest.raises(KernelError, match=r"BPF program lost: .*R0 !read_ok"):
        bpf.Runnable([bpf.leave()], "lost")


def test_records_come_out_of_the_ring_in_order_and_round_its_end(running_kernel: None) -> None:
    """More than twice the ring's size passes through, so records lie across its end, too."""
    ring = bpf.Ring(4096)
    program = [
        bpf.move(bpf.R6, R1),
        *bpf.map_address(R1, ring.fd),
        bpf.move_value(R2, 40),
        bpf.move_value(bpf.R3, 0),
        bpf.call(bpf.RINGBUF_RESERVE),
        bpf.jump_equal(R0, 0, "out"),
        bpf.load(R1, bpf.R6, 0),
        *(bpf.store(R0, at, R1) for at in range(0, 40, 8)),
        bpf.move(R1, R0),
        bpf.move_value(R2, bpf.NO_WAKEUP),
        bpf.call(bpf.RINGBUF_SUBMIT),
        bpf.label("out", bpf.move_value(R0, 0)),
        bpf.leave(),
    ]
    note = bpf.Runnable(program, "note")
    try:
        for start in range(0, 300, 50):
            for number in range(start, start + 50):
                note(number)
            assert [struct.unpack("<5Q", record) for record in ring.records()] == [(number,) * 5 for number in range(start, start + 50)]
        assert list(ring.records()) == []
    finally:
        note.close()
        ring.close()


def test_many_keys_are_deleted_and_what_is_not_there_is_told_of_itself(running_kernel: None) -> None:
    keys = [struct.pack("<I", number) for number in range(1000)]
    table = bpf.Map(bpf.HASH, 4, 4, 1000, "keys")
    try:
        assert table.put_new(keys[::2], b"here") == [0] * 500
        assert table.delete(keys) == [0, errno.ENOENT] * 500 and table.keys(1) == []
    finally:
        bpf.close(table.fd)


def test_where_nothing_may_be_deleted_the_kernel_s_own_word_is_told(running_kernel: None) -> None:
    """Of what it has not begun it says no number."""
    table = bpf.Map(bpf.HASH, 4, 4, 10, "keys")
    bpf.close(table.fd)
    with pytest.raises(KernelError, match="BPF map keys: Bad file descriptor"):
        table.delete([b"1234", b"5678"])

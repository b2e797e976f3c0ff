"""Files as memory: mapped, decompressed or piped in, a capture reads the same, in bounded memory, and what cannot be opened is one line."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctcore.errors import CaptureError
from datapath.capture import PcapSource
from pcap_tests.capture_files import SMALL, T, opened, packets_of, pcap, read, section
from pcap_tests.conftest import examples

HOSTILE = settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COMPRESS = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstandard.compress}


# --- compression and streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", COMPRESS)
@pytest.mark.parametrize("kind", SMALL)
def test_compressed_captures_read_as_plain_ones(tmp_path, codec, kind):
    data, _ = SMALL[kind]
    packed = COMPRESS[codec](data)
    half = len(data) // 2
    members = COMPRESS[codec](data[:half]) + COMPRESS[codec](b"") + COMPRESS[codec](data[half:])
    for variant in (packed, members, members + bytes(8)):
        with opened(tmp_path, variant) as source:
            assert source.format == f"{kind}, {codec}" and source.size == len(variant)
            assert packets_of(source) == read(tmp_path, data)
            assert source.position == len(variant)


def test_zstd_files_that_begin_with_a_skippable_frame(tmp_path):
    data, _ = SMALL["pcap"]
    assert read(tmp_path, b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(data)) == read(tmp_path, data)


def test_a_large_compressed_capture_comes_through_a_small_window(tmp_path):
    records = [(T, i, os.urandom(i * 37 % 1500)) for i in range(3000)]
    expected, _ = read(tmp_path, pcap(*records))
    for compress in COMPRESS.values():
        assert read(tmp_path, compress(pcap(*records)), window=2000) == (expected, None)


@pytest.mark.parametrize("codec", COMPRESS)
@pytest.mark.parametrize("pad", [1, 511, 512, 513, 70_000])
def test_zero_padding_of_any_length_is_none(tmp_path, codec, pad):
    """Behind the end and between two members, wherever it lies in the pieces the decoder is given."""
    data, _ = SMALL["pcap"]
    first, second = COMPRESS[codec](data[:50]), COMPRESS[codec](data[50:])
    assert read(tmp_path, first + bytes(pad) + second + bytes(pad)) == read(tmp_path, data)


def test_garbage_behind_the_padding_is_damage_all_the_same(tmp_path):
    rows, damage = read(tmp_path, gzip.compress(SMALL["pcap"][0]) + bytes(1000) + b"garbage")
    assert len(rows) == 5 and "damaged: the gzip stream breaks off after" in damage


def test_garbage_behind_a_compressed_stream_is_damage(tmp_path):
    rows, damage = read(tmp_path, gzip.compress(SMALL["pcap"][0]) + b"garbage")
    assert len(rows) == 5 and "damaged: the gzip stream breaks off after" in damage and damage.endswith("the first 5 packets were read")


def test_a_compressed_file_that_is_no_capture(tmp_path):
    assert read(tmp_path, gzip.compress(b"hello, world"))[1].startswith("test.pcap: not a capture: starts with 68 65 6c 6c")
    assert read(tmp_path, gzip.compress(b""))[1] == "test.pcap: empty: expected a pcap or pcapng header"


ZEROS = bytes(128 << 20)


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_decompression_bomb_takes_bounded_memory(tmp_path, codec):
    """Much zero: as no capture, as records of no bytes, as a record and a block that say more than is believed, and as the largest block."""
    zeros = lzma.compress(ZEROS, preset=0) if codec == "xz" else COMPRESS[codec](ZEROS)
    for head, count in (
        (b"", 0),
        (pcap(), len(ZEROS) // 16),
        (pcap() + struct.pack("<4I", 0, 0, 1 << 28, 1 << 28), 0),
        (section() + struct.pack("<2I", 0xBAD, 1 << 28), 0),
        (section() + struct.pack("<2I", 0xBAD, 1 << 24), 0),
    ):
        path = tmp_path / "bomb"
        path.write_bytes(COMPRESS[codec](head) + zeros)
        assert path.stat().st_size < 1 << 20
        tracemalloc.start()
        try:
            assert count_of(path) == count
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()


def count_of(path):
    try:
        with PcapSource(path) as source:
            while len(source.read(100_000)[1]):
                pass
            return source.packets
    except CaptureError:
        return 0


def test_a_pipe_is_read_as_it_is_written():
    data, ends = SMALL["pcap"]
    read_end, write_end = os.pipe()
    os.write(write_end, data[: ends[1] + 5])
    with PcapSource(f"/proc/self/fd/{read_end}", name="pipe") as source:
        assert source.size is None
        assert [len(source.read(1)[1]) for _ in range(2)] == [1, 1]
        os.write(write_end, data[ends[1] + 5 :])
        os.close(write_end)
        while len(source.read(10)[1]):
            pass
        assert source.packets == 5 and source.position == len(data)
    os.close(read_end)


def test_standard_input(tmp_path, monkeypatch):
    data, _ = SMALL["pcapng"]
    (tmp_path / "in").write_bytes(gzip.compress(data))
    saved, fd = os.dup(0), os.open(tmp_path / "in", os.O_RDONLY)
    os.dup2(fd, 0)
    try:
        with PcapSource("-") as source:
            assert (source.name, source.format) == ("standard input", "pcapng, gzip")
            assert len(packets_of(source)[0]) == 5
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(fd)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("window", [None, 1])
def test_a_capture_cut_at_any_byte_gives_the_packets_that_are_whole(tmp_path, kind, window):
    data, ends = SMALL[kind]
    whole, damage = read(tmp_path, data)
    assert damage is None and len(whole) == 5 and ends[-1] == len(data)
    for cut in range(len(data)):
        rows, damage = read(tmp_path, data[:cut], window)
        count = sum(end <= cut for end in ends)
        assert rows == whole[:count]
        clean = cut in ends or (kind == "pcap" and cut == 24) or (kind == "pcapng" and cut in (28, ends[0] - 32))
        assert (damage is None) == clean, cut


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_compressed_capture_cut_at_any_byte_gives_whole_packets_and_says_so(tmp_path, codec):
    data, _ = SMALL["pcapng"]
    whole, _ = read(tmp_path, data)
    packed = COMPRESS[codec](data)
    for cut in range(6, len(packed)):
        rows, damage = read(tmp_path, packed[:cut])
        assert rows == whole[: len(rows)] and f"truncated: the {codec} stream ends unfinished" in damage


@HOSTILE
@given(kind=st.sampled_from(sorted(SMALL)), edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_corrupt_bytes_are_packets_or_one_line_and_mapped_or_not_makes_no_difference(tmp_path, kind, edits):
    data = bytearray(SMALL[kind][0])
    for place, value in edits:
        data[place % len(data)] = value
    assert read(tmp_path, bytes(data)) == read(tmp_path, bytes(data), window=1) == read(tmp_path, bytes(data), window=64)


@HOSTILE
@given(codec=st.sampled_from(sorted(COMPRESS)), edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_corrupt_compressed_bytes_are_packets_or_one_line(tmp_path, codec, edits):
    data = bytearray(COMPRESS[codec](SMALL["pcap"][0]))
    for place, value in edits:
        data[place % len(data)] ^= value
    read(tmp_path, bytes(data))


# --- files ------------------------------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_opened_are_one_line(tmp_path):
    with pytest.raises(CaptureError, match=r"nowhere\.pcap: cannot be opened: No such file or directory"):
        PcapSource(tmp_path / "nowhere.pcap")
    with pytest.raises(CaptureError, match="is a directory, expected a capture file"):
        PcapSource(tmp_path)
    with pytest.raises(CaptureError, match="cannot be opened"):
        PcapSource("nul\0byte")
    with pytest.raises(CaptureError, match="cannot be read: Input/output error"):
        PcapSource("/proc/self/mem")


def test_a_file_without_permission_is_one_line():
    """In a child, which gives up its rights if it has any: root may read everything. Its folder is one that everybody may enter."""
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret.pcap"
        secret.write_bytes(pcap())
        secret.chmod(0)
        Path(folder).chmod(0o755)
        child = os.fork()
        if child == 0:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setuid(65534)
            try:
                PcapSource(secret)
            except CaptureError as error:
                os._exit(0 if str(error) == f"{secret}: cannot be opened: Permission denied" else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_memory_outlives_the_source_and_reading_does_not(tmp_path):
    with opened(tmp_path, SMALL["pcap"][0]) as source:
        memory, frames = source.read(5)
    source.close()
    assert memory[int(frames["offset"][4]) :][:28].tobytes() == b"\x04" * 28
    with pytest.raises(CaptureError, match="is closed"):
        source.read(1)
    with pytest.raises(ValueError, match="n = 0"):
        source.read(0)
    with pytest.raises(ValueError, match="window = 0"):
        PcapSource(tmp_path / "file", window=0)


def test_nothing_is_copied_of_a_plain_file(tmp_path):
    with opened(tmp_path, SMALL["pcap"][0]) as source:
        first, second = source.read(2)[0], source.read(2)[0]
        assert np.shares_memory(first, second) and len(first) == len(SMALL["pcap"][0])

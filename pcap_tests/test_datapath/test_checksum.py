"""The compiled checksums against naive twins, at every length and alignment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import datapath.checksum
from datapath.checksum import castagnoli, internet_checksum


def naive_checksum(data: bytes) -> int:
    """RFC 1071 4.1, word by word."""
    total = 0
    for i in range(0, len(data), 2):
        total += data[i] << 8 | (data[i + 1] if i + 1 < len(data) else 0)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def naive_crc32c(data: bytes) -> int:
    """Bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_compiled_module_is_loaded():
    assert datapath.checksum.__file__.endswith(".so")


def test_example_of_rfc_1071():
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF ^ 0xDDF2


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),  # RFC 3720 B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_values_of_crc32c(data, crc):
    assert castagnoli(data) == crc


@pytest.mark.parametrize("fill", [0x00, 0xFF, None])
def test_sum_of_every_length_and_alignment(fill):
    data = np.full(300, fill, dtype=np.uint8) if fill is not None else np.random.default_rng(1).integers(0, 256, 300).astype(np.uint8)
    for start in range(9):
        for length in range(280):
            piece = data[start : start + length]
            assert internet_checksum(piece) == naive_checksum(piece.tobytes()), (start, length)


@given(st.binary(max_size=2000))
def test_sum_of_any_bytes(data):
    assert internet_checksum(data) == naive_checksum(data)


@pytest.mark.parametrize("length", [65535, 65536, 1 << 20])
def test_sum_of_large_data_full_of_carries(length):
    data = b"\xff\xfe" * (length // 2) + b"\xff" * (length % 2)
    assert internet_checksum(data) == naive_checksum(data)


def test_sum_does_not_depend_on_what_lies_around():
    data = np.random.default_rng(2).integers(0, 256, 64).astype(np.uint8)
    expected = naive_checksum(data[16:37].tobytes())
    data[:16] ^= 0xFF
    data[37:] ^= 0xFF
    assert internet_checksum(data[16:37]) == expected


@given(st.binary(max_size=300), st.integers(min_value=0, max_value=300))
def test_crc32c_of_any_bytes_in_one_piece_and_in_two(data, cut):
    expected = naive_crc32c(data)
    assert castagnoli(data) == expected
    assert castagnoli(data[cut:], castagnoli(data[:cut])) == expected

"""Attributes as bytes, packed by hand: an object for each, as pyroute2 makes them, costs fifty times more.

Not here: which attributes there are (attributes), messages (filters).
"""

from __future__ import annotations

from struct import Struct

NESTED = 0x8000  # NLA_F_NESTED
_HEADER, _U8, _U16, _U32, _U64 = (Struct(layout) for layout in ("=HH", "=HHBxxx", "=HHHxx", "=HHI", "=HHQ"))
_FILL = (b"", b"\0\0\0", b"\0\0", b"\0")


def attribute(number: int, data: bytes) -> bytes:
    """Padded to 4 bytes. Raises struct.error for what is longer than 65,531 bytes."""
    size = len(data)
    return _HEADER.pack(size + 4, number) + data + _FILL[size & 3]


def nested(number: int, *parts: bytes) -> bytes:
    """A level, marked as one."""
    return attribute(number | NESTED, b"".join(parts))


def u8(number: int, value: int) -> bytes:
    return _U8.pack(5, number, value)


def u16(number: int, value: int) -> bytes:
    return _U16.pack(6, number, value)


def u32(number: int, value: int) -> bytes:
    return _U32.pack(8, number, value)


def u64(number: int, value: int) -> bytes:
    return _U64.pack(12, number, value)


def text(number: int, value: str) -> bytes:
    return attribute(number, value.encode() + b"\0")

"""Captures made by struct.pack, independent of the code under test, and the plainest way to read one back."""

from __future__ import annotations

import re
import struct

import pytest

from ctcore.errors import CaptureError
from datapath.capture import PcapSource

T = 1_700_000_000
SECOND = 10**9


def pcap(*records, order="<", magic=0xA1B2C3D4, version=(2, 4), snaplen=65535, link=1):
    """records: (seconds, fraction, data) or (seconds, fraction, data, caplen, len)."""
    file = struct.pack(order + "I2HiI2I", magic, *version, 0, 0, snaplen, link)
    for seconds, fraction, data, *lengths in records:
        file += struct.pack(order + "4I", seconds, fraction, *(lengths or (len(data), len(data)))) + data
    return file


def block(order, kind, body, length=None, trailer=None):
    length = 12 + len(body) if length is None else length
    return struct.pack(order + "2I", kind, length) + body + struct.pack(order + "I", length if trailer is None else trailer)


def padded(data):
    return data + bytes(-len(data) % 4)


def section(order="<", version=(1, 0), magic=0x1A2B3C4D):
    return block(order, 0x0A0D0D0A, struct.pack(order + "I2Hq", magic, *version, -1))


def option(order, code, data):
    return struct.pack(order + "2H", code, len(data)) + padded(data)


def interface(order="<", link=1, snaplen=65535, resolution=None, offset=None, fcs=None, extra=b""):
    options = option(order, 2, b"eth0") + extra
    options += option(order, 9, bytes([resolution])) if resolution is not None else b""
    options += option(order, 14, struct.pack(order + "q", offset)) if offset is not None else b""
    options += option(order, 13, bytes([fcs])) if fcs is not None else b""
    return block(order, 1, struct.pack(order + "2HI", link, 0, snaplen) + options + bytes(4))


def enhanced(data, stamp=0, order="<", iface=0, length=None, caplen=None, options=b""):
    head = struct.pack(order + "5I", iface, stamp >> 32, stamp & 0xFFFFFFFF, len(data) if caplen is None else caplen, length or len(data))
    return block(order, 6, head + padded(data) + options)


def obsolete(data, stamp=0, order="<", iface=0, drops=0):
    return block(order, 2, struct.pack(order + "2H4I", iface, drops, stamp >> 32, stamp & 0xFFFFFFFF, len(data), len(data)) + padded(data))


def simple(data, length=None, order="<"):
    return block(order, 3, struct.pack(order + "I", length or len(data)) + padded(data))


def packets_of(source, n=3):
    """(bytes, len, ts) of each packet and the damage the capture ends with, or None. Frames lie within memory, and damage stays."""
    rows = []
    while True:
        try:
            memory, frames = source.read(n)
        except CaptureError as damage:
            with pytest.raises(CaptureError, match=re.escape(str(damage))):
                source.read(1)
            assert "\n" not in str(damage) and source.packets == len(rows)
            return rows, str(damage)
        assert not memory.flags.writeable and len(frames) <= n
        if not len(frames):
            assert source.packets == len(rows)
            return rows, None
        assert (frames["offset"] + frames["caplen"] <= len(memory)).all() and (frames["caplen"] <= frames["len"]).all()
        rows += [(memory[int(f["offset"]) :][: int(f["caplen"])].tobytes(), int(f["len"]), int(f["ts"])) for f in frames]


def opened(tmp_path, data, window=None, name="test.pcap", **how):
    path = tmp_path / "file"
    path.write_bytes(data)
    return PcapSource(path, name=name, window=window, **how)


def read(tmp_path, data, window=None):
    """Packets and damage, whether it shows at opening or at reading."""
    try:
        with opened(tmp_path, data, window) as source:
            return packets_of(source)
    except CaptureError as refusal:
        return [], str(refusal)


# A capture of five packets of 0, 7, ... 28 bytes, and where each ends.
SMALL = {
    "pcap": (pcap(*[(T + i, i, bytes([i]) * (7 * i)) for i in range(5)]), [24 + sum(16 + 7 * k for k in range(i + 1)) for i in range(5)]),
    "pcapng": (
        section(">") + interface(">", resolution=9) + b"".join(enhanced(bytes([i]) * (7 * i), i, ">") for i in range(5)),
        [len(section() + interface(resolution=9)) + sum(32 + -(-7 * k // 4) * 4 for k in range(i + 1)) for i in range(5)],
    ),
}

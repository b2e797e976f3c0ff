"""Memory between two pages that may not be touched, and the invariant of what parse() makes of it; for tests and fuzzers.

A read beyond either end kills the run, so that it cannot pass unnoticed.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from ctcore.types import State, Verdict
from datapath import frame as f
from datapath.frame import FRAME_DTYPE, LINK_ETHERNET

PROT_NONE = 0
LINKS = [f.LINK_NULL, f.LINK_ETHERNET, f.LINK_RAW_12, f.LINK_RAW_14, f.LINK_RAW, f.LINK_LOOP, f.LINK_SLL, f.LINK_IPV4, f.LINK_IPV6, f.LINK_SLL2]


class Guarded:
    """`size` usable bytes, a multiple of the page size. `frames(...)` lays packets so that they end where the memory ends."""

    def __init__(self, size: int = 1 << 16) -> None:
        page = mmap.PAGESIZE
        size = -(-size // page) * page
        self._map = mmap.mmap(-1, size + 2 * page)
        whole = np.frombuffer(self._map, dtype=np.uint8)
        self.memory = whole[page : page + size]
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start in (whole.ctypes.data, whole.ctypes.data + page + size):
            if protect(start, page, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")

    def at_end(self, packet: bytes, *, link: int = LINK_ETHERNET, wire_len: int | None = None) -> np.ndarray:
        """One frame whose last byte is the last that may be read."""
        offset = len(self.memory) - len(packet)
        self.memory[offset:] = np.frombuffer(packet, dtype=np.uint8)
        return self._frame(offset, len(packet), link, wire_len)

    def at_start(self, packet: bytes, *, link: int = LINK_ETHERNET, wire_len: int | None = None) -> np.ndarray:
        """One frame whose first byte is the first that may be read."""
        self.memory[: len(packet)] = np.frombuffer(packet, dtype=np.uint8)
        return self._frame(0, len(packet), link, wire_len)

    def _frame(self, offset: int, caplen: int, link: int, wire_len: int | None) -> np.ndarray:
        frames = np.zeros(1, dtype=FRAME_DTYPE)
        frames["offset"], frames["caplen"], frames["link"] = offset, caplen, link
        frames["len"] = caplen if wire_len is None else wire_len
        return frames


def check_row(row: np.void, memory: np.ndarray, frame: np.ndarray) -> None:
    """l4 + l4_have exceeds neither the capture nor the IP length; a row is pending with a tuple, or final with a reason."""
    start = memory.ctypes.data + int(frame["offset"][0])
    p = {name: int(row[name]) for name in row.dtype.names if name != "key"}
    assert p["l4_have"] <= p["l4_len"] <= p["ip_len"] <= p["wire_len"]
    if p["l4"]:
        assert start + p["l3_off"] <= p["l4"] <= p["l4"] + p["l4_have"] <= start + int(frame["caplen"][0])
    else:
        assert p["l4_have"] == 0 and p["verdict"] != Verdict.PENDING
    assert (p["verdict"] == Verdict.PENDING) == (p["reason"] == 0)
    assert p["state"] in (State.NOT_SEEN, State.INVALID)
    assert row["key"]["family"] in (4, 6) or p["reason"] != 0

"""Memory between two pages that may not be touched: a read beyond either end kills the test run, so that it cannot pass unnoticed."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

from datapath.frame import FRAME_DTYPE, LINK_ETHERNET

PROT_NONE = 0


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

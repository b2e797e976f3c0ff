"""Frames as arrays: FRAME_DTYPE is the C struct Frame, and frames_of() makes both memory and array from bytes.

Taker is what a source can hand frames to without the GIL.
Not here: reading captures (capture), looking into frames (wire).
"""

import numpy as np

from libc.stdint cimport uint8_t, uint64_t

assert sizeof(Frame) == 32

FRAME_DTYPE = np.dtype([("offset", "u8"), ("caplen", "u4"), ("len", "u4"), ("ts", "i8"), ("link", "u4"), ("iface", "u4")])

LINK_NULL, LINK_ETHERNET, LINK_RAW_12, LINK_RAW_14, LINK_RAW, LINK_LOOP = 0, 1, 12, 14, 101, 108
LINK_SLL, LINK_IPV4, LINK_IPV6, LINK_SLL2 = 113, 228, 229, 276


def frames_of(packets, ts=0, link=LINK_ETHERNET):
    """Memory and frames of a list of bytes objects.

    packets: list of bytes-like; ts: ns, one for all or one each; link: LINKTYPE_*. Returns (uint8[total], FRAME_DTYPE[len(packets)]).
    """
    lengths = np.array([len(p) for p in packets], dtype=np.uint64)
    frames = np.zeros(len(packets), dtype=FRAME_DTYPE)
    frames["offset"] = np.cumsum(lengths) - lengths
    frames["caplen"] = frames["len"] = lengths
    frames["ts"] = ts
    frames["link"] = link
    return np.frombuffer(b"".join(packets), dtype=np.uint8), frames


cdef class Taker:
    cdef void take(self, const uint8_t *memory, const Frame *frames, int n) noexcept nogil:
        pass


cdef const Frame *checked_frames(const uint8_t[::1] memory, frames) except? NULL:
    """The rows of FRAME_DTYPE[n], every frame of which lies within memory; ValueError otherwise. Behind this, pointers are believed.

    The caller keeps `frames` alive. NULL, without an error, for no frames at all.
    """
    cdef Py_ssize_t i, n
    cdef uint64_t size = memory.shape[0]
    cdef const Frame *frame
    if not isinstance(frames, np.ndarray) or frames.dtype != FRAME_DTYPE or frames.ndim != 1:
        raise ValueError("frames: expected a one-dimensional array of FRAME_DTYPE")
    if not frames.flags.c_contiguous or not frames.flags.aligned:
        raise ValueError("frames: expected a contiguous and aligned array")
    n = len(frames)
    if n == 0:
        return NULL
    frame = <const Frame *><size_t>frames.ctypes.data
    for i in range(n):
        if frame[i].caplen > size or frame[i].offset > size - frame[i].caplen:
            raise ValueError(f"frames[{i}]: expected offset + caplen within the {size} bytes of memory")
    return frame

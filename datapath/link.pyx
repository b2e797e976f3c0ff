"""Link layers for Python: where the IP packet lies in a frame. The walk itself is in link.pxd, for the packet path has no Python in it.

Not here: what the IP header says (wire).
"""

from libc.stdint cimport uint8_t

import numpy as np

from ctcore.types cimport R_OK
from datapath.frame cimport Frame, checked_frames

INNER_DTYPE = np.dtype([("offset", "u8"), ("have", "u4"), ("length", "u4"), ("family", "u1"), ("reason", "u1")])


def inner(memory, frames):
    """Where each frame's IP packet lies. See link.pyi."""
    data = np.ascontiguousarray(memory if isinstance(memory, np.ndarray) else np.frombuffer(memory, dtype=np.uint8))
    cdef const uint8_t[::1] view = data
    frames = np.require(frames, requirements="CA")
    cdef const Frame *frame = checked_frames(view, frames)
    cdef size_t base = data.ctypes.data
    cdef Cursor cursor
    cdef uint8_t family, reason
    found = []
    for i in range(len(frames)):
        cursor.p = <const uint8_t *>base + frame[i].offset
        cursor.have = frame[i].caplen
        cursor.length = max(frame[i].len, frame[i].caplen)
        family = 0
        reason = to_ip(&cursor, frame[i].link, &family)
        found.append((<size_t>cursor.p - base, cursor.have, cursor.length, family if reason == R_OK else 0, reason))
    return np.array(found, dtype=INNER_DTYPE)

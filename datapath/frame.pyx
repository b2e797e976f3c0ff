"""Frames as arrays: FRAME_DTYPE is the C struct Frame, and frames_of() makes both memory and array from bytes.

Not here: reading captures (capture), looking into frames (wire).
"""

import numpy as np

from datapath.frame cimport Frame

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

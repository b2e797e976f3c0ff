"""Frames on their way into a NIC, and which of them go in together.

Not here: what becomes of them (walk).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload.simnic.faults import FOREVER


class Arrived(NamedTuple):
    """memory: uint8[m]; frames: structured[n]; ifaces: int64[n]. All are looked at only."""

    memory: NDArray[np.uint8]
    frames: NDArray[Any]
    ifaces: NDArray[Any]


class Part(NamedTuple):
    """Frames from row `start` on that meet the same tables: up to row `end`, the first one that is not within since <= ts < until, or, once one has
    missed, the one `company` rows or `linger` ns behind that: for what software makes of it may be known to hardware from then on. There is one at
    least."""

    start: int
    end: int
    until: int = FOREVER
    since: int = -FOREVER
    company: int = FOREVER
    linger: int = FOREVER


def arrived(memory: NDArray[np.uint8], frames: NDArray[Any], ifaces: NDArray[Any] | None = None) -> Arrived:
    """See Nic.process: raises ValueError for what it says."""
    if memory.dtype != np.uint8 or memory.ndim != 1 or not memory.flags.c_contiguous:
        raise ValueError("memory: expected a contiguous array of bytes")
    if frames.ndim != 1 or frames.dtype.names is None or not frames.flags.c_contiguous:
        raise ValueError("frames: expected a contiguous structured array")
    ends = frames["offset"].astype(np.int64) + frames["caplen"]
    if len(frames) and (frames["offset"].astype(np.int64).min() < 0 or ends.max() > len(memory)):
        raise ValueError(f"frames: expected offset + caplen within the {len(memory)} bytes of memory")
    if (frames["len"] < frames["caplen"]).any():
        raise ValueError("frames: expected len not below caplen")
    if ifaces is not None and ifaces.shape != frames.shape:
        raise ValueError("ifaces: expected one of each frame")
    numbers = frames["iface"] if ifaces is None else ifaces
    if len(frames) and not (int(numbers.min()) >= 0 and int(numbers.max()) < 0xFFFF):
        raise ValueError("ifaces: expected numbers from 0 to 65534")
    memory = memory.view()
    memory.flags.writeable = False  # whosever it is: so that the walk is compiled once
    return Arrived(memory, frames, np.ascontiguousarray(numbers, dtype=np.int64))

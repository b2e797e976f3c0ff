"""Frames of captures that have no Ethernet headers (tcpdump -i any, tunnels, loopback), as if each had come in an Ethernet frame: what a NIC sees.

A frame of Linux cooked: 16 bytes of header, then IP -> 12 zeros, the header's ethertype, then IP; so is all that stands behind, tags included.
Invariant: what is no Ethernet frame and has its link header whole becomes one, with MAC addresses of zeros; every other frame stays as it is.
Not here: what is in the frames. Who writes captures must not use it: they would have other bytes than they came with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datapath import frame
from datapath.rewrite import copied

ETHERNET, TYPE_AT = 14, 12  # bytes
IPV4, IPV6 = 0x0800, 0x86DD
# By link type: bytes of its header, and where the ethertype stands in it; None: the IP header tells.
HEADERS: dict[int, tuple[int, int | None]] = {
    frame.LINK_SLL: (16, 14), frame.LINK_SLL2: (20, 0), frame.LINK_NULL: (4, None), frame.LINK_LOOP: (4, None), frame.LINK_RAW: (0, None),
    frame.LINK_RAW_12: (0, None), frame.LINK_RAW_14: (0, None), frame.LINK_IPV4: (0, None), frame.LINK_IPV6: (0, None),
}  # fmt: skip


def framed(memory: NDArray[np.uint8], frames: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any], int]:
    """Memory and frames (FRAME_DTYPE[n]) as Ethernet has them, and how many became so."""
    links = np.unique(frames["link"]).tolist()
    if not any(link in HEADERS for link in links):
        return memory, frames, 0
    cut, kinds = np.zeros(len(frames), dtype=np.int64), np.zeros((len(frames), 2), dtype=np.uint8)
    changed = np.zeros(len(frames), dtype=bool)
    for link in links:
        if link in HEADERS:
            size, _ = HEADERS[link]
            of_it = (frames["link"] == link) & (frames["caplen"] > size)
            cut[of_it] = size
            kinds[of_it] = _kinds(memory, frames["offset"][of_it].astype(np.int64), link)
            changed |= of_it
    own, laid = copied(memory, frames[~changed])
    made, rows = _made(memory, frames[changed], cut[changed], kinds[changed])
    rows["offset"] += len(own)
    frames = frames.copy()
    frames[~changed], frames[changed] = laid, rows
    return np.concatenate([own, made]), frames, int(changed.sum())


def _kinds(memory: NDArray[np.uint8], at: NDArray[Any], link: int) -> NDArray[np.uint8]:
    """Ethertypes: uint8[n, 2]. at: of each frame."""
    size, place = HEADERS[link]
    if place is not None:
        return np.stack([memory[at + place], memory[at + place + 1]], axis=1)
    kind = np.where(memory[at + size] >> 4 == 6, IPV6, IPV4)
    return np.stack([kind >> 8, kind & 0xFF], axis=1).astype(np.uint8)


def _made(memory: NDArray[np.uint8], frames: NDArray[Any], cut: NDArray[Any], kinds: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """New memory with the frames in it, without the first `cut` bytes of each and with a header in front."""
    rest = frames["caplen"].astype(np.int64) - cut
    starts = np.cumsum(rest + ETHERNET) - (rest + ETHERNET)
    own = np.zeros(int((rest + ETHERNET).sum()), dtype=np.uint8)
    for i in range(2):
        own[starts + TYPE_AT + i] = kinds[:, i]
    within = np.arange(int(rest.sum())) - np.repeat(np.cumsum(rest) - rest, rest)
    own[np.repeat(starts + ETHERNET, rest) + within] = memory[np.repeat(frames["offset"].astype(np.int64) + cut, rest) + within]
    frames = frames.copy()
    frames["offset"], frames["caplen"], frames["link"] = starts, rest + ETHERNET, frame.LINK_ETHERNET
    frames["len"] = frames["len"].astype(np.int64) - cut + ETHERNET
    return own, frames

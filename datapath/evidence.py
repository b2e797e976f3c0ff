"""Bad checksums looked at: what an offloading NIC leaves, or bad indeed.

A host that has its NIC calculate checksums captures its own packets before they are: their field holds the sum of the pseudo-header, or nothing,
or the packet is still (or already) several in one, larger than any that was on a wire.
What rules never look at, header checksums and what is behind tags, is looked at here in a sample, since it may be why they do not match.
Not here: verifying checksums (wire), what is said about them (hints). Invariant: however many are bad, a bounded number of frames is looked at.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ctcore.types import Proto, Reason
from datapath.fields import KEY
from datapath.frame import LINK_ETHERNET
from datapath.pipeline.rules import ETH_QINQ, ETH_VLAN
from datapath.wire import parse_batch

BAD = (Reason.R_TCP_CHECKSUM, Reason.R_UDP_CHECKSUM)
ETHERNET = 14  # bytes
ENOUGH = 1000  # packets to look at
CHUNKS = 64  # chunks to look for them in, each of which is parsed once more
SAMPLE = 2048  # packets of each of these chunks whose headers are looked at
VLANS = (ETH_VLAN, ETH_QINQ)
MOST_VLANS, VLAN = 2, 4  # of a frame's tags, those that flower looks behind; bytes of one
SHUT = (0x8847, 0x8848, 0x8864)  # MPLS, PPPoE: IP may stand behind it, and flower does not look there
TAGS = (*VLANS, *SHUT)  # what stands in front of IP
LARGEST = 1518  # bytes of an Ethernet frame with a VLAN tag


class Evidence:
    """What the first packets with bad TCP or UDP checksums look like. looked: how many were looked at; left: of these, those left to a NIC."""

    def __init__(self) -> None:
        self.looked = self.left = 0
        self._known = self._chunks = 0

    def look(self, memory: Any, frames: np.ndarray, bad: int) -> None:
        """Look at the frames just replayed, if any of them was bad. bad: how many packets had one of the reasons BAD up to now."""
        known, self._known = self._known, bad
        if self._known == known or self.looked >= ENOUGH or self._chunks >= CHUNKS:
            return
        self._chunks += 1
        batch = parse_batch(memory, frames)
        packets = batch.array
        for row in np.flatnonzero(np.isin(packets["l4_reason"], BAD))[: ENOUGH - self.looked].tolist():
            self.looked += 1
            self.left += int(frames["len"][row]) > LARGEST or is_partial(packets[row], batch.l4_bytes(row))


class Headers:
    """What the headers of some packets have that rules do not look at. looked: packets; bad_sums: of these, those with a bad IPv4 header checksum;
    tagged: those with something between Ethernet and IP, by its Ethernet type; hidden: those with something that no rule looks behind, by its type,
    a tag's where it is the third."""

    def __init__(self) -> None:
        self.looked = self.bad_sums = self._chunks = 0
        self.tagged: Counter[int] = Counter()
        self.hidden: Counter[int] = Counter()

    def look(self, memory: Any, frames: np.ndarray) -> None:
        """Look at some of the frames of a chunk."""
        if self._chunks >= CHUNKS:
            return
        self._chunks += 1
        some = frames[:SAMPLE]
        self.looked += len(some)
        self.bad_sums += int(np.count_nonzero(parse_batch(memory, some, checksum=False).array["reason"] == Reason.R_IP_CHECKSUM))
        some = some[(some["link"] == LINK_ETHERNET) & (some["caplen"] >= ETHERNET)]
        data = np.frombuffer(memory, np.uint8)
        at, end = (some["offset"].astype(np.int64) + each for each in (ETHERNET, some["caplen"]))
        kinds = _type_before(data, at)
        self.tagged.update(_counted(kinds, TAGS))
        for _ in range(MOST_VLANS):
            self.hidden.update(_counted(kinds, SHUT))
            more = np.isin(kinds, VLANS) & (at + VLAN <= end)
            at, end = at[more] + VLAN, end[more]
            kinds = _type_before(data, at)
        self.hidden.update(_counted(kinds, TAGS))


def _type_before(data: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The Ethernet types in front of these bytes."""
    return data[at - 2].astype(int) << 8 | data[at - 1]


def _counted(kinds: np.ndarray, wanted: tuple[int, ...]) -> dict[int, int]:
    return {kind: n for kind in wanted if (n := int(np.count_nonzero(kinds == kind)))}


def is_partial(packet: np.void, l4: bytes) -> bool:
    """Whether the checksum's field holds no more than the sum of the pseudo-header (RFC 9293 3.1), or nothing. packet: PACKET_DTYPE."""
    source, target, *_, proto, _ = KEY.unpack(packet["key"].tobytes())
    at = 16 if proto == Proto.PROTO_TCP else 6
    field = int.from_bytes(l4[at : at + 2], "big")
    # IPv4 addresses stand in front of zeros, which add nothing.
    total = int(np.frombuffer(source + target, ">u2").sum(dtype=np.int64)) + proto + int(packet["l4_len"])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return field in (0, total)

"""Flows that XDP lets by: packets of connections that the kernel, or a NIC behind its TC, forwards for us.

Theory of operation: XDP comes before TC, so what the kernel is to forward must get past the program that takes frames for us. A map holds one key
for each direction of such connections, as its packets come in; the program looks it up for each packet that would be ours, and lets go to the host
what is in it. It lets by no more than hardware would have (contract A4.27, A5.37): no FIN or RST, no fragment, no IPv4 options or IPv6 extension
headers, nothing whose TTL ends here, no GRE but version 0, no tagged frame. So it is software that sees how a connection ends, and takes it back.
Invariants: a key is in the map once. XDP knows no zones: of two connections of different zones that look alike the second one is refused, for both
would be let by. Memory is taken as keys come, up to `most` of them. Once remove() or shut() has returned, packets that come are ours; one that was
let by just before may still be on its way to TC. As long as it is shut nothing is in it, whoever puts something.
Not here: which connections (offload), whether the kernel forwards them then (its rules), what else is ours (xdp_filter).
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Iterator, Sequence

from datapath import bpf
from datapath.bpf import FP, R0, R1, R2, R3, R7, R8, R9, Instruction, label
from datapath.errors import KernelError

KEY = struct.Struct("=16s16s2s2sBB2x")  # source, destination, ports in network order, protocol, IP version: 4 or 6
COUNT = struct.Struct("=Q")  # packets let by
MOST = 1 << 22
TCP, UDP, GRE = 6, 17, 47
FIN_RST = 0x05
GRE_VERSION = 0x07
WHOLE_HEADER = 0x45  # IPv4 without options
FRAGMENT = 0x3FFF  # more to come, or an offset
# Where things are in a frame, by IP version: what an IP packet needs, addresses and how long, TTL, protocol, and what follows.
ROOM, ADDRESSES, SIZES, TTL, PROTOCOL, BEHIND = {4: 34, 6: 54}, {4: 26, 6: 22}, {4: 4, 6: 16}, {4: 22, 6: 21}, {4: 23, 6: 20}, {4: 34, 6: 54}
MEANT = {errno.EEXIST: errno.EBUSY, errno.E2BIG: errno.ENOSPC}  # what the kernel says of a map, as a backend wants it
NEEDED = {TCP: 20, UDP: 8, GRE: 4}  # of what follows


class XdpBypass:
    """The map of all interfaces of a node. Keys as KEY has them, from any thread. close() it.

    Raises KernelError: BPF maps cannot be made, or, before Linux 5.19, not be written without CAP_BPF.
    """

    def __init__(self, most: int = MOST) -> None:
        """most: keys, two for each connection."""
        self.map = bpf.Map(bpf.HASH, KEY.size, COUNT.size, most, "bypass")
        self._lock = threading.Lock()  # of what follows: nobody puts what shut() would not find
        self._is_shut = False

    def put(self, keys: Sequence[bytes]) -> list[int]:
        """For each 0, or errno: EBUSY: another connection has it; ENOSPC: it is full; ESHUTDOWN: it is shut."""
        with self._lock:
            if self._is_shut:
                return [errno.ESHUTDOWN] * len(keys)
            return [MEANT.get(error, error) for error in self.map.put_new(keys, COUNT.pack(0))]

    def remove(self, keys: Sequence[bytes]) -> None:
        """What is not there is not missed."""
        self.map.delete(keys)

    def shut(self) -> None:
        """Nothing is let by any more, until open()."""
        with self._lock:
            self._is_shut = True
            while keys := self.map.keys(4096):
                self.map.delete(keys)

    def open(self) -> None:
        """What is put is let by again."""
        with self._lock:
            self._is_shut = False

    def packets(self, key: bytes) -> int | None:
        """How many were let by; None: it is not in the map."""
        try:
            return int(COUNT.unpack(self.map.get(key))[0])
        except KernelError as error:
            if error.number != errno.ENOENT:
                raise
            return None

    def close(self) -> None:
        self.map.close()

    def code(self, ipv4: int, ipv6: int) -> Iterator[Instruction]:
        """To the host, or go on. R7: the frame, R8: its end; R9 is lost. ipv4, ipv6: their Ethernet types as they are read from a frame."""
        yield bpf.load(R9, R7, 12, 2)
        yield bpf.jump_equal(R9, ipv6, "bypass-ipv6")
        yield bpf.jump_unequal(R9, ipv4, "bypassed-not")
        yield from _room(ROOM[4])
        yield bpf.load(R0, R7, 14, 1)
        yield bpf.jump_unequal(R0, WHOLE_HEADER, "bypassed-not")
        yield bpf.load(R0, R7, 20, 2)
        yield bpf.swap16(R0)
        yield bpf.jump_any_bit(R0, FRAGMENT, "bypassed-not")
        yield from self._looked_up(4)
        yield label("bypass-ipv6", bpf.move_value(R0, 0))
        yield from _room(ROOM[6])
        yield from self._looked_up(6)
        yield label("bypassed-not", bpf.move_value(R0, 0))

    def _looked_up(self, version: int) -> Iterator[Instruction]:
        """The key is made on the stack; R1 to R5 are the call's."""
        yield bpf.load(R0, R7, TTL[version], 1)
        yield bpf.add_value(R0, -1)  # of 0 it becomes large, so both are compared
        yield bpf.jump_equal(R0, 0, "bypassed-not")
        yield bpf.jump_above_value(R0, 254, "bypassed-not")
        for at in range(0, KEY.size, 8):
            yield bpf.store_value(FP, at - KEY.size, 0)
        for number in range(2):
            for word in range(0, SIZES[version], 4):
                yield bpf.load(R0, R7, ADDRESSES[version] + number * SIZES[version] + word, 4)
                yield bpf.store(FP, 16 * number + word - KEY.size, R0, 4)
        yield bpf.load(R9, R7, PROTOCOL[version], 1)
        yield bpf.store(FP, 36 - KEY.size, R9, 1)
        yield bpf.store_value(FP, 37 - KEY.size, version, 1)
        yield from _ports(version)
        yield from bpf.map_address(R1, self.map.fd)
        yield bpf.move(R2, FP)
        yield bpf.add_value(R2, -KEY.size)
        yield bpf.call(bpf.MAP_LOOKUP)
        yield bpf.jump_equal(R0, 0, "bypassed-not")
        yield bpf.move_value(R3, 1)
        yield bpf.add_to_memory(R0, 0, R3)
        yield bpf.jump("host")


def _ports(version: int) -> Iterator[Instruction]:
    """Into the key, if the packet is one that hardware would have. R9: its protocol."""
    at, found = BEHIND[version], f"bypass-{version}-found"
    for proto, needed in NEEDED.items():
        yield bpf.jump_unequal(R9, proto, f"bypass-{version}-not-{proto}")
        yield from _room(at + needed)
        if proto == GRE:
            yield bpf.load(R0, R7, at + 1, 1)
            yield bpf.jump_any_bit(R0, GRE_VERSION, "bypassed-not")
        else:
            yield bpf.load(R0, R7, at, 4)
            yield bpf.store(FP, 32 - KEY.size, R0, 4)
        if proto == TCP:
            yield bpf.load(R0, R7, at + 13, 1)
            yield bpf.jump_any_bit(R0, FIN_RST, "bypassed-not")
        yield bpf.jump(found)
        yield label(f"bypass-{version}-not-{proto}", bpf.move_value(R0, 0))
    yield bpf.jump("bypassed-not")
    yield label(found, bpf.move_value(R0, 0))


def _room(size: int) -> list[Instruction]:
    """Not let by unless the frame has this many bytes: what the verifier wants to see."""
    return [bpf.move(R2, R7), bpf.add_value(R2, size), bpf.jump_above(R2, R8, "bypassed-not")]

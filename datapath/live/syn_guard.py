"""A limit for the opening segments of TCP that a queue takes, kept in the kernel: what is over it is dropped before it can fill a ring.

Theory of operation: a ring that is full loses frames of all kinds alike, so what shall not fill it has to go before. Of a flood of SYNs a processor
drops ten times as many here as it can hand over. Time goes by windows of 2^20 ns (1.05 ms); of each window, so many opening segments (SYN without
ACK) pass, the first ones, and the rest is counted by queue.
Invariants: a segment that opens nothing passes; a queue is served by one processor at a time, so that its counters need no lock.
Not seen: segments behind IPv6 extension headers and VLAN tags, later fragments; they pass. Not here: which frames are ours (xdp_filter).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from datapath import bpf
from datapath.bpf import FP, R0, R1, R2, R3, R6, R7, R8, R9, Instruction, label
from datapath.errors import KernelError
from datapath.live.xdp_header import past_ipv4

WINDOW_BITS = 20  # of ns
TCP, SYN, SYN_ACK = 6, 0x02, 0x12
XDP_DROP = 1
QUEUE = 16  # offset in struct xdp_md
IP4_ROOM, IP6_ROOM, IP6_HEADER = 34, 54, 40
WINDOW, PASSED, DROPPED, SIZE = 0, 8, 16, 64  # of a queue's value, a cache line of its own


class Guard:
    """Of the queues of one interface. rate: opening segments a second for each. close() it."""

    def __init__(self, rate: int, queues: int) -> None:
        self.limit = -(-rate * (1 << WINDOW_BITS) // 10**9)
        self.map = bpf.Map(bpf.ARRAY, 4, SIZE, queues, "opening")
        self.known: dict[int, int] = {}  # by queue, when it was looked at last

    def dropped(self, queue: int) -> int:
        """As far as this process may look: before Linux 5.19 a node that has given up CAP_BPF may not, and has what was known before."""
        try:
            self.known[queue] = int(struct.unpack_from("=Q", self.map.get(struct.pack("=I", queue)), DROPPED)[0])
        except KernelError as error:
            if error.number != errno.EPERM:
                raise
        return self.known.get(queue, 0)

    def close(self) -> None:
        self.map.close()

    def code(self, ipv4: int, ipv6: int) -> Iterator[Instruction]:
        """Drop or go on. R6: context, R7: the frame, R8: its end; R9 is lost. ipv4, ipv6: their Ethernet types as they are read from a frame."""
        yield bpf.load(R9, R7, 12, 2)
        yield bpf.move(R3, R7)
        yield bpf.jump_equal(R9, ipv4, "guard-ipv4")
        yield bpf.jump_unequal(R9, ipv6, "guarded")
        yield from _room(R7, IP6_ROOM)
        yield bpf.load(R0, R7, 20, 1)
        yield bpf.add_value(R3, IP6_HEADER)
        yield bpf.jump("guard-tcp")
        yield label("guard-ipv4", bpf.move_value(R0, 0))
        yield from _room(R7, IP4_ROOM)
        yield bpf.load(R0, R7, 20, 2)
        yield bpf.jump_any_bit(R0, 0xFF1F, "guarded")  # later fragments; as it is read from a frame
        yield from past_ipv4("guard")
        yield bpf.load(R0, R7, 23, 1)
        yield label("guard-tcp", bpf.jump_unequal(R0, TCP, "guarded"))
        yield from _room(R3, 28)  # R3: 14 bytes before the TCP header
        yield bpf.load(R0, R3, 27, 1)
        yield bpf.and_value(R0, SYN_ACK)
        yield bpf.jump_unequal(R0, SYN, "guarded")
        yield from self._counted()
        yield label("guarded", bpf.move_value(R0, 0))

    def _counted(self) -> Iterator[Instruction]:
        yield bpf.load(R0, R6, QUEUE, 4)
        yield bpf.store(FP, -4, R0, 4)
        yield from bpf.map_address(R1, self.map.fd)
        yield bpf.move(R2, FP)
        yield bpf.add_value(R2, -4)
        yield bpf.call(bpf.MAP_LOOKUP)
        yield bpf.jump_equal(R0, 0, "guarded")
        yield bpf.move(R9, R0)
        yield bpf.call(bpf.KTIME)
        yield bpf.shift_right(R0, WINDOW_BITS)
        yield bpf.load(R1, R9, WINDOW)
        yield bpf.jump_same(R0, R1, "guard-count")
        yield bpf.store(R9, WINDOW, R0)
        yield bpf.store_value(R9, PASSED, 0)
        yield label("guard-count", bpf.load(R1, R9, PASSED))
        yield bpf.jump_above_value(R1, self.limit - 1, "guard-drop")
        yield bpf.add_value(R1, 1)
        yield bpf.store(R9, PASSED, R1)
        yield bpf.jump("guarded")
        yield label("guard-drop", bpf.load(R1, R9, DROPPED))
        yield bpf.add_value(R1, 1)
        yield bpf.store(R9, DROPPED, R1)
        yield bpf.move_value(R0, XDP_DROP)
        yield bpf.leave()


def _room(base: int, size: int) -> list[Instruction]:
    """Nothing to look at unless the frame has this many bytes behind `base`: what the verifier wants to see."""
    return [bpf.move(R2, base), bpf.add_value(R2, size), bpf.jump_above(R2, R8, "guarded")]

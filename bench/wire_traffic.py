"""Traffic on veth pairs at the machine's full rate, made in the kernel, and a sink that counts it: for measuring forwarders.

Theory of operation: BPF_PROG_TEST_RUN with live frames runs an XDP program on one frame again and again; the program draws a source port for each and
redirects it to an interface, as if it had been received and sent on. The sink's program counts what arrives and drops it in the driver.
Invariants: frames are whole UDP datagrams with sound IP headers (UDP over IPv4 without a checksum). A generator is a process of its own, pinned to a
processor, and ends with whoever started it. Not here: what is measured (forwarding).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Sequence

from datapath import bpf, craft
from datapath.bpf import FP, R0, R1, R2, R6, R7, R8, label
from datapath.live.interfaces import index_of

XDP_ABORTED, XDP_DROP, XDP_PASS = 0, 1, 2
CALL = 1_000_000  # frames of one system call: each ends with a pause of 20 ms
SOURCE_PORT = 34
FIRST_PORT = 1024
PR_SET_PDEATHSIG = 1


def generator(index: int, flows: int) -> list[bpf.Instruction]:
    """Redirect the frame to interface `index`, from a port drawn out of `flows`, a power of two."""
    return [
        bpf.load(R7, R1, 0, 4),
        bpf.load(R8, R1, 4, 4),
        bpf.move(R2, R7),
        bpf.add_value(R2, SOURCE_PORT + 2),
        bpf.jump_above(R2, R8, "short"),
        bpf.call(bpf.RANDOM),
        bpf.and_value(R0, flows - 1),
        bpf.add_value(R0, FIRST_PORT),
        bpf.swap16(R0),
        bpf.store(R7, SOURCE_PORT, R0, 2),
        bpf.move_value(R1, index),
        bpf.move_value(R2, 0),
        bpf.call(bpf.REDIRECT),
        bpf.leave(),
        label("short", bpf.move_value(R0, XDP_ABORTED)),
        bpf.leave(),
    ]


def frame_of(size: int) -> bytes:
    """A UDP frame of `size` bytes on the wire, of which the last four (FCS) are not in memory."""
    return craft.udp("198.18.0.1", "198.19.0.1", FIRST_PORT, 9, bytes(size - 4 - 42), l4_checksum=0)


class Generator:
    """A process that sends to interface `name` of this thread's network namespace from when it is made until stop()."""

    def __init__(self, name: str, *, size: int = 64, flows: int = 1024, processor: int = 0) -> None:
        index = index_of(name)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._generate(index, frame_of(size), flows, processor)
            finally:
                os._exit(1)

    @staticmethod
    def _generate(index: int, frame: bytes, flows: int, processor: int) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.sched_setaffinity(0, {processor})
        program = bpf.load_xdp(generator(index, flows), "generate")
        while True:
            bpf.run_xdp_live(program, frame, CALL, index=index)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def let_pass(name: str) -> int:
    """Have interface `name` run a program that does nothing, until the descriptor is closed: only so does a veth take redirected frames."""
    program = bpf.load_xdp([bpf.move_value(R0, XDP_PASS), bpf.leave()], "pass")
    link = bpf.attach_xdp(program, index_of(name), bpf.XDP_DRIVER_MODE)
    bpf.close(program)
    return link


class Sink:
    """Counts what interface `name` of this thread's namespace receives, and drops it."""

    def __init__(self, name: str) -> None:
        self.counter = bpf.Map(bpf.ARRAY, 4, 8, 1, "sink")
        program = bpf.load_xdp(self._program(), "sink")
        self.link = bpf.attach_xdp(program, index_of(name), bpf.XDP_DRIVER_MODE)
        bpf.close(program)

    def _program(self) -> Sequence[bpf.Instruction]:
        return [
            bpf.move_value(R6, 1),
            bpf.store_value(FP, -4, 0, 4),
            *bpf.map_address(R1, self.counter.fd),
            bpf.move(R2, FP),
            bpf.add_value(R2, -4),
            bpf.call(bpf.MAP_LOOKUP),
            bpf.jump_equal(R0, 0, "out"),
            bpf.add_to_memory(R0, 0, R6),
            label("out", bpf.move_value(R0, XDP_DROP)),
            bpf.leave(),
        ]

    @property
    def packets(self) -> int:
        return int(struct.unpack("=Q", self.counter.get(bytes(4)))[0])

    def close(self) -> None:
        bpf.close(self.link)
        self.counter.close()

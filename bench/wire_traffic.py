"""Traffic on veth pairs at the machine's full rate, made in the kernel, and a sink that counts it: for measuring forwarders.

Theory of operation: BPF_PROG_TEST_RUN with live frames runs an XDP program on one frame again and again; the program draws a source port for each and
redirects it to an interface, as if it had been received and sent on. The sink's program counts what arrives and drops it in the driver.
Pages of frames that a kernel has forwarded come back with its edits in them (MAC addresses, time to live): each frame gets its own again.
Invariants: frames are whole UDP datagrams with sound IP headers (UDP over IPv4 without a checksum). A generator is a process of its own, pinned to a
processor, and ends with whoever started it. Not here: what is measured (forwarding).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Sequence

from datapath import bpf, craft
from datapath.bpf import FP, R0, R1, R2, R6, R7, R8, label
from datapath.live.interfaces import index_of

XDP_ABORTED, XDP_DROP, XDP_PASS = 0, 1, 2
CALL = 1 << 30  # frames of one system call, each of which ends with a pause of 20 ms
# Where things are in a frame of IPv4 without options.
IDENT, TTL, SOURCE, SOURCE_PORT, STAMP, WINDOW, URGENT = 18, 22, 26, 34, 42, 48, 52
EDITED = (0, 4, 8, TTL)  # words of 32 bits that forwarding changes: both MAC addresses; TTL, protocol and header checksum
FIRST_PORT = 1024
PR_SET_PDEATHSIG = 1


Program = Callable[[int, bytes], list[bpf.Instruction]]  # of the interface's index and the frame


def _restored(frame: bytes) -> list[bpf.Instruction]:
    return [bpf.store_value(R7, at, int(struct.unpack_from("=i", frame, at)[0]), 4) for at in EDITED]


def _varied(index: int, frame: bytes, size: int, vary: Sequence[bpf.Instruction]) -> list[bpf.Instruction]:
    """Change a frame of at least `size` bytes by what is drawn (R0; R7: where the frame is), and redirect it to interface `index`."""
    return [
        bpf.load(R7, R1, 0, 4),
        bpf.load(R8, R1, 4, 4),
        bpf.move(R2, R7),
        bpf.add_value(R2, size),
        bpf.jump_above(R2, R8, "short"),
        *_restored(frame),
        bpf.call(bpf.RANDOM),
        *vary,
        bpf.move_value(R1, index),
        bpf.move_value(R2, 0),
        bpf.call(bpf.REDIRECT),
        bpf.leave(),
        label("short", bpf.move_value(R0, XDP_ABORTED)),
        bpf.leave(),
    ]


def flows_of(flows: int) -> Program:
    """From a port drawn out of `flows`, a power of two."""
    return lambda index, frame: _varied(index, frame, SOURCE_PORT + 2, _drawn(flows))


def _drawn(flows: int) -> list[bpf.Instruction]:
    return [bpf.and_value(R0, flows - 1), bpf.add_value(R0, FIRST_PORT), bpf.swap16(R0), bpf.store(R7, SOURCE_PORT, R0, 2)]


def stamped(flows: int, rate: float, state: bpf.Map) -> Program:
    """As flows_of, `rate` frames a second, each with the time (ns) at which it left in its payload; those in between go nowhere.

    state: of 8 bytes, where the time of the next frame is kept. One that is late by a millisecond is not made up for.
    """
    interval = int(1e9 / rate)

    def program(index: int, frame: bytes) -> list[bpf.Instruction]:
        vary = [
            bpf.call(bpf.KTIME),
            bpf.move(R6, R0),
            bpf.store_value(FP, -4, 0, 4),
            *bpf.map_address(R1, state.fd),
            bpf.move(R2, FP),
            bpf.add_value(R2, -4),
            bpf.call(bpf.MAP_LOOKUP),
            bpf.jump_equal(R0, 0, "short"),
            bpf.load(R1, R0, 0),
            bpf.jump_above(R1, R6, "early"),
            bpf.move(R2, R1),
            bpf.add_value(R2, 1_000_000),
            bpf.jump_above(R2, R6, "in time"),
            bpf.move(R1, R6),
            label("in time", bpf.add_value(R1, interval)),
            bpf.store(R0, 0, R1),
            bpf.store(R7, STAMP, R6),
            bpf.call(bpf.RANDOM),
            *_drawn(flows),
        ]
        early = [label("early", bpf.move_value(R0, XDP_DROP)), bpf.leave()]
        return [*_varied(index, frame, STAMP + 8, vary), *early]

    return program


def flood(index: int, frame: bytes) -> list[bpf.Instruction]:
    """A TCP frame gets another client of 65,536, and another of as many ports. What does not matter takes the complements, so that checksums hold."""
    vary = [
        bpf.move(R6, R0),
        bpf.and_value(R0, 0xFFFF),
        bpf.store(R7, SOURCE + 2, R0, 2),
        bpf.flip_value(R0, 0xFFFF),
        bpf.store(R7, IDENT, R0, 2),
        bpf.store(R7, URGENT, R0, 2),
        bpf.shift_right(R6, 16),
        bpf.and_value(R6, 0xFFFF),
        bpf.store(R7, SOURCE_PORT, R6, 2),
        bpf.flip_value(R6, 0xFFFF),
        bpf.store(R7, WINDOW, R6, 2),
    ]
    return _varied(index, frame, URGENT + 2, vary)


def frame_of(size: int) -> bytes:
    """A UDP frame of `size` bytes on the wire, of which the last four (FCS) are not in memory."""
    return craft.udp("198.18.0.1", "198.19.0.1", FIRST_PORT, 9, bytes(size - 4 - 42), l4_checksum=0)


def flood_frame() -> bytes:
    """What flood() varies: the first segment of a connection to port 80 that nobody will answer."""
    return craft.tcp("198.18.0.0", "198.19.0.1", 0, 80, "S", win=0xFFFF, urg=0xFFFF, ident=0xFFFF)


class Generator:
    """A process that sends to interface `name` of this thread's network namespace from when it is made until stop(): a frame, varied by a program."""

    def __init__(self, name: str, frame: bytes, program: Program, *, processor: int = 0, batch: int = 256) -> None:
        """batch: frames that are handed over together."""
        index = index_of(name)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._generate(index, frame, program(index, frame), processor, batch)
            finally:
                os._exit(1)

    @staticmethod
    def _generate(index: int, frame: bytes, program: list[bpf.Instruction], processor: int, batch: int) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.sched_setaffinity(0, {processor})
        loaded = bpf.load_xdp(program, "generate")
        while True:
            bpf.run_xdp_live(loaded, frame, CALL, index=index, batch=batch)

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
        self.counter = bpf.Map(bpf.ARRAY, 4, 8, self.entries, "sink")
        program = bpf.load_xdp([*self.program(), *self._count()], "sink")
        self.link = bpf.attach_xdp(program, index_of(name), bpf.XDP_DRIVER_MODE)
        bpf.close(program)

    entries = 1

    def program(self) -> Sequence[bpf.Instruction]:
        """Where in the map a frame counts: to FP - 4."""
        return [bpf.store_value(FP, -4, 0, 4)]

    def _count(self) -> Sequence[bpf.Instruction]:
        return [
            *bpf.map_address(R1, self.counter.fd),
            bpf.move(R2, FP),
            bpf.add_value(R2, -4),
            bpf.call(bpf.MAP_LOOKUP),
            bpf.jump_equal(R0, 0, "out"),
            bpf.move_value(R6, 1),
            bpf.add_to_memory(R0, 0, R6),
            label("out", bpf.move_value(R0, XDP_DROP)),
            bpf.leave(),
        ]

    def at(self, i: int) -> int:
        return int(struct.unpack("=Q", self.counter.get(struct.pack("=I", i)))[0])

    @property
    def packets(self) -> int:
        return self.at(0)

    def close(self) -> None:
        bpf.close(self.link)
        self.counter.close()


class Clock(Sink):
    """Counts frames that stamped() has sent by how long they were on their way, in units of 1,024 ns; the last entry has all that took longer."""

    entries = 1 << 14

    def program(self) -> Sequence[bpf.Instruction]:
        return [
            bpf.load(R7, R1, 0, 4),
            bpf.load(R8, R1, 4, 4),
            bpf.move(R2, R7),
            bpf.add_value(R2, STAMP + 8),
            bpf.jump_above(R2, R8, "out"),
            bpf.call(bpf.KTIME),
            bpf.load(R1, R7, STAMP),
            bpf.subtract(R0, R1),
            bpf.shift_right(R0, 10),
            bpf.jump_above_value(R0, self.entries - 1, "late"),
            bpf.jump("told"),
            label("late", bpf.move_value(R0, self.entries - 1)),
            label("told", bpf.store(FP, -4, R0, 4)),
        ]

    def histogram(self) -> list[int]:
        return [self.at(i) for i in range(self.entries)]

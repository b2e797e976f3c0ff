"""The least of BPF that observing and steering take: an assembler of named instructions, and the system calls that load and attach what it makes.

Theory of operation: a program is a list of instructions, some with labels; assemble() turns jumps to labels into distances. It is loaded to run at
a netfilter hook, at a tracepoint, on the frames of an interface (XDP), or when it is called. What it observes goes through a Ring; what it looks up
lies in a Map.
There is no compiler, no libbpf and no file: maps, programs and links are descriptors of this process, and end with it, even with SIGKILL.
Not here: what is observed (oracle.probes), which frames are steered (live.xdp_filter). Instruction format: RFC 9669.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from datapath.errors import KernelError

SYSCALL = {"x86_64": 321, "aarch64": 280}
MAP_CREATE, MAP_READ, MAP_UPDATE, PROG_LOAD, PROG_RUN, RAW_TRACEPOINT_OPEN = 0, 1, 2, 5, 10, 17
MAP_READ_BATCH, MAP_DELETE_BATCH, LINK_CREATE = 24, 27, 28
HASH, ARRAY, LPM_TRIE, XSKMAP, RINGBUF = 1, 2, 11, 17, 27  # kinds of maps
XDP_PROGRAM, TRACING, SYSCALL_PROGRAM, NETFILTER_PROGRAM = 6, 26, 31, 32
TRACE_RAW_TP, XDP, NETFILTER = 23, 37, 45  # where programs are attached
XDP_SKB_MODE, XDP_DRIVER_MODE = 1 << 1, 1 << 2  # linux/if_link.h: in the stack, on copies; in the driver
NO_PREALLOC = 1 << 0
NEW_ONLY = 1 << 0  # BPF_NOEXIST: of an element
SLEEPABLE = 1 << 4
LIVE_FRAMES = 1 << 1  # of a run: what the program says is done with the frame
PSEUDO_MAP_FD = 1
LOG_SIZE = 1 << 18
# What Linux asks of a program that reads kernel memory; it is about the few instructions that are loaded, which are offered under both.
LICENCE = b"Dual BSD/GPL"

# Helper functions by their number in linux/bpf.h.
MAP_LOOKUP, KTIME, RANDOM, REDIRECT, REDIRECT_MAP = 1, 5, 7, 23, 51
PROBE_READ_KERNEL, JIFFIES64 = 113, 118
RINGBUF_RESERVE, RINGBUF_SUBMIT = 131, 132
NO_WAKEUP = 1

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)


@dataclass(frozen=True)
class Instruction:
    """One instruction; target: the label it jumps to; label: its own."""

    code: int
    dst: int = 0
    src: int = 0
    offset: int = 0
    value: int = 0
    target: str = ""
    label: str = ""


SIZES = {8: 0x18, 4: 0x00, 2: 0x08, 1: 0x10}


def load(dst: int, src: int, offset: int, size: int = 8) -> Instruction:
    """dst = *(size *)(src + offset)"""
    return Instruction(0x61 | SIZES[size], dst, src, offset)


def store(dst: int, offset: int, src: int, size: int = 8) -> Instruction:
    """*(size *)(dst + offset) = src"""
    return Instruction(0x63 | SIZES[size], dst, src, offset)


def store_value(dst: int, offset: int, value: int, size: int = 8) -> Instruction:
    """*(size *)(dst + offset) = value"""
    return Instruction(0x62 | SIZES[size], dst, 0, offset, value)


def add_to_memory(dst: int, offset: int, src: int) -> Instruction:
    """*(u64 *)(dst + offset) += src, at once for all processors"""
    return Instruction(0xDB, dst, src, offset)


def move(dst: int, src: int) -> Instruction:
    return Instruction(0xBF, dst, src)


def move_value(dst: int, value: int) -> Instruction:
    return Instruction(0xB7, dst, value=value)


def add_value(dst: int, value: int) -> Instruction:
    return Instruction(0x07, dst, value=value)


def add(dst: int, src: int) -> Instruction:
    return Instruction(0x0F, dst, src)


def and_value(dst: int, value: int) -> Instruction:
    return Instruction(0x57, dst, value=value)


def and_value32(dst: int, value: int) -> Instruction:
    """The upper half becomes 0."""
    return Instruction(0x54, dst, value=value)


def flip_value(dst: int, value: int) -> Instruction:
    """dst ^= value"""
    return Instruction(0xA7, dst, value=value)


def shift_right(dst: int, bits: int) -> Instruction:
    return Instruction(0x77, dst, value=bits)


def subtract(dst: int, src: int) -> Instruction:
    return Instruction(0x1F, dst, src)


def swap16(dst: int) -> Instruction:
    """The lower 16 bits in network order, all others 0."""
    return Instruction(0xDC, dst, value=16)


def shift_left(dst: int, bits: int) -> Instruction:
    return Instruction(0x67, dst, value=bits)


def jump(target: str) -> Instruction:
    return Instruction(0x05, target=target)


def jump_equal(dst: int, value: int, target: str) -> Instruction:
    return Instruction(0x15, dst, value=value, target=target)


def jump_same(dst: int, src: int, target: str) -> Instruction:
    """If both are equal."""
    return Instruction(0x1D, dst, src, target=target)


def jump_unequal(dst: int, value: int, target: str) -> Instruction:
    return Instruction(0x55, dst, value=value, target=target)


def jump_above(dst: int, src: int, target: str) -> Instruction:
    """Compares without signs, as addresses want it."""
    return Instruction(0x2D, dst, src, target=target)


def jump_above_value(dst: int, value: int, target: str) -> Instruction:
    return Instruction(0x25, dst, value=value, target=target)


def jump_any_bit(dst: int, value: int, target: str) -> Instruction:
    """If dst & value is not 0."""
    return Instruction(0x45, dst, value=value, target=target)


def jump_equal32(dst: int, value: int, target: str) -> Instruction:
    """Compares the lower 32 bits."""
    return Instruction(0x16, dst, value=value, target=target)


def jump_unequal32(dst: int, value: int, target: str) -> Instruction:
    """Compares the lower 32 bits."""
    return Instruction(0x56, dst, value=value, target=target)


def call(helper: int) -> Instruction:
    return Instruction(0x85, value=helper)


def map_address(dst: int, fd: int) -> tuple[Instruction, Instruction]:
    """dst = the map; takes two places."""
    return Instruction(0x18, dst, PSEUDO_MAP_FD, value=fd), Instruction(0)


def leave() -> Instruction:
    return Instruction(0x95)


def label(name: str, instruction: Instruction) -> Instruction:
    return replace(instruction, label=name)


def assemble(program: Sequence[Instruction]) -> bytes:
    """The program's bytes. KeyError on a label that is not there: a fault in the caller's program."""
    at = {instruction.label: i for i, instruction in enumerate(program) if instruction.label}
    code = bytearray()
    for i, step in enumerate(program):
        offset = at[step.target] - i - 1 if step.target else step.offset
        value = step.value - (1 << 32) if step.value >= 1 << 31 else step.value
        code += struct.pack("<BBhi", step.code, step.src << 4 | step.dst, offset, value)
    return bytes(code)


def _bpf(command: int, attributes: bytes, what: str, log: ctypes.Array[ctypes.c_char] | None = None) -> tuple[int, bytes]:
    """bpf(2): its result, and the attributes as the kernel left them. KernelError with what the kernel says."""
    number = SYSCALL.get(platform.machine())
    if number is None:
        raise KernelError(f"{platform.machine()}: expected x86_64 or aarch64 for BPF")
    attribute = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result = libc.syscall(number, command, attribute, len(attribute))
    if result < 0:
        code = ctypes.get_errno()
        words = log.value.decode(errors="replace").strip().splitlines() if log else []
        needed = ": expected root, or CAP_BPF and CAP_PERFMON" if code == errno.EPERM else ""
        detail = f" ({words[-2 if len(words) > 1 else -1]})" if words else needed
        raise KernelError(f"{what}: {os.strerror(code)}{detail}", code)
    return int(result), attribute.raw


def _load(kind: int, program: Sequence[Instruction], name: str, *, attach: int = 0, function: int = 0, flags: int = 0) -> int:
    code = assemble(program)
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(LICENCE)
    log = ctypes.create_string_buffer(LOG_SIZE)
    attributes = struct.pack(
        "<IIQQIIQII16sIIIIQIIQII",
        kind, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence), 1, LOG_SIZE, ctypes.addressof(log), 0, flags,
        name.encode()[:15], 0, attach, 0, 0, 0, 0, 0, 0, 0, function,
    )  # fmt: skip
    return _bpf(PROG_LOAD, attributes, f"BPF program {name}", log)[0]


@dataclass(frozen=True)
class Hook:
    """Where a netfilter program runs: protocol family, hook and priority, by the numbers of linux/netfilter.h."""

    family: int
    number: int
    priority: int


def attach_netfilter(program: Sequence[Instruction], name: str, hook: Hook) -> int:
    """Run the program at a hook of this thread's network namespace; a descriptor of the link, which lasts until it is closed."""
    fd = _load(NETFILTER_PROGRAM, program, name, attach=NETFILTER)
    try:
        attributes = struct.pack("<IIIIIIiI", fd, 0, NETFILTER, 0, hook.family, hook.number, hook.priority, 0)
        return _bpf(LINK_CREATE, attributes, f"BPF link {name}")[0]
    finally:
        os.close(fd)


def attach_tracepoint(program: Sequence[Instruction], name: str, number: int) -> int:
    """Run the program at a tracepoint (by its number in BTF); a descriptor of the link, which lasts until it is closed."""
    fd = _load(TRACING, program, name, attach=TRACE_RAW_TP, function=number)
    try:
        return _bpf(RAW_TRACEPOINT_OPEN, struct.pack("<QI", 0, fd), f"BPF link {name}")[0]
    finally:
        os.close(fd)


def load_xdp(program: Sequence[Instruction], name: str) -> int:
    """A descriptor of a program for the frames of interfaces."""
    return _load(XDP_PROGRAM, program, name, attach=XDP)


def attach_xdp(program: int, index: int, mode: int) -> int:
    """Run a program on what interface `index` of this thread's network namespace receives; a descriptor of the link, which lasts until it is closed.

    mode: XDP_DRIVER_MODE or XDP_SKB_MODE. EBUSY: another program is there already.
    """
    return _bpf(LINK_CREATE, struct.pack("<IIIII", program, index, XDP, mode, 0), "XDP link")[0]


def run_xdp(program: int, frame: bytes) -> int:
    """What the program says of a frame, which is said to come from queue 0 of the loopback interface: XDP_PASS, ..."""
    data = ctypes.create_string_buffer(frame, len(frame))
    attributes = struct.pack("<IIIIQQII", program, 0, len(frame), 0, ctypes.addressof(data), 0, 1, 0)
    return int(struct.unpack_from("<I", _bpf(PROG_RUN, attributes.ljust(80, b"\0"), "XDP program")[1], 4)[0])


def run_xdp_live(program: int, frame: bytes, count: int, *, index: int, batch: int = 256) -> None:
    """Let the program have `count` copies of a frame as if interface `index` had received them, and do with them what it says.

    Pages are used again with what the program has written into them, so it writes its headers into each frame. Returns when all are gone.
    """
    data = ctypes.create_string_buffer(frame, len(frame))
    context = ctypes.create_string_buffer(struct.pack("<IIIIII", 0, len(frame), 0, index, 0, 0), 24)
    attributes = struct.pack(
        "<IIIIQQIIIIQQIII", program, 0, len(frame), 0, ctypes.addressof(data), 0, count, 0, 24, 0, ctypes.addressof(context), 0, LIVE_FRAMES, 0, batch
    )
    _bpf(PROG_RUN, attributes, "XDP program with live frames")


def close(fd: int) -> None:
    os.close(fd)


class Map:
    """What programs look up, and this process writes."""

    def __init__(self, kind: int, key: int, value: int, entries: int, name: str) -> None:
        """key, value: bytes."""
        flags = NO_PREALLOC if kind in (HASH, LPM_TRIE) else 0
        attributes = struct.pack("<IIIIIII16s", kind, key, value, entries, flags, 0, 0, name.encode()[:15])
        self.fd = _bpf(MAP_CREATE, attributes, f"BPF map {name}")[0]
        self.name, self.key_size, self.size = name, key, value

    def put(self, key: bytes, value: bytes) -> None:
        held = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
        _bpf(MAP_UPDATE, struct.pack("<IIQQQ", self.fd, 0, *map(ctypes.addressof, held), 0), f"BPF map {self.name}")

    def get(self, key: bytes) -> bytes:
        """KernelError (ENOENT) if there is none."""
        asked, value = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(self.size)
        _bpf(MAP_READ, struct.pack("<IIQQQ", self.fd, 0, ctypes.addressof(asked), ctypes.addressof(value), 0), f"BPF map {self.name}")
        return value.raw

    # Many at once, of a HASH.

    def put_new(self, keys: Sequence[bytes], value: bytes) -> list[int]:
        """Each with that value: 0, or errno for what is not put: EEXIST: it is there already; E2BIG: there is no more room.

        One by one, since the kernel's own call for many takes no NEW_ONLY. Raises KernelError if nothing may be put.
        """
        number = SYSCALL[platform.machine()]
        key, held = ctypes.create_string_buffer(self.key_size), ctypes.create_string_buffer(value, len(value))
        attributes = struct.pack("<IIQQQ", self.fd, 0, ctypes.addressof(key), ctypes.addressof(held), NEW_ONLY)
        attribute = ctypes.create_string_buffer(attributes, 128)
        errors = []
        for each in keys:
            key.raw = each
            errors.append(ctypes.get_errno() if libc.syscall(number, MAP_UPDATE, attribute, 128) < 0 else 0)
        return self._checked(errors)

    def delete(self, keys: Sequence[bytes]) -> list[int]:
        """0 for each, or ENOENT for what is not there. Raises KernelError if nothing may be deleted.

        The kernel stops at the first that fails, and says how many it has done: fewer than it was asked for, or else it has not begun.
        """
        errors = [0] * len(keys)
        held, done = ctypes.create_string_buffer(b"".join(keys), max(len(keys) * self.key_size, 1)), 0
        while done < len(keys):
            at = ctypes.addressof(held) + done * self.key_size
            number, count = _batch(MAP_DELETE_BATCH, struct.pack("<QQQQIIQQ", 0, 0, at, 0, len(keys) - done, self.fd, 0, 0))
            done += count if not number or count < len(keys) - done else 0
            if number:
                errors[done] = number
                self._checked(errors[done : done + 1])
                done += 1
        return errors

    def _checked(self, errors: list[int]) -> list[int]:
        for number in errors:
            if number not in (0, errno.EEXIST, errno.ENOENT, errno.E2BIG, errno.ENOMEM):
                raise KernelError(f"BPF map {self.name}: {os.strerror(number)}", number)
        return errors

    def keys(self, most: int) -> list[bytes]:
        """Some that are there, most or more of them if there are as many: none only if it is empty."""
        while True:
            held = ctypes.create_string_buffer(most * self.key_size), ctypes.create_string_buffer(most * self.size), ctypes.create_string_buffer(8)
            keys, values, after = map(ctypes.addressof, held)
            number, count = _batch(MAP_READ_BATCH, struct.pack("<QQQQIIQQ", 0, after, keys, values, most, self.fd, 0, 0))
            if number == errno.ENOSPC:  # a bucket that has more
                most *= 2
                continue
            if number not in (0, errno.ENOENT):
                raise KernelError(f"BPF map {self.name}: {os.strerror(number)}", number)
            return [held[0].raw[i * self.key_size : (i + 1) * self.key_size] for i in range(count)]

    def close(self) -> None:
        os.close(self.fd)


def _batch(command: int, attributes: bytes) -> tuple[int, int]:
    """bpf(2) of many elements: errno, or 0, and how many were done."""
    attribute = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(SYSCALL[platform.machine()], command, attribute, len(attribute))
    number = ctypes.get_errno() if result < 0 else 0
    return number, int(struct.unpack_from("<I", attribute.raw, 32)[0])


class Runnable:
    """A program to be called from here."""

    def __init__(self, program: Sequence[Instruction], name: str) -> None:
        self.fd = _load(SYSCALL_PROGRAM, program, name, flags=SLEEPABLE)
        self.name = name

    def __call__(self, argument: int = 0) -> int:
        """Its result, 32 bits; the program finds the argument, 64 bits, where R1 points."""
        context = ctypes.create_string_buffer(struct.pack("<Q", argument), 8)
        attributes = struct.pack("<II32xII2Q", self.fd, 0, 8, 0, ctypes.addressof(context), 0)
        return int(struct.unpack_from("<I", _bpf(PROG_RUN, attributes, f"BPF program {self.name}")[1], 4)[0])

    def close(self) -> None:
        os.close(self.fd)


class Ring:
    """A ring buffer between programs and this process: records come out in the order in which they were submitted."""

    def __init__(self, size: int) -> None:
        """size: bytes, a power of two and whole pages."""
        self.size = size
        self.fd = _bpf(MAP_CREATE, struct.pack("<IIIII", RINGBUF, 0, 0, size, 0), "BPF ring buffer")[0]
        page = mmap.PAGESIZE
        with ExitStack() as stack:
            stack.callback(os.close, self.fd)
            self.consumer = stack.enter_context(mmap.mmap(self.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
            # The data are mapped twice, one behind the other, so that a record that wraps round is in one piece.
            self.rest = stack.enter_context(mmap.mmap(self.fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page))
            self.open = stack.pop_all()
        self.position = 0

    def records(self) -> Iterator[bytes]:
        """What was submitted since the last call."""
        page = mmap.PAGESIZE
        end = int.from_bytes(self.rest[:8], "little")
        while self.position < end:
            at = page + self.position % self.size
            length = int.from_bytes(self.rest[at : at + 4], "little") & 0x3FFFFFFF
            yield self.rest[at + 8 : at + 8 + length]
            self.position += (length + 15) & ~7
        self.consumer[:8] = self.position.to_bytes(8, "little")

    def close(self) -> None:
        self.open.close()

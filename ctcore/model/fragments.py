"""Reassembly in plain Python: what Linux makes of fragments before connection tracking, to be read and to be compared with.

Theory of operation: a datagram's fragments wait in a Queue, found by addresses, identification, zone and (IPv4 only) protocol, until the first and
the last are here and their bytes add up to the length; or until its timeout is over, counted from the first that came. add() is a fragment's way.
IPv4 and IPv6 differ where the kernel has two implementations: RULES.
Invariants (check()): what is charged adds up; runs do not overlap, and their bytes are those counted.
Not here: reading frames (datapath), speed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from ctcore.config import Config
from ctcore.fragment_values import COUNTERS, Answer, Fragment
from ctcore.types import Reason

LARGEST = 65535  # bytes of a datagram; IPv6: behind its fixed header
FIXED6 = 40
FRAGMENT_CHARGE, QUEUE_CHARGE = 576, 256
HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
SECOND = 1_000_000_000


class Rules(NamedTuple):
    """trims: a fragment that is not the last is cut to a multiple of 8; else its queue dies and it passes as it is. contradiction_kills, empty_kills:
    whether the queue dies if an end contradicts the length, or a fragment has no payload. furthest: where a fragment may end."""

    trims: bool
    contradiction_kills: bool
    empty_kills: bool
    furthest: float


RULES = {4: Rules(True, True, True, float("inf")), 6: Rules(False, False, False, LARGEST)}


@dataclass
class Queue:
    """A datagram that is not whole yet. length: as far as known; runs: lists of fragments, each of which begins where the one before it ends."""

    deadline: int  # tick
    runs: list[list[Fragment]] = field(default_factory=list)
    length: int = 0
    last_in: bool = False
    first: Fragment | None = None
    ecn: set[int] = field(default_factory=set)
    largest: int = 0
    largest_dont: int = 0
    charge: int = QUEUE_CHARGE
    seen: int = 0  # how many fragments its source had sent when the last of these came

    @property
    def pieces(self) -> list[Fragment]:
        return [piece for run in self.runs for piece in run]

    @property
    def come(self) -> int:
        return sum(piece.length for piece in self.pieces)

    def learn_end(self, end: int, more: bool) -> bool:
        """What a fragment says of the datagram's length. False if that contradicts what is known."""
        if self.last_in and (end > self.length or (not more and end != self.length)):
            return False
        if not more and end < self.length:
            return False
        self.last_in |= not more
        self.length = max(self.length, end)
        return True

    def insert(self, new: Fragment) -> int:
        """R_OK if the place was free. All of it within one run: a duplicate. Anything else that is there: an overlap."""
        end = new.offset + new.length
        for run in self.runs:
            start, stop = run[0].offset, end_of(run)
            if start <= new.offset and end <= stop:
                return Reason.R_FRAGMENT_DUPLICATE
            if new.offset < stop and start < end:
                return Reason.R_FRAGMENT_OVERLAP
        if self.runs and new.offset == end_of(self.runs[-1]):
            self.runs[-1].append(new)
        else:
            self.runs.append([new])
            self.runs.sort(key=lambda run: run[0].offset)
        return Reason.R_OK


def end_of(run: list[Fragment]) -> int:
    return run[-1].offset + run[-1].length


def joint_ecn(seen: set[int]) -> int | None:
    """What to set in the datagram's ECN field, by the values its fragments had (RFC 3168 5.3); None if these cannot be of one datagram."""
    if 0 in seen:
        return 0 if seen == {0} else None
    return 3 if 3 in seen and len(seen) > 1 else 0


class ModelReassembler:
    """Reassembly, one fragment after the other. Arguments, results and errors are those of ctcore.fragments.Reassembler."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = Config() if config is None else config
        self.now = 0
        self._queues: dict[int, dict[tuple, Queue]] = {4: {}, 6: {}}
        self._sent: dict[tuple[int, bytes], int] = {}  # fragments of each source since it has a datagram here
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._limit = {4: self.config.ipfrag_high_thresh, 6: self.config.frag6_high_thresh}
        self._timeout = {4: self.config.ticks("ipfrag_time"), 6: self.config.ticks("frag6_timeout")}

    # --- a fragment's way -------------------------------------------------------------------------------------------------------------

    def add(self, fragment: Fragment, now: int) -> Answer:
        self.expire(now)
        family, rules, size = fragment.family, RULES[fragment.family], fragment.size
        if not self._limit[family] or self._charge(family) > self._limit[family]:
            return self._drop("memory", Reason.R_FRAGMENT_MEMORY)
        key = (fragment.src, fragment.dst, fragment.ident, fragment.zone, fragment.proto)
        queue = self._queues[family].setdefault(key, Queue(self._tick() + self._timeout[family]))
        if family == 4 and self.config.ipfrag_max_dist:
            self._heed_distance(fragment, queue)
        if fragment.offset + fragment.length > rules.furthest:
            return self._drop("malformed", Reason.R_FRAGMENT_MALFORMED)
        if fragment.more and fragment.length % 8:
            if not rules.trims:
                self._die(family, key, "malformed")
                return Answer("passed")
            fragment = trimmed(fragment)
        if not queue.learn_end(fragment.offset + fragment.length, fragment.more):
            if rules.contradiction_kills:
                self._die(family, key, "malformed")
            return self._drop("malformed", Reason.R_FRAGMENT_MALFORMED)
        if not fragment.length:
            if rules.empty_kills:
                self._die(family, key, "malformed")
            return self._drop("malformed", Reason.R_FRAGMENT_MALFORMED)
        return self._store(family, key, fragment, size)

    def _store(self, family: int, key: tuple, fragment: Fragment, size: int) -> Answer:
        """size: what it is charged for, as it came."""
        queue = self._queues[family][key]
        fault = queue.insert(fragment)
        if fault == Reason.R_FRAGMENT_DUPLICATE:
            return self._drop("duplicate", fault)
        if fault == Reason.R_FRAGMENT_OVERLAP:
            self._die(family, key, "overlap")
            return self._drop("overlap", fault)
        queue.charge += FRAGMENT_CHARGE + size
        queue.ecn.add(fragment.ecn)
        queue.largest = max(queue.largest, fragment.size)
        if fragment.dont:
            queue.largest_dont = max(queue.largest_dont, fragment.size)
        if fragment.offset == 0:
            queue.first = fragment
        if queue.first is None or not queue.last_in or queue.come != queue.length:
            return Answer("held")
        return self._finish(family, key, queue, queue.first)

    def _finish(self, family: int, key: tuple, queue: Queue, first: Fragment) -> Answer:
        """All is here."""
        ecn = joint_ecn(queue.ecn)
        total = len(first.head) + queue.length
        if ecn is None or total - (FIXED6 if family == 6 else 0) > LARGEST:
            self._die(family, key, "malformed")
            return self._drop("malformed", Reason.R_FRAGMENT_MALFORMED)
        dont = family == 4 and queue.largest_dont == queue.largest
        data = mended4(first, total, ecn, dont) if family == 4 else mended6(first, total, ecn)
        for piece in queue.pieces:
            data += piece.payload
            if len(piece.payload) < piece.length:  # what lies behind a gap is not to be read
                break
        parts = tuple((piece.number, piece.offset, piece.length) for piece in queue.pieces)
        self._end(family, key)
        self._counters["datagrams"] += 1
        return Answer("whole", 0, data, total, queue.largest, dont, parts)

    # --- time, memory, distance -------------------------------------------------------------------------------------------------------

    def expire(self, now: int) -> None:
        self.now = max(self.now, now)
        for family, queues in self._queues.items():
            for key in [key for key, queue in queues.items() if queue.deadline <= self._tick()]:
                self._die(family, key, "timeout")

    def _tick(self) -> int:
        return self.now * self.config.hz // SECOND

    def _charge(self, family: int) -> int:
        return sum(queue.charge for queue in self._queues[family].values())

    def _heed_distance(self, fragment: Fragment, queue: Queue) -> None:
        """A source that has sent too many other fragments since the last one of this datagram may use its identification anew: begin again."""
        sent = self._sent[4, fragment.src] = self._sent.get((4, fragment.src), 0) + 1
        distance, queue.seen = sent - queue.seen, sent
        if queue.runs and distance > self.config.ipfrag_max_dist:
            self._counters["died_too_far"] += 1
            self._counters["lost"] += len(queue.pieces)
            queue.runs, queue.first, queue.last_in, queue.length, queue.charge = [], None, False, 0, QUEUE_CHARGE
            queue.ecn = set()
            queue.deadline = self._tick() + self._timeout[4]

    def _end(self, family: int, key: tuple) -> Queue:
        queue = self._queues[family].pop(key)
        if not any(other[0] == key[0] for other in self._queues[family]):
            self._sent.pop((family, key[0]), None)
        return queue

    def _die(self, family: int, key: tuple, why: str) -> None:
        self._counters[f"died_{why}"] += 1
        self._counters["lost"] += len(self._end(family, key).pieces)

    def _drop(self, counter: str, reason: int) -> Answer:
        self._counters[counter] += 1
        return Answer("dropped", reason)

    # --- looking at it ----------------------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        return dict(self._counters)

    def waiting(self) -> tuple[int, int]:
        return len(self._queues[4]), len(self._queues[6])

    def charged(self) -> tuple[int, int]:
        return self._charge(4), self._charge(6)

    def check(self) -> None:
        for queues in self._queues.values():
            for queue in queues.values():
                ends = 0
                for run in queue.runs:
                    assert run[0].offset >= ends, "runs overlap"
                    assert all(a.offset + a.length == b.offset for a, b in pairwise(run)), "a run has a gap"
                    ends = end_of(run)


# --- headers ----------------------------------------------------------------------------------------------------------------------------


def trimmed(fragment: Fragment) -> Fragment:
    """Cut to a multiple of 8, as the kernel does it for IPv4 (RFC 791 3.2 asks the sender for it)."""
    length = fragment.length & ~7
    return fragment._replace(length=length, payload=fragment.payload[:length], size=fragment.size - (fragment.length - length))


def mended4(first: Fragment, total: int, ecn: int, dont: bool) -> bytes:
    """The first fragment's header as the datagram's (RFC 791 3.2): lengths, ECN, no fragment any more, and their checksum."""
    head = bytearray(first.head)
    head[1] |= ecn
    head[2:4] = total.to_bytes(2, "big")
    head[6:8] = b"\x40\0" if dont else b"\0\0"
    head[10:12] = b"\0\0"
    summed = sum(struct.unpack(f">{len(head) // 2}H", head))
    head[10:12] = (0xFFFF - (summed % 0xFFFF or 0xFFFF)).to_bytes(2, "big")
    return bytes(head)


def mended6(first: Fragment, total: int, ecn: int) -> bytes:
    """The same of IPv6 (RFC 8200 4.5): the header before the fragment header names what came behind that.

    Where that header stands is kept in a byte by Linux: beyond 255, it spoils another one.
    """
    head = bytearray(first.head)
    head[first.next_at & 0xFF] = first.next
    head[1] |= ecn << 4
    head[4:6] = (total - FIXED6).to_bytes(2, "big")
    return bytes(head)


def read(packet: bytes, length: int, zone: int = 0, number: int = 0) -> Fragment | None:
    """The fragment that an IP packet is; None if it is none. packet: sound headers and what was captured of it; length: all of its bytes."""
    return _read4(packet, length, zone, number) if packet[0] >> 4 == 4 else _read6(packet, length, zone, number)


def _read4(packet: bytes, length: int, zone: int, number: int) -> Fragment | None:
    tos, ident, frag = packet[1], *struct.unpack_from(">HH", packet, 4)
    header = (packet[0] & 15) * 4
    if not frag & 0x3FFF:
        return None
    return Fragment(
        packet[12:16], packet[16:20], packet[9], ident, zone, (frag & 0x1FFF) * 8, bool(frag & 0x2000), packet[:header], packet[header:length],
        length - header, length, dont=bool(frag & 0x4000), ecn=tos & 3, number=number,
    )  # fmt: skip


def _read6(packet: bytes, length: int, zone: int, number: int) -> Fragment | None:
    at, next_at, kind = FIXED6, 6, packet[6]
    while kind != FRAGMENT_HEADER:
        if kind not in (HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION) or at + 2 > len(packet):
            return None
        size = (packet[at + 1] + 2) * 4 if kind == AUTHENTICATION else (packet[at + 1] + 1) * 8
        next_at, kind, at = at, packet[at], at + size
    if at + 8 > len(packet):
        return None
    frag, ident = struct.unpack_from(">HI", packet, at + 2)
    return Fragment(
        packet[8:24], packet[24:40], 0, ident, zone, frag & 0xFFF8, bool(frag & 1), packet[:at], packet[at + 8 : length], length - at - 8, length,
        ecn=packet[1] >> 4 & 3, next_at=next_at, next=packet[at], number=number,
    )  # fmt: skip

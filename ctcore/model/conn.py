"""What the parts of the model share: keys, packets, connections, and what a protocol may answer.

Everything here is a plain value; who changes it when is told in tracker.py (the packet's straight line) and in the protocols' modules.
Invariant: numbers that live in 32 bits in a packet or in the kernel are kept modulo 2^32 at every assignment.
Not here: decisions, the table, time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ctcore.config import Config
from ctcore.nat_rules import HELPERS
from ctcore.spec import ICMP_INVERSE
from ctcore.types import Change, Dir, Reason, Status

MASK32 = 0xFFFFFFFF
NO_L4STATE = 255
_KEY = struct.Struct("=16s16sHHHBB")
assert _KEY.size == 40


class Key(NamedTuple):
    """One direction's tuple and zone. ICMP: sport is the id, dport is type << 8 | code; GRE: the keys; no ports: 0."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    zone: int
    proto: int
    family: int

    @classmethod
    def of(cls, raw: bytes) -> Key:
        return cls(*_KEY.unpack(raw))

    def raw(self) -> bytes:
        """The 40 bytes of the engine's Key."""
        return _KEY.pack(*self)

    def inverted(self) -> Key | None:
        """The tuple of the answer; None for what has no answer, such as an ICMP error."""
        sport, dport = self.dport, self.sport
        if self.proto in ICMP_INVERSE:
            inverse = ICMP_INVERSE[self.proto].get(self.dport >> 8)
            if inverse is None:
                return None
            sport, dport = self.sport, inverse << 8 | self.dport & 0xFF
        return self._replace(src=self.dst, dst=self.src, sport=sport, dport=dport)


@dataclass(frozen=True)
class Packet:
    """A row of a batch. l4 holds the captured bytes of the transport header and payload, l4_len says how many there were on the wire."""

    key: Key
    l4: bytes
    l4_len: int
    ip_len: int
    l4_reason: int
    hop_limit: int
    seq: int
    ack: int
    win: int
    doff: int
    tcp_flags: int
    flaw: int = 0  # FLAW_* bits: what parse() has seen and let pass

    @classmethod
    def of(cls, row: np.void, l4: bytes) -> Packet:
        """A packet from its row (PACKET_DTYPE) and what was captured of its transport header and payload."""
        names = ("l4_len", "ip_len", "l4_reason", "hop_limit", "seq", "ack", "win", "doff", "tcp_flags", "flaw")
        return cls(Key.of(row["key"].tobytes()), l4, **{name: int(row[name]) for name in names})


class L4:
    """What a protocol remembers of a connection. This one remembers nothing."""

    state: int = NO_L4STATE

    def store(self, record: np.void) -> None:
        """Write the memory into a record of CONN_DTYPE."""


@dataclass
class Conn:
    """A connection: two flows, indexed by direction."""

    key: tuple[Key, Key]
    start: int  # ns
    l4: Any  # an L4; each protocol knows its own kind
    id: int = -1  # the ordinal; from confirm on
    status: int = 0
    deadline: int = 0  # tick
    master: int = -1  # ordinal
    mark: int = 0
    label: int = 0
    packets: list[int] = field(default_factory=lambda: [0, 0])
    bytes: list[int] = field(default_factory=lambda: [0, 0])
    changes: int = 0  # CHANGE_* since the last event
    ext: Any = None  # an Extension, if it has a helper
    rules: list[int] = field(default_factory=lambda: [-1, -1])  # by Manip: which NAT rule has decided, -1: none

    def has(self, bit: int) -> bool:
        return bool(self.status & bit)

    @property
    def confirmed(self) -> bool:
        return self.has(Status.CONFIRMED)

    def assure(self) -> None:
        """It has proved to be more than a probe: early drop spares it from now on."""
        if not self.has(Status.ASSURED):
            self.status |= Status.ASSURED
            self.changes |= Change.CHANGE_ASSURED

    def store(self, record: np.void, ticks_left: int) -> None:
        """Write a snapshot into a record of CONN_DTYPE."""
        for d in Dir:
            flow = record["flow"][d]
            flow["key"] = np.frombuffer(self.key[d].raw(), dtype=flow.dtype["key"])[0]
            flow["packets"], flow["bytes"], flow["id"] = self.packets[d], self.bytes[d], self.id
        self.l4.store(record)
        record["timeout"], record["status"] = ticks_left, self.status
        record["start"], record["master"], record["mark"] = self.start, self.master, self.mark
        record["label"] = self.label & (1 << 64) - 1, self.label >> 64
        record["helper"] = HELPERS.index(self.ext.helper) + 1 if self.ext else 0


class Visit(NamedTuple):
    """One packet on its connection, as a protocol gets to see it."""

    packet: Packet
    conn: Conn
    dir: int
    tick: int
    config: Config


@dataclass(frozen=True)
class Answer:
    """What a protocol makes of a packet. A timeout in ticks means: refresh the connection and count the packet; None: neither.

    setting: which one the timeout is, by its sysctl's name without nf_conntrack_, or by its seconds where there is no sysctl.
    """

    reason: int = Reason.R_OK
    timeout: int | None = None
    setting: str = ""
    valid: bool = True
    repeat: bool = False  # the connection is over; the packet is to be looked at again without it
    kill: bool = False  # count the packet, then delete the connection


def renewed(config: Config, setting: str, reason: int = Reason.R_OK) -> Answer:
    """The packet counts, and gives its connection the timeout of a setting."""
    return Answer(reason, ticks_of(config, setting), setting)


def ticks_of(config: Config, setting: str) -> int:
    """A timeout by its sysctl's name, or by its seconds."""
    return int(setting) * config.hz if setting.isdigit() else config.ticks(setting)


def invalid(reason: int) -> Answer:
    return Answer(reason, valid=False)


def ignored(reason: int) -> Answer:
    return Answer(reason)

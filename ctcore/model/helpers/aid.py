"""What a helper of the model is given: one accepted packet of its connection, and the means to announce another one.

Invariant: what is announced belongs to the helper's own connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from ctcore.model.conn import Conn, Key, Packet
from ctcore.model.expectations import Announced, Expectation, Follow, Kind
from ctcore.model.seqadj import SeqAdjust
from ctcore.types import Change, Proto, Reason, Status

MOST_TRIES = 128  # of ports, before all count as taken
LARGEST_PACKET = 65535  # bytes, with all headers


class Edit(NamedTuple):
    """A piece of a packet that becomes another one. at: bytes from the start of the transport header, as the packet arrived."""

    at: int
    old_len: int
    text: bytes


class Office(Protocol):
    """What the tracker does for helpers."""

    def announce(self, conn: Conn, expectation: Expectation) -> Announced: ...
    def withdraw(self, conn: Conn, expectation: Expectation) -> None: ...
    def other_port(self, least: int, n: int) -> int: ...
    def expect_no_more(self, conn: Conn, *, media: bool) -> None: ...
    def prolong(self, conn: Conn, dst: bytes, dport: int, proto: int, seconds: int) -> bool: ...
    def expected_elsewhere(self, conn: Conn, draft: Expectation) -> Expectation | None: ...
    def edit(self, edit: Edit) -> None: ...


@dataclass
class Extension:
    """What a connection with a helper remembers. memory: the helper's own, made by it at the first packet."""

    helper: str
    adjust: tuple[SeqAdjust, SeqAdjust] = field(default_factory=lambda: (SeqAdjust(), SeqAdjust()))
    memory: Any = None
    changes: int = 0  # of packets that were dropped: the next one tells of them


@dataclass
class Aid:
    """One packet for a helper. office: the tracker's, which knows all expectations."""

    conn: Conn
    ext: Extension
    packet: Packet
    payload: bytes
    dir: int
    state: int  # of the packet
    office: Office
    grown: int = 0  # bytes that edits have added so far

    def draft(self, src: bytes | None, dst: bytes, proto: int, dport: int, *, sport: int | None = None, kind: Kind = Kind.DEFAULT) -> Expectation:
        """An expectation of this connection's zone and family; None leaves a field open."""
        own = self.conn.key[0]
        return Expectation(Key(src or bytes(16), dst, sport or 0, dport, own.zone, proto, own.family), src is None, sport is None, kind)

    def announce(self, expectation: Expectation) -> Announced:
        return self.office.announce(self.conn, expectation)

    def announce_or_drop(self, expectation: Expectation) -> int:
        """Without translation there is only one way to announce it; a reason if that cannot be."""
        return Reason.R_OK if self.announce(expectation) is Announced.YES else Reason.R_HELPER_REFUSED

    @property
    def translated(self) -> bool:
        return self.conn.has(Status.SRC_NAT | Status.DST_NAT)

    # --- under translation ------------------------------------------------------------------------------------------------------------

    def announce_at_port(self, expectation: Expectation) -> Expectation | None:
        """Announce it at its own port, or else at a random one above. As it was announced, or None if no port is free; port 0 is none."""
        port = least = expectation.key.dport
        size = LARGEST_PACKET - least
        left = min(size, MOST_TRIES)
        while True:
            tried = replace(expectation, key=expectation.key._replace(dport=port))
            outcome = self.announce(tried)
            if outcome is Announced.YES:
                return tried if port else None
            left -= 1
            if outcome is not Announced.BUSY or left < 0:
                return None
            port = least + self.office.other_port(least, size)

    def followed(self, expectation: Expectation, d: int, port: int) -> Expectation:
        """Its child is translated as the master. d: the master's direction in which the child's packets go; port: to which, at last."""
        return replace(expectation, follow=Follow.MASTER, dir=d, saved=(bytes(16), port))

    def edit(self, at: int, old_len: int, text: bytes) -> bool:
        """Replace a piece of the payload. False if the packet would become too large."""
        by = len(text) - old_len
        if by > 0 and self.packet.ip_len + self.grown + by > LARGEST_PACKET:
            return False
        self.grown += by
        self.office.edit(Edit(self.packet.l4_len - len(self.payload) + at, old_len, text))
        return True

    def move_sequence(self, by: int) -> None:
        """The segment has become longer by so much: what comes behind it is to be moved."""
        if by and self.packet.key.proto == Proto.PROTO_TCP:
            self.ext.adjust[self.dir].more(self.packet.seq, by)
            self.conn.status |= Status.SEQ_ADJUST
            self.conn.changes |= Change.CHANGE_SEQADJ

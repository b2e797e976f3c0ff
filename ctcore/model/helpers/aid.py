"""What a helper of the model is given: one accepted packet of its connection, and the means to announce another one.

Invariant: what is announced belongs to the helper's own connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ctcore.model.conn import Conn, Key, Packet
from ctcore.model.expectations import Announced, Expectation, Kind
from ctcore.model.seqadj import SeqAdjust
from ctcore.types import Reason, Status


@dataclass
class Extension:
    """What a connection with a helper remembers. memory: the helper's own, made by it at the first packet."""

    helper: str
    adjust: tuple[SeqAdjust, SeqAdjust] = field(default_factory=lambda: (SeqAdjust(), SeqAdjust()))
    memory: Any = None
    changes: int = 0  # of packets that were dropped: the next one tells of them


@dataclass
class Aid:
    """One packet for a helper. announcer: the tracker's, which knows all expectations."""

    conn: Conn
    ext: Extension
    packet: Packet
    payload: bytes
    dir: int
    state: int  # of the packet
    announcer: Callable[[Aid, Expectation], Announced]

    def draft(self, src: bytes | None, dst: bytes, proto: int, dport: int, *, sport: int | None = None, kind: Kind = Kind.DEFAULT) -> Expectation:
        """An expectation of this connection's zone and family; None leaves a field open."""
        own = self.conn.key[0]
        return Expectation(Key(src or bytes(16), dst, sport or 0, dport, own.zone, proto, own.family), src is None, sport is None, kind)

    def announce(self, expectation: Expectation) -> Announced:
        return self.announcer(self, expectation)

    def announce_or_drop(self, expectation: Expectation) -> int:
        """Without translation there is only one way to announce it; a reason if that cannot be."""
        return Reason.R_OK if self.announce(expectation) is Announced.YES else Reason.R_HELPER_REFUSED

    @property
    def translated(self) -> bool:
        return self.conn.has(Status.SRC_NAT | Status.DST_NAT)

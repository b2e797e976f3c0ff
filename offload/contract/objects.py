"""What the contract speaks of (A1): tuples, connections, flows, and the settings with Linux's defaults. Times are ticks.

Not here: what happens to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntFlag

from ctcore.types import TcpState

ORIG, REPLY = 0, 1


@dataclass(frozen=True)
class Settings:
    """Every constant of the contract by its name."""

    hz: int = 250
    tcp_idle: int = 30  # seconds (A1.6)
    udp_idle: int = 30  # of UDP and all others
    day: int = 86_400  # seconds that an admitted connection has
    extend_below: int = 300  # seconds left below which a connection in the table gets more (A6.45)
    extend_closing: int = 300
    extends: bool = True  # older kernels never do
    refresh_after: int = 1  # seconds that a refresh has to add (A5.41)
    count_below: float = 0.9  # share of the idle time left below which hardware is asked (A6.48)

    def idle(self, proto: int) -> int:
        """Ticks."""
        return (self.tcp_idle if proto == 6 else self.udp_idle) * self.hz


@dataclass(frozen=True)
class Tuple:
    """The lookup key (A1.5): no interface is in it; GRE has ports 0."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    proto: int

    @property
    def l3(self) -> int:
        return 4 if len(self.src) == 4 else 6

    def inverse(self) -> Tuple:
        return replace(self, src=self.dst, dst=self.src, sport=self.dport, dport=self.sport)


@dataclass
class Conn:
    """A connection (A1.1), with what the contract looks at. timeout: tick at which it ends; base: its protocol's timeouts in ticks."""

    orig: Tuple
    reply: Tuple
    status: int = 0  # Status
    tcp_state: TcpState | None = None
    zone: int = 0
    mark: int = 0
    labels: int = 0
    helper: bool = False
    timeout: int = 0
    number: int = 0
    liberal: list[bool] = field(default_factory=lambda: [False, False])
    windows_known: list[bool] = field(default_factory=lambda: [True, True])

    @property
    def proto(self) -> int:
        return self.orig.proto


class FlowFlag(IntFlag):
    """A1.4. CLOSING is nft's only: act_ct tears down at once (A6.47)."""

    TEARDOWN = 1
    CLOSING = 2
    HW = 4
    HW_PENDING = 8
    HW_DYING = 16
    HW_DEAD = 32
    HW_BIDIRECTIONAL = 64
    HW_ESTABLISHED = 128


@dataclass
class Flow:
    """A connection in the flow table. timeout: tick at which it is idle."""

    conn: Conn
    flags: FlowFlag
    timeout: int

    def tuple(self, direction: int) -> Tuple:
        return self.conn.orig if direction == ORIG else self.conn.reply

"""What a tracker is told about address translation and helpers: rules as frozen values.

A rule says for which new connections it is (Match), what it changes (kind), and what there is to choose from (Range). The first rule that matches
decides, for each half of the tuple; no rule at all means a null binding: addresses stay, a port changes only if its tuple is taken.
Not here: choosing (nat), the text of the command line (datapath.nat_text).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from ctcore.errors import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Ports = tuple[int, int]  # lowest and highest, both included; of ICMP the id

KINDS = ("snat", "masquerade", "dnat", "redirect")
SOURCE_KINDS = ("snat", "masquerade")
CLIENT_PORTS = 65536 - 1024  # those that a client's port is exchanged for
HELPERS = ("ftp", "tftp", "sip", "irc", "pptp")


@dataclass(frozen=True)
class Match:
    """Which packets a rule is for: what is None is not looked at. A SNAT rule sees the destination that DNAT has put in, as in POSTROUTING.

    sport, dport: a rule with either is only for protocols that have ports (TCP, UDP, UDP-Lite, SCTP).
    """

    proto: int | None = None
    src: Network | None = None
    dst: Network | None = None
    sport: Ports | None = None
    dport: Ports | None = None


@dataclass(frozen=True)
class Range:
    """What to choose from. low, high: addresses, both included, or None to keep the packet's; ports: or None for any of the packet's class.

    All zeros for low and high of a source: the packet's own address, so that only a port changes, and only if it must.
    random, fully_random: the port comes from a random place in any case, also if the packet's own one is free, and no other mapping of the same
    source is looked for; Linux no longer distinguishes the two. persistent: a source keeps its address whatever its destination.
    Source: nft(8), NAT STATEMENTS; nf_nat_core.c of Linux 6.18.
    """

    low: Address | None = None
    high: Address | None = None
    ports: Ports | None = None
    random: bool = False
    fully_random: bool = False
    persistent: bool = False

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None) or (self.low is not None and self.high is not None and not _ordered(self.low, self.high)):
            raise ConfigError(f"NAT range {self.low}-{self.high}: expected two addresses of one family, the lower one first")
        if self.ports is not None and not 0 <= self.ports[0] <= self.ports[1] <= 0xFFFF:
            raise ConfigError(f"NAT ports {self.ports[0]}-{self.ports[1]}: expected 0 to 65535, the lower one first")

    @property
    def family(self) -> int | None:
        """4, 6, or None for either: a range without addresses."""
        return None if self.low is None else self.low.version

    @property
    def addresses(self) -> int:
        """How many there are; 1 where the packet keeps its own."""
        return 1 if self.low is None or self.high is None else int(self.high) - int(self.low) + 1


def _ordered(low: Address, high: Address) -> bool:
    return low.version == high.version and int(low) <= int(high)


@dataclass(frozen=True)
class NatRule:
    """One rule. kind: snat or masquerade (source), dnat or redirect (destination); the latter of each have one address, that of an iface."""

    kind: str
    range: Range
    match: Match = field(default_factory=Match)
    text: str = ""  # as the user wrote it, for messages

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"NAT kind '{self.kind}': expected {', '.join(KINDS)}")
        if self.kind in ("masquerade", "redirect") and (self.range.low is None or self.range.low != self.range.high):
            raise ConfigError(f"{self.kind}: {self.text or self.range}: expected one address, that of the interface")
        families = {each.version for each in (self.range.low, self.match.src, self.match.dst) if each is not None}
        if len(families) > 1:
            raise ConfigError(f"{self.kind}: {self.text or self.range}: expected addresses of one family")

    @property
    def family(self) -> int | None:
        """Of the packets it is for: 4, 6, or None for both."""
        return next((each.version for each in (self.range.low, self.match.src, self.match.dst) if each is not None), None)

    @property
    def source(self) -> bool:
        return self.kind in SOURCE_KINDS

    @property
    def name(self) -> str:
        """What the user wrote, or else the kind and what there is to choose from."""
        low, high, ports = self.range.low, self.range.high, self.range.ports
        addresses = "" if low is None else f" {low}" if low == high else f" {low}-{high}"
        span = "" if ports is None else f" port {ports[0]}" if ports[0] == ports[1] else f" ports {ports[0]}-{ports[1]}"
        return self.text or f"{self.kind}{addresses}{span}"

    @property
    def size(self) -> int:
        """Addresses times ports. Without ports a source has the 64,512 of the highest class, and a destination the one that the packet names."""
        ports = self.range.ports
        any_port = CLIENT_PORTS if self.source else 1
        return self.range.addresses * (any_port if ports is None else ports[1] - ports[0] + 1)


class NatPool(NamedTuple):
    """How much one rule is in use.

    rule, kind, size: its NatRule's name, kind and size. in_use: live connections that it decided on, whether or not that changed their tuple; high:
    the most there were at once. Connections to different destinations share ports, so that in_use may exceed size. exhausted: connections that were
    dropped since no tuple was free; where two rules decided, it is held against the source's.
    """

    rule: str
    kind: str
    size: int
    in_use: int
    high: int
    exhausted: int


@dataclass(frozen=True)
class HelperRule:
    """A helper, for connections of a protocol to a port. name: one of HELPERS; proto: 6 or 17."""

    name: str
    proto: int
    port: int

    def __post_init__(self) -> None:
        if self.name not in HELPERS:
            raise ConfigError(f"helper '{self.name}': expected {', '.join(HELPERS)}")
        if self.proto not in (6, 17) or not 1 <= self.port <= 0xFFFF:
            raise ConfigError(f"helper {self.name}:{self.proto}:{self.port}: expected tcp or udp, and a port from 1 to 65535")

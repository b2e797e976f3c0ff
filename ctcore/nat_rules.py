"""What a tracker is told about address translation and helpers: rules as frozen values.

A rule says for which new connections it is (Match), what it changes (kind), and what there is to choose from (Range). The first rule that matches
decides, for each half of the tuple; no rule at all means a null binding: addresses stay, a port changes only if its tuple is taken.
Not here: choosing (nat), the text of the command line (datapath.rule_text).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from ctcore.errors import ConfigError

EPHEMERAL = 65536 - 1024

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Ports = tuple[int, int]  # lowest and highest, both included; of ICMP the id

KINDS = ("snat", "masquerade", "dnat", "redirect")
SOURCE_KINDS = ("snat", "masquerade")
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
    """What to choose from. low, high: addresses, both included; None, or all zeros, to keep the packet's. ports: None for any of the packet's class.

    random, fully_random: search a port instead of keeping the packet's own, or that of another connection of the same source (Linux makes no
    difference between the two any more); persistent: a source keeps its address whatever its destination. Source: nft(8), NAT STATEMENTS.
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
    def keeps_address(self) -> bool:
        """Whether only ports are translated, if any."""
        return self.low is None or self.low.is_unspecified

    @property
    def family(self) -> int | None:
        """4, 6, or None for either: a range without addresses."""
        return None if self.low is None else self.low.version


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
    def size(self) -> int:
        """Tuples to choose from, for one destination: addresses times ports, which are 1024 to 65535 for a source without a range of them."""
        allowed = self.range
        addresses = 1 if allowed.low is None or allowed.high is None else int(allowed.high) - int(allowed.low) + 1
        if allowed.ports:
            return addresses * (allowed.ports[1] - allowed.ports[0] + 1)
        return addresses * (EPHEMERAL if self.source else 1)


class NatPool(NamedTuple):
    """A rule's range as a pool. size: tuples for one destination; in_use: live connections it translated, which may be more, since a port serves
    several destinations; high_water: most at a time; exhausted: connections dropped because nothing in it was free."""

    rule: int
    kind: str
    text: str
    size: int
    in_use: int
    high_water: int
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

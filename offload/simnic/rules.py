"""Rules as a NIC is told of them: matches on fields of its own key, and actions. Who has rules of another kind translates them.

Ifaces are numbers, and so are groups: the chains of one hook or shared block are one group. Of a group's chain, rules come in the order in which they
are tried. Not here: what of this a NIC can do (capability).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Match(NamedTuple):
    """A field: (packet & mask) == value, or of ports value <= packet <= high.

    name: one of layout.FIELDS, or ct_label, of 128 bits. IPv4 addresses are the upper 32 of 128 bits.
    """

    name: str
    value: int
    mask: int
    high: int | None = None


class Then(NamedTuple):
    """What follows an action. kind: pipe (the next one), pass, drop, goto (chain), continue, reclassify."""

    kind: str
    chain: int = 0


PIPE, PASS, DROP = Then("pipe"), Then("pass"), Then("drop")


@dataclass(frozen=True, slots=True)
class Plain:
    """Nothing but what follows."""

    then: Then


@dataclass(frozen=True, slots=True)
class Ct:
    """nat: an existing translation is applied, whatever a new connection would get; sets: a commit gives it a mark or labels."""

    zone: int = 0
    nat: bool = False
    commit: bool = False
    force: bool = False
    clear: bool = False
    sets: bool = False
    helper: bool = False
    then: Then = PIPE


@dataclass(frozen=True, slots=True)
class Send:
    """To an iface. copy: mirror, or else redirect, which nothing follows; ingress: to be received there; rules: there are some where it goes."""

    iface: int
    copy: bool = False
    ingress: bool = False
    rules: bool = False
    then: Then = PIPE


class Munge(NamedTuple):
    """Bytes of a header. header: eth, ip, ip6, tcp, udp; field: tc's name; offset: in the header; value, mask: as long as each other; add: value is
    added to a field of one byte."""

    header: str
    field: str
    offset: int
    value: bytes
    mask: bytes
    add: bool = False


@dataclass(frozen=True, slots=True)
class Edit:
    munges: tuple[Munge, ...]
    then: Then = PIPE


@dataclass(frozen=True, slots=True)
class Sum:
    """Checksums made anew. of: ip4h, tcp, udp, or others that no NIC makes."""

    of: frozenset[str]
    then: Then = PIPE


@dataclass(frozen=True, slots=True)
class Tag:
    """kind: push, pop, modify. keeps: bits of the old tag that stay, of modify; protocol: the tag's type."""

    kind: str
    tci: int = 0
    keeps: int = 0
    protocol: int = 0x8100
    then: Then = PIPE


@dataclass(frozen=True, slots=True)
class Mark:
    """skbedit. mark: (value, mask); other: it sets something else besides."""

    mark: tuple[int, int] = (0, 0)
    priority: int | None = None
    other: bool = False
    then: Then = PIPE


@dataclass(frozen=True, slots=True)
class Police:
    """A token bucket. rate: bits a second, burst: bytes, or packets of both; mtu: of the longest that has a token, None: any. 0: no such limit."""

    rate: int = 0
    burst: int = 0
    packet_rate: int = 0
    packet_burst: int = 0
    mtu: int | None = None
    exceed: Then = DROP
    then: Then = PIPE


Action = Plain | Ct | Send | Edit | Sum | Tag | Mark | Police


@dataclass(frozen=True, slots=True)
class NicRule:
    """number: in the ruleset it came from. skip_hw: not for hardware; skip_sw: for nothing else."""

    number: int
    group: int
    chain: int = 0
    matches: tuple[Match, ...] = ()
    actions: tuple[Action, ...] = ()
    skip_hw: bool = False
    skip_sw: bool = False


@dataclass(frozen=True, slots=True)
class NicRules:
    """All of a NIC's. groups: by iface, the chains that frames received there go through; an iface without sends everything to the host."""

    rules: tuple[NicRule, ...] = ()
    groups: Mapping[int, int] = field(default_factory=dict)

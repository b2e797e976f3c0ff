"""What a scenario consists of: steps, their packets, and what is expected. Plain frozen values, which may as well be made by a program.

    Step(Packet("A", "B", Tcp("S", seq=100), sport=40000, dport=80), wait=0.01, expect=Expect("new", l4state="SYN_SENT", timeout=120.0))

A field at its default is what a sound stack would send; every field that may lie can be set. Addresses are names of hosts or text.
Invariant: text.parse(text.format(scenario), scenario.name) == scenario, for all values that the fields' comments allow.
Not here: bytes (build), words (words, expectation), judging (judge, run).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ctcore.errors import CtmirrorError
from ctcore.nat_rules import HelperRule, NatRule

# Names that need no definition: documentation addresses would be longer, and these are private as well.
DEFAULT_HOSTS = {
    "A": "10.0.0.1", "B": "10.0.0.2", "C": "10.0.0.3", "A6": "2001:db8::1", "B6": "2001:db8::2", "C6": "2001:db8::3",
}  # fmt: skip
FRAGMENTS = ("ipfrag_high_thresh", "frag6_high_thresh", "ipfrag_max_dist")
# What a scenario may set to a number, by the names of ctcore.config.
SETTINGS = ("tcp_liberal", "tcp_loose", "tcp_max_retrans", "tcp_ignore_invalid_rst", "checksum", "acct", "max", "buckets", "seed", *FRAGMENTS)
NO_CONN = -1

Data = int | bytes  # so many zeros, or these bytes
Checksum = Literal["good", "bad", "udp"] | int  # the right one, a wrong one, this value; udp: UDP-Lite's as Linux wants it (protocol 17 in it)


class ScenarioError(CtmirrorError):
    """A scenario that cannot be read or built: file, line, column, and what was expected."""


@dataclass(frozen=True)
class Option:
    """A TCP option: mss N, wscale N, sackok, sack L R L R ..., timestamp VALUE ECHO, nop, eol; or raw with bytes for values."""

    name: str
    values: tuple[int, ...] | bytes = ()


@dataclass(frozen=True)
class Tcp:
    """flags: letters of FSRPAUEC. doff: in words of 4 bytes, None: the right one. The options are filled up with zeros."""

    flags: str = "S"
    seq: int = 0
    ack: int = 0
    win: int = 8192
    urg: int = 0
    options: tuple[Option, ...] = ()
    data: Data = 0
    doff: int | None = None
    checksum: Checksum = "good"


@dataclass(frozen=True)
class Udp:
    """length: of the header; checksum 0: none."""

    data: Data = 0
    length: int | None = None
    checksum: Checksum = "good"


@dataclass(frozen=True)
class UdpLite:
    """coverage: how many bytes are summed, 0: all."""

    data: Data = 0
    coverage: int = 0
    checksum: Checksum = "good"


@dataclass(frozen=True)
class Ends:
    """Where a packet comes from and goes to: names of hosts or addresses, and ports (of ICMP the id, in both), None where there are none."""

    src: str
    dst: str
    sport: int | None = None
    dport: int | None = None


@dataclass(frozen=True)
class Icmp:
    """v6: ICMPv6. id and seq are bytes 4 to 7, whatever they mean for the type (id << 16 | seq is an MTU).

    about: the step that an error quotes, by its number (from 0) or label; ends: those the quoted packet had when it was met, if it had been
    translated on its way; quote: how many bytes of its IP packet, None: as many as are usual.
    """

    type: int
    code: int = 0
    v6: bool = False
    id: int = 0
    seq: int = 0
    about: int | str | None = None
    ends: Ends | None = None
    quote: int | None = None
    data: Data = 0
    checksum: Checksum = "good"


@dataclass(frozen=True)
class Chunk:
    """Of SCTP. tag: INIT's and INIT ACK's initiate tag, which brings the rest of their fixed body with it; length: of the header."""

    type: int
    flags: int = 0
    tag: int | None = None
    body: Data = 0
    length: int | None = None


@dataclass(frozen=True)
class Sctp:
    """tag: the verification tag; tail: bytes behind the chunks."""

    tag: int = 0
    chunks: tuple[Chunk, ...] = ()
    tail: bytes = b""
    checksum: Checksum = "good"


@dataclass(frozen=True)
class Gre:
    """proto None: IPv4, in version 1 PPP. flags: the first byte, to which version 1 adds its key bit; call: id, version 1 only."""

    version: int = 0
    proto: int | None = None
    call: int = 0
    flags: int = 0
    data: Data = 0


@dataclass(frozen=True)
class Other:
    """Any protocol by its number, whatever its bytes."""

    proto: int
    data: Data = 0


L4 = Tcp | Udp | UdpLite | Icmp | Sctp | Gre | Other
WITH_PORTS = (Tcp, Udp, UdpLite, Sctp)


@dataclass(frozen=True)
class Ext:
    """An extension header of IPv6; body: its bytes behind the next-header byte, None: an empty one of 8 bytes."""

    type: int
    body: bytes | None = None


@dataclass(frozen=True)
class Ip:
    """cut: how many bytes of the transport header and payload are sent at all. frag: only bytes offset to offset + size of them are sent, as a
    fragment (size None: all from there on); more: its more-fragments bit, None: as the slice says; at: the offset it says it has, None: as the slice.
    pad: bytes behind the packet's end. zone: that it comes in, which no header says; None: the scenario's.

    options, df, tos, ihl and checksum exist in IPv4, ext in IPv6.
    """

    ttl: int = 64
    tos: int = 0
    ident: int = 1
    df: bool = False
    options: bytes = b""
    ext: tuple[Ext, ...] = ()
    frag: tuple[int, int | None] | None = None
    more: bool | None = None
    at: int | None = None
    cut: int | None = None
    pad: int = 0
    version: int | None = None
    ihl: int | None = None
    length: int | None = None
    checksum: Checksum = "good"
    zone: int | None = None


@dataclass(frozen=True)
class Packet:
    """src, dst: names of hosts, or addresses of one family. sport, dport: of the protocols that have ports, None otherwise."""

    src: str
    dst: str
    l4: L4
    sport: int | None = None
    dport: int | None = None
    ip: Ip = field(default_factory=Ip)


@dataclass(frozen=True)
class Raw:
    """The bytes of a whole IP packet."""

    data: bytes


@dataclass(frozen=True)
class Expect:
    """What is expected of a packet's record; None and empty: not compared.

    has, lacks: status words that must and must not be there; status: the whole set. conn NO_CONN: none. variables: of the connection record after
    the packet, and what the packet leaves with, as ("tcp.original.end", "101") and ("out.src", "192.0.2.1").
    """

    state: str | None = None
    l4state: str | None = None
    timeout: float | None = None
    dir: str | None = None
    has: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    status: frozenset[str] | None = None
    verdict: str | None = None
    conn: int | None = None
    reason: str | None = None
    zone: int | None = None
    mark: int | None = None
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Step:
    """A packet, sent `wait` seconds after the one before. label: a name to quote it by; comments: the lines above it; remark: at its line's end.

    Comments are single lines without space at their ends. line: where it stands in its file, 0 if in none.
    """

    packet: Packet | Raw
    wait: float = 0.0
    expect: Expect | None = None
    label: str = ""
    comments: tuple[str, ...] = ()
    remark: str = ""
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Scenario:
    """hosts: addresses by name, beside DEFAULT_HOSTS; settings: by the names of SETTINGS; timeouts: seconds by sysctl name.

    nat, helpers, zone_limit, zone_limits, zone_reserves: as ctcore.config has them, rules without a text of their own. zone: of its packets, and
    the direction in which it counts (ctcore.config.ZONE_DIRS). comments: lines at its beginning; ending: behind its last step.
    """

    steps: tuple[Step, ...]
    name: str = ""
    hosts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, int] = field(default_factory=dict)
    timeouts: Mapping[str, int] = field(default_factory=dict)
    nat: tuple[NatRule, ...] = ()
    helpers: tuple[HelperRule, ...] = ()
    comments: tuple[str, ...] = ()
    ending: tuple[str, ...] = ()
    zone: tuple[int, str] | None = None
    zone_limit: int | None = None
    zone_limits: Mapping[int, int] = field(default_factory=dict)
    zone_reserves: Mapping[int, int] = field(default_factory=dict)

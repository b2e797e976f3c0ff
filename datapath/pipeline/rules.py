"""Rules as values: what a `tc filter ... flower ... action ...` line says, whoever wrote it (tc text, YAML, a policy compiler).

A rule lies in a chain of a hook (ingress or egress of a device, or a shared block), has a priority there, matches fields and does actions one
after the other. All values are whole numbers with masks, as flower compares them: a field matches if (packet & mask) == value, a range of ports if
low <= port <= high.
Invariants: a Match has no bit outside of its field, and no value bit outside of its mask; matches of a rule are in the order of FIELDS, each once;
every action has its control, what follows it, spelled out.
Not here: text (tc_text, tc_print, yaml_rules), which combinations make sense (validate), which fields pedit knows (header_fields), what happens to
packets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ctcore.errors import CtmirrorError
from ctcore.nat_rules import Address, Ports

# ct_state as flower has it (include/uapi/linux/pkt_cls.h, TCA_FLOWER_KEY_CT_FLAGS_*); Open vSwitch numbers them differently.
CT_STATES = {"new": 0x01, "est": 0x02, "rel": 0x04, "trk": 0x08, "inv": 0x10, "rpl": 0x20}
IP_FLAGS = {"frag": 0x01, "firstfrag": 0x02}  # TCA_FLOWER_KEY_FLAGS_*

MOST_VLAN = 4094  # 802.1Q: 4095 is none
ETH_IP, ETH_ARP, ETH_RARP, ETH_VLAN, ETH_IPV6, ETH_QINQ = 0x0800, 0x0806, 0x8035, 0x8100, 0x86DD, 0x88A8
ETH_ALL = 0x0003  # `protocol all`: any


class Place(NamedTuple):
    """Where a rule was written; line and column count from 1, 0: of no file."""

    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return ":".join(str(part) for part in self if part)


class RuleError(CtmirrorError):
    """A rules file is wrong: file, line, column, and what was expected (by itself in `expected`)."""

    def __init__(self, text: str, place: Place = Place(), expected: str = "") -> None:  # noqa: B008 (a named tuple is a value)
        super().__init__(text)
        self.place, self.expected = place, expected or text


class Field(NamedTuple):
    """A flower key. bits: its width; maskable: whether a mask may be written; ranged: whether a range may."""

    name: str
    bits: int
    maskable: bool = False
    ranged: bool = False


# By tc's names, in the order in which they are printed. src_ip and dst_ip are of 32 bits in an IPv4 rule, and of 128 in an IPv6 rule.
FIELDS = (
    Field("indev", 0),
    Field("dst_mac", 48, maskable=True),
    Field("src_mac", 48, maskable=True),
    Field("vlan_id", 12),
    Field("vlan_prio", 3),
    Field("vlan_ethtype", 16),
    Field("cvlan_id", 12),
    Field("cvlan_prio", 3),
    Field("cvlan_ethtype", 16),
    Field("ip_proto", 8),
    Field("ip_tos", 8, maskable=True),
    Field("ip_ttl", 8, maskable=True),
    Field("dst_ip", 128, maskable=True),
    Field("src_ip", 128, maskable=True),
    Field("dst_port", 16, maskable=True, ranged=True),
    Field("src_port", 16, maskable=True, ranged=True),
    Field("tcp_flags", 12, maskable=True),
    Field("type", 8, maskable=True),
    Field("code", 8, maskable=True),
    Field("arp_sip", 32, maskable=True),
    Field("arp_tip", 32, maskable=True),
    Field("arp_op", 8, maskable=True),
    Field("arp_sha", 48, maskable=True),
    Field("arp_tha", 48, maskable=True),
    Field("ip_flags", 2, maskable=True),
    Field("ct_state", 6, maskable=True),
    Field("ct_zone", 16, maskable=True),
    Field("ct_mark", 32, maskable=True),
    Field("ct_label", 128, maskable=True),
)
FIELD = {each.name: each for each in FIELDS}
FIELD_ORDER = {each.name: i for i, each in enumerate(FIELDS)}


@dataclass(frozen=True, slots=True)
class Match:
    """One field. Of a range, value and high are its ends, both included, and mask is all ones; device: the name, of indev only."""

    name: str
    value: int
    mask: int
    high: int | None = None
    device: str = ""


# --- what follows an action -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Control:
    """kind: pass (accept, `ok`), pipe (next action), drop (`shot`), continue (next rule), reclassify (from the start), goto (a chain)."""

    kind: str
    chain: int | None = None


CONTROLS = ("pass", "pipe", "drop", "continue", "reclassify", "goto")
PASS, PIPE, DROP, CONTINUE, RECLASSIFY = (Control(kind) for kind in CONTROLS[:5])


def goto(chain: int) -> Control:
    return Control("goto", chain)


# --- actions --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gact:
    """Nothing but its control (`action pass`, `action drop`, `action goto chain N`, ...)."""

    control: Control


@dataclass(frozen=True, slots=True)
class CtNat:
    """kind: src, dst, or "" for bare `nat`, which applies the mapping there is. low, high: addresses, both included."""

    kind: str = ""
    low: Address | None = None
    high: Address | None = None
    ports: Ports | None = None


@dataclass(frozen=True, slots=True)
class Ct:
    """Connection tracking (tc-ct(8)). mark, label: (value, mask); helper: (name, family 4 or 6, protocol).

    Bit n of a label's number is label n of the connection; tc writes labels as bytes in memory, the lowest first.
    """

    zone: int = 0
    mark: tuple[int, int] | None = None
    label: tuple[int, int] | None = None
    commit: bool = False
    force: bool = False
    clear: bool = False
    nat: CtNat | None = None
    helper: tuple[str, int, int] | None = None
    control: Control = PIPE


GONE = ""  # the device of a Mirred in the kernel whose own has gone: it goes nowhere, whatever else is called so by then. No file has it.


@dataclass(frozen=True, slots=True)
class Mirred:
    """To another device (tc-mirred(8)). kind: redirect or mirror; device: its name, or GONE; direction: egress or ingress of that device.

    Nothing follows a redirect, whose packet is gone: its control is PIPE and has no say.
    """

    kind: str
    device: str
    direction: str = "egress"
    control: Control = PIPE


@dataclass(frozen=True, slots=True)
class Munge:
    """One change of a header field. header: eth, ip, ip6, tcp, udp; field: tc's name (src, dst, ttl, sport, ...), a key of
    header_fields.HEADER_FIELDS, which says where it lies; op: set or add.

    The new field is (old & ~mask) | value for set, and (old & ~mask) | (old + value & mask) for add. mask: the bits that change (`retain`).
    """

    header: str
    field: str
    op: str
    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class Pedit:
    munges: tuple[Munge, ...]
    control: Control = PIPE


@dataclass(frozen=True, slots=True)
class Csum:
    """Make checksums anew. of: names of ip4h, icmp, igmp, tcp, udp, udplite, sctp, sorted in this order."""

    of: tuple[str, ...]
    control: Control = PIPE


@dataclass(frozen=True, slots=True)
class Skbedit:
    """mark: (value, mask); priority: class id as a number; ptype: host, otherhost, broadcast, multicast."""

    mark: tuple[int, int] | None = None
    priority: int | None = None
    queue: int | None = None
    ptype: str = ""
    control: Control = PIPE


@dataclass(frozen=True, slots=True)
class Vlan:
    """kind: push, pop, modify. An id or priority of None stays, or of a pushed tag is 0; protocol None: 802.1Q, of a modified tag as well."""

    kind: str
    id: int | None = None
    protocol: int | None = None
    priority: int | None = None
    control: Control = PIPE


POLICED = 255 * 8  # bytes


@dataclass(frozen=True, slots=True)
class Police:
    """A token bucket. rate: bits a second; burst: bytes; or packet_rate a second and packet_burst.

    mtu: bytes of the longest packet that can have a token (see longest). exceed: what happens to what has no token; control: to the rest (tc's
    conform-exceed).
    """

    rate: int | None = None
    burst: int | None = None
    packet_rate: int | None = None
    packet_burst: int | None = None
    mtu: int | None = None
    exceed: Control = RECLASSIFY
    control: Control = PASS

    @property
    def longest(self) -> int | None:
        """Bytes of the longest packet that can have a token; None: any can.

        Of a rate without an mtu tc sends a table made for packets of up to 2,047 bytes, in 256 cells of 8, and act_police takes 255 for the mtu.
        """
        return POLICED if self.mtu is None and self.rate is not None else self.mtu


Action = Gact | Ct | Mirred | Pedit | Csum | Skbedit | Vlan | Police


# --- rules ----------------------------------------------------------------------------------------------------------------------------


class Hook(NamedTuple):
    """Where a chain hangs: a device's ingress or egress, or a shared block (then the device is "" and direction too)."""

    device: str
    direction: str = "ingress"
    block: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One filter. protocol: the ethertype, ETH_ALL for any; prio: 1 is first, 0: to be given as the kernel does (validate); handle: 0: likewise.

    No actions: the rule only says that nothing follows it (tc's default is pass). parts: where its parts are written, by the names of its matches
    and "action 0", "action 1", ...
    """

    hook: Hook
    protocol: int
    matches: tuple[Match, ...] = ()
    actions: tuple[Action, ...] = ()
    prio: int = 0
    chain: int = 0
    handle: int = 0
    skip_sw: bool = False
    skip_hw: bool = False
    place: Place = field(default=Place(), compare=False)
    parts: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Template:
    """What the rules of a chain may look like (`tc chain add ... flower`): these fields with no more than these masks, and no others."""

    hook: Hook
    protocol: int
    chain: int
    matches: tuple[Match, ...] = ()
    place: Place = field(default=Place(), compare=False)
    parts: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Qdisc:
    """A device's ingress or clsact qdisc, and the shared blocks its hooks are bound to."""

    device: str
    kind: str = "clsact"
    ingress_block: int | None = None
    egress_block: int | None = None
    place: Place = field(default=Place(), compare=False)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """A whole file, checked, with priorities and handles given; rules in the order written."""

    qdiscs: tuple[Qdisc, ...] = ()
    templates: tuple[Template, ...] = ()
    rules: tuple[Rule, ...] = ()


# --- what follows from rules ----------------------------------------------------------------------------------------------------------


def innermost(protocol: int, matches: Iterable[Match]) -> int:
    """The ethertype behind the VLAN tags that are matched: which of IPv4, IPv6 and ARP the keys of layer three and four are about."""
    types = {match.name: match.value for match in matches if match.name in ("vlan_ethtype", "cvlan_ethtype")}
    return types.get("cvlan_ethtype", types.get("vlan_ethtype", protocol))


def controls_of(actions: Iterable[Action]) -> Iterator[tuple[int, Control]]:
    """Whatever may follow actions, each with the number of its action."""
    for i, action in enumerate(actions):
        yield i, action.control
        if isinstance(action, Police):
            yield i, action.exceed


def hook_text(hook: Hook) -> str:
    return f"block {hook.block}" if hook.block is not None else f"dev {hook.device} {hook.direction}"

"""A filter's keys as attributes of flower: which attributes are a key's value and mask, and in which order their bytes come.

Keys have tc's names. Which attributes src_ip, dst_port or type are hangs on the ethertype and the protocol beside them, as it does in tc.
Source: what tc of iproute2 6.1 sends. Not here: which keys go together, and what they are called in a rules file (datapath.pipeline).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from offload.netlink.attributes import FLOWER, Form
from offload.netlink.pack import attribute, text

ETH_ALL, ETH_IP, ETH_IPV6 = 0x0003, 0x0800, 0x86DD
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
SKIP_HW, SKIP_SW, IN_HW = 0x1, 0x2, 0x4  # TCA_CLS_FLAGS_*
NUMBERS = FLOWER.numbers
ETH_TYPE, FLAGS, INDEV, ACT = (NUMBERS[name] for name in ("KEY_ETH_TYPE", "FLAGS", "INDEV", "ACT"))


class Key(Protocol):
    """One key: (packet & mask) == value, or value <= port <= high; device: of indev only."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...
    @property
    def mask(self) -> int: ...
    @property
    def high(self) -> int | None: ...
    @property
    def device(self) -> str: ...


class Pair(NamedTuple):
    """The attributes of a value and of its mask (0: it has none), their bytes and order. bits: of the whole field; sparing: no mask where it is
    whole."""

    value: int
    mask: int
    size: int
    order: str
    bits: int
    sparing: bool = False


def _pair(name: str, bits: int = 0, sparing: bool = False) -> Pair:
    """By the name of the value's attribute."""
    form = FLOWER.attributes[NUMBERS[f"KEY_{name}"]][1]
    assert isinstance(form, Form)
    return Pair(NUMBERS[f"KEY_{name}"], NUMBERS.get(f"KEY_{name}_MASK", 0), form.size, form.order, bits or form.size * 8, sparing)


PLAIN: dict[str, Pair] = {
    "dst_mac": _pair("ETH_DST"), "src_mac": _pair("ETH_SRC"), "vlan_id": _pair("VLAN_ID", 12), "vlan_prio": _pair("VLAN_PRIO", 3),
    "vlan_ethtype": _pair("VLAN_ETH_TYPE"), "cvlan_id": _pair("CVLAN_ID", 12), "cvlan_prio": _pair("CVLAN_PRIO", 3),
    "cvlan_ethtype": _pair("CVLAN_ETH_TYPE"), "ip_proto": _pair("IP_PROTO"), "ip_tos": _pair("IP_TOS"), "ip_ttl": _pair("IP_TTL"),
    "tcp_flags": _pair("TCP_FLAGS", 12), "arp_sip": _pair("ARP_SIP"), "arp_tip": _pair("ARP_TIP"), "arp_op": _pair("ARP_OP"),
    "arp_sha": _pair("ARP_SHA"), "arp_tha": _pair("ARP_THA"), "ip_flags": _pair("FLAGS", 2), "ct_state": _pair("CT_STATE", 6),
    "ct_zone": _pair("CT_ZONE"), "ct_mark": _pair("CT_MARK"), "ct_label": _pair("CT_LABELS"),
}  # fmt: skip
OF_FAMILY: dict[tuple[str, int], Pair] = {
    ("src_ip", ETH_IP): _pair("IPV4_SRC"), ("dst_ip", ETH_IP): _pair("IPV4_DST"),
    ("src_ip", ETH_IPV6): _pair("IPV6_SRC"), ("dst_ip", ETH_IPV6): _pair("IPV6_DST"),
}  # fmt: skip
OF_PROTO: dict[tuple[str, int], Pair] = {
    ("src_port", TCP): _pair("TCP_SRC", sparing=True), ("dst_port", TCP): _pair("TCP_DST", sparing=True),
    ("src_port", UDP): _pair("UDP_SRC", sparing=True), ("dst_port", UDP): _pair("UDP_DST", sparing=True),
    ("src_port", SCTP): _pair("SCTP_SRC", sparing=True), ("dst_port", SCTP): _pair("SCTP_DST", sparing=True),
    ("type", ICMP): _pair("ICMPV4_TYPE"), ("code", ICMP): _pair("ICMPV4_CODE"),
    ("type", ICMPV6): _pair("ICMPV6_TYPE"), ("code", ICMPV6): _pair("ICMPV6_CODE"),
}  # fmt: skip
RANGES: dict[str, tuple[Pair, Pair]] = {
    "src_port": (_pair("PORT_SRC_MIN"), _pair("PORT_SRC_MAX")), "dst_port": (_pair("PORT_DST_MIN"), _pair("PORT_DST_MAX")),
}  # fmt: skip


class Unsaid(ValueError):
    """A key that flower has no attribute for beside the other ones."""


def keys(protocol: int, matches: Iterable[Key]) -> bytes:
    """The attributes of all keys, and of the ethertype. protocol: of the filter; ip_proto and types behind tags are in front of what hangs on them.

    Raises Unsaid, OverflowError for a value that is too large.
    """
    family, proto = protocol, 0
    parts = []
    for match in matches:
        name, value = match.name, match.value
        if name == "indev":
            parts.append(text(INDEV, match.device))
            continue
        if match.high is not None:
            for pair, end in zip(_of(RANGES, name), (value, match.high), strict=True):
                parts.append(attribute(pair.value, end.to_bytes(2, "big")))
            continue
        if name in ("vlan_ethtype", "cvlan_ethtype"):
            family = value
        elif name == "ip_proto":
            proto = value
        pair = PLAIN.get(name) or OF_FAMILY.get((name, family)) or _of(OF_PROTO, (name, proto))
        parts.append(attribute(pair.value, value.to_bytes(pair.size, pair.order)))  # type: ignore[arg-type]
        # A port's mask is left out where it is whole, but not with port 0, which means nothing to the kernel without.
        if pair.mask and not (pair.sparing and value and match.mask == (1 << pair.bits) - 1):
            parts.append(attribute(pair.mask, match.mask.to_bytes(pair.size, pair.order)))  # type: ignore[arg-type]
    if protocol != ETH_ALL:
        parts.append(attribute(ETH_TYPE, protocol.to_bytes(2, "big")))
    return b"".join(parts)


def _of(table, key):
    found = table.get(key)
    if found is None:
        raise Unsaid(f"{key}: no key of flower beside these")
    return found

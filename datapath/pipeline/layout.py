"""From matches to masks: a rule's matches laid over a packet's fields (flower.FlowerKey).

A range of ports has no mask; it becomes the prefixes that cover it, so that one rule may be several pairs of value and mask.
Not here: which matches make sense together (validate), comparing (classify).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, Literal, NamedTuple

from datapath.pipeline.flower import FLOWER_DTYPE
from datapath.pipeline.rules import ETH_ALL, ETH_IP, Match, Rule, innermost

BYTES = {"dst_mac": 6, "src_mac": 6, "arp_sip": 4, "arp_tip": 4, "arp_sha": 6, "arp_tha": 6}
NUMBERS = ("vlan_ethtype", "cvlan_ethtype", "ip_proto", "ip_tos", "ip_ttl", "src_port", "dst_port", "tcp_flags", "arp_op", "ip_flags")
CT = ("ct_state", "ct_zone", "ct_mark")
ICMP = {"type": "icmp_type", "code": "icmp_code"}
TAGS = {"vlan_id": ("vlan_tci", 0), "vlan_prio": ("vlan_tci", 13), "cvlan_id": ("cvlan_tci", 0), "cvlan_prio": ("cvlan_tci", 13)}
ADDRESSES = ("src_ip", "dst_ip")
LIES: Mapping[str, Any] = FLOWER_DTYPE.fields or {}


class Part(NamedTuple):
    """Where a field lies. offset: bits; size: bytes; order: of these; shift: bits that the field's number is moved up by in them."""

    offset: int
    size: int
    order: Literal["big", "little"]
    shift: int


def _part(name: str, field: str, shift: int = 0) -> tuple[str, Part]:
    kind, offset = LIES[field][:2]
    return name, Part(8 * offset, kind.itemsize, "big" if name in BYTES or name in ADDRESSES else "little", shift)


# By tc's names. Numbers are in host order, which is little-endian on all machines that are supported.
PARTS = dict(
    [_part(name, name) for name in (*BYTES, *ADDRESSES, *NUMBERS, *CT, "ct_label", "indev", "eth_type")]
    + [_part(name, field) for name, field in ICMP.items()]
    + [_part(name, field, shift) for name, (field, shift) in TAGS.items()]
)


def prefixes(low: int, high: int, bits: int = 16) -> Iterator[tuple[int, int]]:
    """The fewest pairs of value and mask that are true for low to high, both included, and for nothing else."""
    everything = (1 << bits) - 1
    while low <= high:
        size = low & -low or 1 << bits
        while size > high - low + 1:
            size >>= 1
        yield low, everything & ~(size - 1)
        low += size


def put(name: str, number: int) -> int:
    """A number, a value or a mask, where a field lies in a FlowerKey, which is read as one number, its first byte the lowest."""
    part = PARTS[name]
    return int.from_bytes((number << part.shift).to_bytes(part.size, part.order), "little") << part.offset


def laid(rule: Rule, indev: Callable[[str], int]) -> list[tuple[bytes, bytes]]:
    """The pairs of value and mask that a rule is, each as FLOWER_DTYPE lies; a packet's fields match if (fields & mask) == value for one of them.

    indev: the number of a device's name, not 0.
    """
    value = mask = 0
    if rule.protocol != ETH_ALL:
        value, mask = put("eth_type", rule.protocol), put("eth_type", 0xFFFF)
    up = 96 if innermost(rule.protocol, rule.matches) == ETH_IP else 0
    ranges: list[Match] = []
    for match in rule.matches:
        name, shift = match.name, up if match.name in ADDRESSES else 0
        if name == "indev":
            value |= put(name, indev(match.device))
            mask |= put(name, 0xFFFF)
        elif match.high is not None:
            ranges.append(match)
        else:
            value |= put(name, (match.value & match.mask) << shift)
            mask |= put(name, match.mask << shift)
    size = FLOWER_DTYPE.itemsize
    return [(one.to_bytes(size, "little"), under.to_bytes(size, "little")) for one, under in with_ranges(value, mask, ranges)]


def with_ranges(value: int, mask: int, ranges: list[Match]) -> Iterator[tuple[int, int]]:
    for choice in product(*(prefixes(match.value, match.high or 0) for match in ranges)):
        one, under = value, mask
        for match, (low, bits) in zip(ranges, choice, strict=True):
            one |= put(match.name, low)
            under |= put(match.name, bits)
        yield one, under


def fields_of(key: Any) -> Mapping[str, int]:
    """A packet's fields as the numbers that a Match compares, by tc's names: for who compares them slowly.

    Addresses of IPv4 are of 32 bits. key: FLOWER_DTYPE[()].
    """
    found = {name: int(key[name]) for name in (*NUMBERS, *CT)}
    found |= {name: int(key[field]) for name, field in ICMP.items()}
    found |= {name: int(key[field]) >> shift & (7 if shift else 0xFFF) for name, (field, shift) in TAGS.items()}
    found |= {name: int.from_bytes(key[name].tobytes(), "big") for name in BYTES}
    types = (int(key["eth_type"]), int(key["vlan_ethtype"]), int(key["cvlan_ethtype"]))
    size = 4 if 0x0800 in types else 16
    found |= {name: int.from_bytes(key[name].tobytes()[:size], "big") for name in ("src_ip", "dst_ip")}
    return found | {"ct_label": int(key["ct_label"][0]) | int(key["ct_label"][1]) << 64, "indev": int(key["indev"]), "protocol": types[0]}

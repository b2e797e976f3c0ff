"""From matches to masks: a rule's matches laid over a packet's fields (flower.FlowerKey).

A range of ports has no mask; it becomes the prefixes that cover it, so that one rule may be several pairs of value and mask.
Not here: which matches make sense together (validate), comparing (classify).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from datapath.pipeline.flower import FLOWER_DTYPE
from datapath.pipeline.rules import ETH_ALL, Match, Rule

BYTES = {"dst_mac": 6, "src_mac": 6, "arp_sip": 4, "arp_tip": 4, "arp_sha": 6, "arp_tha": 6}
NUMBERS = ("vlan_ethtype", "cvlan_ethtype", "ip_proto", "ip_tos", "ip_ttl", "src_port", "dst_port", "tcp_flags", "arp_op", "ip_flags")
CT = ("ct_state", "ct_zone", "ct_mark")
ICMP = {"type": "icmp_type", "code": "icmp_code"}
TAGS = {"vlan_id": ("vlan_tci", 0), "vlan_prio": ("vlan_tci", 13), "cvlan_id": ("cvlan_tci", 0), "cvlan_prio": ("cvlan_tci", 13)}


def prefixes(low: int, high: int, bits: int = 16) -> Iterator[tuple[int, int]]:
    """The fewest pairs of value and mask that are true for low to high, both included, and for nothing else."""
    everything = (1 << bits) - 1
    while low <= high:
        size = low & -low or 1 << bits
        while size > high - low + 1:
            size >>= 1
        yield low, everything & ~(size - 1)
        low += size


def put(record: Any, match: Match, number: int) -> None:
    """Store a number, a value or a mask, where the field of a match lies."""
    name = match.name
    if name in BYTES:
        record[name] = np.frombuffer(number.to_bytes(BYTES[name], "big"), dtype=np.uint8)
    elif name in ("src_ip", "dst_ip"):
        record[name] = np.frombuffer(number.to_bytes(16, "big"), dtype=np.uint8)
    elif name in TAGS:
        field, shift = TAGS[name]
        record[field] |= number << shift
    elif name == "ct_label":
        record[name] = number & (1 << 64) - 1, number >> 64
    else:
        record[ICMP.get(name, name)] = number


def is_ipv4(rule: Rule) -> bool:
    """Whether the addresses of a rule are of 32 bits: by its protocol, behind tags by the innermost type it names."""
    inner = {match.name: match.value for match in rule.matches if match.name in ("vlan_ethtype", "cvlan_ethtype")}
    return inner.get("cvlan_ethtype", inner.get("vlan_ethtype", rule.protocol)) == 0x0800


def laid(rule: Rule, indev: Callable[[str], int]) -> list[tuple[Any, Any]]:
    """The pairs of value and mask that a rule is, each FLOWER_DTYPE[()]; a packet's fields match if (fields & mask) == value for one of them.

    indev: the number of a device's name, not 0.
    """
    value, mask = np.zeros((), dtype=FLOWER_DTYPE), np.zeros((), dtype=FLOWER_DTYPE)
    if rule.protocol != ETH_ALL:
        value["eth_type"], mask["eth_type"] = rule.protocol, 0xFFFF
    ranges: list[Match] = []
    for match in rule.matches:
        if match.name == "indev":
            value["indev"], mask["indev"] = indev(match.device), 0xFFFF
        elif match.high is not None:
            ranges.append(match)
        else:
            shift = 96 if match.name in ("src_ip", "dst_ip") and is_ipv4(rule) else 0
            put(value, match, (match.value & match.mask) << shift)
            put(mask, match, match.mask << shift)
    return list(with_ranges(value, mask, ranges))


def with_ranges(value: Any, mask: Any, ranges: list[Match]) -> Iterator[tuple[Any, Any]]:
    for choice in product(*(prefixes(match.value, match.high or 0) for match in ranges)):
        pair = value.copy(), mask.copy()
        for match, (low, bits) in zip(ranges, choice, strict=True):
            put(pair[0], match, low)
            put(pair[1], match, bits)
        yield pair


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

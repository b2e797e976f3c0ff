"""Ranges as prefixes, matches as values and masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.pipeline.flower import FLOWER_DTYPE
from datapath.pipeline.layout import laid, prefixes
from datapath.pipeline.rules import ETH_IP, ETH_IPV6, ETH_VLAN, Hook, Match, Rule

HOOK = Hook("eth0")
PORTS = st.integers(0, 0xFFFF)


def pairs(rule: Rule) -> list[tuple[Any, Any]]:
    """What is laid, as fields."""
    return [(np.frombuffer(value, FLOWER_DTYPE)[0], np.frombuffer(mask, FLOWER_DTYPE)[0]) for value, mask in laid(rule, lambda name: 1)]


def rule(*matches: Match, protocol: int = ETH_IP) -> Rule:
    return Rule(HOOK, protocol, matches)


@given(ends=st.tuples(PORTS, PORTS).map(sorted), probes=st.lists(PORTS, max_size=20))
def test_prefixes_cover_a_range_and_nothing_else(ends: list[int], probes: list[int]) -> None:
    low, high = ends
    covered = list(prefixes(low, high))
    for port in {low, high, max(low - 1, 0), min(high + 1, 0xFFFF), *probes}:
        assert sum(port & mask == value for value, mask in covered) == (low <= port <= high)


@pytest.mark.parametrize(("ends", "n"), [((0, 65535), 1), ((80, 80), 1), ((1, 65534), 30), ((1024, 65535), 6)])
def test_prefixes_are_few(ends: tuple[int, int], n: int) -> None:
    assert len(list(prefixes(*ends))) == n


def test_addresses_lie_as_in_a_packet() -> None:
    ((value, mask),) = pairs(rule(Match("dst_ip", 0xC0000200, 0xFFFFFF00)))
    assert value["dst_ip"].tolist()[:5] == [192, 0, 2, 0, 0] and mask["dst_ip"].tolist()[:5] == [255, 255, 255, 0, 0]
    assert (int(value["eth_type"]), int(mask["eth_type"])) == (0x0800, 0xFFFF)
    ((value, mask),) = pairs(rule(Match("src_ip", 0x20010DB8 << 96, 0xFFFFFFFF << 96), protocol=ETH_IPV6))
    assert value["src_ip"].tolist()[:5] == [0x20, 1, 0x0D, 0xB8, 0] and mask["src_ip"].tolist()[:5] == [255] * 4 + [0]


def test_ipv4_behind_a_tag_is_ipv4() -> None:
    matches = Match("vlan_id", 5, 0xFFF), Match("vlan_prio", 3, 7), Match("vlan_ethtype", 0x0800, 0xFFFF), Match("src_ip", 0x0A000001, 0xFFFFFFFF)
    ((value, mask),) = pairs(rule(*matches, protocol=ETH_VLAN))
    assert (int(value["vlan_tci"]), int(mask["vlan_tci"])) == (3 << 13 | 5, 0xEFFF)
    assert value["src_ip"].tolist()[:5] == [10, 0, 0, 1, 0]


def test_two_ranges_are_every_pair_of_their_prefixes() -> None:
    ranges = Match("dst_port", 1, 0xFFFF, high=2), Match("src_port", 4, 0xFFFF, high=6)
    found = [(int(v["dst_port"]), int(v["src_port"])) for v, _ in pairs(rule(*ranges))]
    assert found == [(1, 4), (1, 6), (2, 4), (2, 6)]


def test_a_label_has_its_low_word_first() -> None:
    ((value, mask),) = pairs(rule(Match("ct_label", 1 << 64 | 2, (1 << 128) - 1)))
    assert value["ct_label"].tolist() == [2, 1] and mask["ct_label"].tolist() == [(1 << 64) - 1] * 2
    assert value.dtype.itemsize == 112 and not np.any(value["ct_mark"])

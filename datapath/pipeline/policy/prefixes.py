"""Sets of addresses as sorted, disjoint prefixes, the fewest there are: what a rule can match.

Not here: which addresses a policy means (clauses).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Any

from ctcore.nat_rules import Address, Network

Prefixes = tuple[Network, ...]  # of one family or both; IPv4 first
EVERYTHING: Prefixes = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def aggregate(networks: Iterable[Network]) -> Prefixes:
    """The same addresses in as few prefixes as possible."""
    kept: dict[int, list[Any]] = {4: [], 6: []}
    for network in networks:
        kept[network.version].append(network)
    return (*collapse_addresses(kept[4]), *collapse_addresses(kept[6]))


@cache
def host(address: Address) -> Network:
    return ip_network(address)


def subtract(network: Network, excepted: Sequence[Network]) -> Prefixes:
    """A network without parts of it."""
    left: list[Any] = [network]
    for hole in excepted:
        left = [piece for each in left for piece in _without(each, hole)]
    return aggregate(left)


def _without(network: Any, hole: Any) -> Iterable[Network]:
    if network.version != hole.version or not network.overlaps(hole):
        return (network,)
    return () if network.subnet_of(hole) else network.address_exclude(hole)


def of_family(prefixes: Iterable[Network], version: int) -> Prefixes:
    return tuple(each for each in prefixes if each.version == version)


def without_covered(prefixes: Iterable[Network], covering: Sequence[Network]) -> Prefixes:
    """Those that do not lie within a prefix of covering as a whole."""
    return tuple(each for each in prefixes if not any(each.version == other.version and each.subnet_of(other) for other in covering))  # type: ignore[arg-type]

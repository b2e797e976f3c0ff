"""Which devices a flow goes by: each side of a zone is a device with the addresses that are behind it.

    eth0: 10.1.0.0/16    vf0: 0.0.0.0/0    a packet from 10.1.2.3 comes in by eth0; one to 192.0.2.9 leaves by vf0, or goes on in a chain

Commands of a mirror say which addresses a direction has, and not which way it goes: a flow table has no routes. Sides say it, as a routing table
does, of both ends: the longest prefix decides. What no side has stays in software.
Not here: interfaces and their numbers (offload.exact_rules), routes of a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from ctcore.errors import ConfigError

Network = IPv4Network | IPv6Network
EVERYTHING: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
MOST_SIDES, MOST_NETWORKS = 256, 4096
MOST_ZONE, MOST_CHAIN = 0xFFFF, (1 << 28) - 1


class Side(NamedTuple):
    """networks: addresses behind a device; zone: whose connections; chain: what goes out by this side goes on in this chain of the hook where it came
    in, for rules that do more than a redirection (tags, MAC addresses, TTL); None: it leaves by the device."""

    device: str
    networks: tuple[Network, ...] = EVERYTHING
    zone: int = 0
    chain: int | None = None


class Sides:
    """Sides by zone and address. Raises ConfigError: what is wrong, and what was expected."""

    def __init__(self, sides: Iterable[Side]) -> None:
        self.sides = tuple(sides)
        _check(self.sides)
        found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for number, side in enumerate(self.sides):
            for network in side.networks:
                key = (side.zone, network.version)
                found.setdefault(key, []).append((network.prefixlen, int(network.network_address), number))
        # The longest first, each as how far an address is shifted, what is left of it then, and whose it is.
        self._longest = {
            (zone, version): [
                ((32 if version == 4 else 128) - length, start >> (32 if version == 4 else 128) - length, number)
                for length, start, number in sorted(each, reverse=True)
            ]
            for (zone, version), each in found.items()
        }

    def of(self, zone: int, version: int, address: bytes) -> int | None:
        """The number of the side that an address (4 or 16 bytes) is behind; None: of none."""
        value = int.from_bytes(address, "big")
        for shift, start, number in self._longest.get((zone, version), ()):
            if value >> shift == start:
                return number
        return None


def side(device: str, networks: Iterable[str] = (), zone: int = 0, chain: int | None = None) -> Side:
    """The same of text. Raises ConfigError for what is no network."""
    found: list[Network] = []
    for text in networks:
        try:
            found.append(ip_network(text))
        except ValueError as error:
            raise ConfigError(f"side {device}: network {text!r}: {error}: expected an address with a prefix length, and nothing behind it") from None
    return Side(device, tuple(found) or EVERYTHING, zone, chain)


def _check(sides: tuple[Side, ...]) -> None:
    if not 0 < len(sides) <= MOST_SIDES:
        raise ConfigError(f"{len(sides)} sides: expected 1 to {MOST_SIDES}")
    if sum(len(each.networks) for each in sides) > MOST_NETWORKS:
        raise ConfigError(f"more than {MOST_NETWORKS} networks of sides")
    taken: dict[tuple[int, Network], str] = {}
    for each in sides:
        if not 0 <= each.zone <= MOST_ZONE:
            raise ConfigError(f"side {each.device}: zone {each.zone}: expected 0 to {MOST_ZONE}")
        if each.chain is not None and not 0 < each.chain <= MOST_CHAIN:
            raise ConfigError(f"side {each.device}: chain {each.chain}: expected 1 to {MOST_CHAIN}")
        for network in each.networks:
            other = taken.setdefault((each.zone, network), each.device)
            if other != each.device:
                raise ConfigError(f"side {each.device}: {network} of zone {each.zone} is behind {other} already: expected it behind one device")
    for device in {each.device for each in sides}:
        zones = sorted({each.zone for each in sides if each.device == device})
        if len(zones) > 1:
            raise ConfigError(f"side {device}: zones {', '.join(map(str, zones))}: expected one, for a filter of a device knows no zones")

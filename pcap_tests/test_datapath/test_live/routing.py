"""The tests' router: two interfaces with networks of both families, a gateway behind each, and packets as text.

    lan 10.1.0.1/24 fd00:1::1/64 --- router --- 10.2.0.1/24 fd00:2::1/64 wan --- 10.2.0.254 fd00:2::fe: default

Not here: the kernel (test_router_traffic).
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from datapath import craft
from datapath.live.router import Router
from datapath.live.routes import RouteKind, RouteRow

LAN, WAN = bytes.fromhex("02000000aa01"), bytes.fromhex("02000000aa02")
HOST, GATEWAY = bytes.fromhex("02000000bb01"), bytes.fromhex("02000000bb02")
CLIENT = {4: "10.1.0.9", 6: "fd00:1::9"}
SERVER = {4: "198.51.100.7", 6: "2001:db8::7"}
NEAR = {4: "10.1.0.1", 6: "fd00:1::1"}  # the router's addresses
FAR = {4: "10.2.0.1", 6: "fd00:2::1"}
NEXT = {4: "10.2.0.254", 6: "fd00:2::fe"}
ANY = {4: "0.0.0.0/0", 6: "::/0"}
FAMILIES = (4, 6)


def row(prefix: str, kind: RouteKind, iface: int = 0, via: str | None = None) -> RouteRow:
    return RouteRow(ip_network(prefix), kind, iface, None if via is None else ip_address(via))


def router(*, mtu: int = 1500, names: tuple[str, ...] = ("lan", "wan"), **limits: float) -> Router:
    """mtu: of the wan."""
    made = Router(names, **limits)
    made.put_station("lan", LAN, addresses=[ip_address(NEAR[family]) for family in FAMILIES])
    made.put_station("wan", WAN, mtu=mtu, addresses=[ip_address(FAR[family]) for family in FAMILIES])
    made.routes.put([
        *(row(address, RouteKind.ROUTE_OWN) for address in (*NEAR.values(), *FAR.values())),
        *(row(text, RouteKind.ROUTE_LINK, 0) for text in ("10.1.0.0/24", "fd00:1::/64")),
        *(row(text, RouteKind.ROUTE_LINK, 1) for text in ("10.2.0.0/24", "fd00:2::/64")),
        *(row(ANY[family], RouteKind.ROUTE_VIA, 1, NEXT[family]) for family in FAMILIES),
        row("10.1.0.255/32", RouteKind.ROUTE_GROUP),
        row("10.66.0.0/16", RouteKind.ROUTE_UNREACHABLE),
        row("fd66::/16", RouteKind.ROUTE_UNREACHABLE),
        row("10.67.0.0/16", RouteKind.ROUTE_PROHIBIT),
        row("10.68.0.0/16", RouteKind.ROUTE_BLACKHOLE),
    ])  # fmt: skip
    for family in FAMILIES:
        made.neighbours.put(0, ip_address(CLIENT[family]), HOST)
        made.neighbours.put(1, ip_address(NEXT[family]), GATEWAY)
    return made


def addressed(frame: bytes, to: bytes = LAN, source: bytes = HOST) -> bytes:
    return to + source + frame[12:]


def udp(family: int = 4, src: str = "", dst: str = "", size: int = 20, **fields: int) -> bytes:
    """From the client to the server, to our MAC address in the lan."""
    return addressed(craft.udp(src or CLIENT[family], dst or SERVER[family], 4000, 53, bytes(i & 0xFF for i in range(size)), **fields))


def header_sum(packet: bytes) -> int:
    """0 if the checksum of an IPv4 header is right."""
    return craft.checksum(packet[: (packet[0] & 15) * 4])

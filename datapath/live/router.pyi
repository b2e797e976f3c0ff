from collections.abc import Iterable, Sequence
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from datapath.live.neighbour_table import NeighbourTable
from datapath.live.routes import RouteTable
from datapath.live.unresolved import Unresolved

COUNTERS: tuple[str, ...]
ERRORS: dict[int, tuple[tuple[int, int], tuple[int, int]]]

class Way(IntEnum):
    WAY_ON = 0
    WAY_CUT = 1
    WAY_MALFORMED = 2
    WAY_NOT_IP = 3
    WAY_OTHER_MAC = 4
    WAY_GROUP = 5
    WAY_MARTIAN = 6
    WAY_SOURCE_ROUTED = 7
    WAY_OWN = 8
    WAY_NO_ROUTE = 9
    WAY_PROHIBITED = 10
    WAY_BLACKHOLE = 11
    WAY_TTL = 12
    WAY_TOO_BIG = 13
    WAY_NO_NEIGHBOUR = 14
    WAY_UNREACHABLE = 15
    WAY_DOWN = 16

class Router:
    """Where frames go that pass at devices in router mode.

    names: of all devices by ordinal, 64 at most, whether they are routed or not. icmp_rate, icmp_burst: ICMP errors a second, and at once after a
    pause; icmp_peer_rate, icmp_peer_burst: likewise to one destination (which shares its bucket with few others), a rate of 0: no limit. Raises
    ValueError.

        router = Router(["lan", "wan"])
        router.put_station("lan", mac, addresses=[ip_address("10.1.0.1")])
        router.routes.put([RouteRow(ip_network("0.0.0.0/0"), RouteKind.ROUTE_VIA, 1, ip_address("192.0.2.1"))])
        router.neighbours.put(1, ip_address("192.0.2.1"), its_mac)
    """

    names: tuple[str, ...]
    routes: RouteTable
    neighbours: NeighbourTable
    unresolved: Unresolved
    def __init__(
        self,
        names: Sequence[str],
        *,
        neighbours: NeighbourTable | None = None,
        icmp_rate: float = 1000,
        icmp_burst: float = 50,
        icmp_peer_rate: float = 1,
        icmp_peer_burst: float = 6,
    ) -> None: ...
    def put_station(
        self, name: str, mac: bytes, *, mtu: int = 1500, up: bool = True, routed: bool = True, addresses: Iterable[IPv4Address | IPv6Address] = ()
    ) -> None:
        """What an interface is now. mtu: bytes of an IP packet, 68 at least; routed: what passes there is routed; addresses: the first one of each
        family is where ICMP errors come from. Not while packets are routed. Raises ValueError."""
    def routed(self) -> list[str]:
        """Names of the devices in router mode."""
    def counters(self) -> dict[str, int]:
        """Frames by their way (`forwarded`, `cut`: on in pieces; all others are dropped); errors: ICMP errors made, errors_not_allowed: about packets
        that must not be answered, errors_peer_limited, errors_limited: not made for the limits' sake, errors_no_way: nobody to send them by.
        And those of Unresolved."""
    def route_frame(self, frame: bytes, name: str, *, now: int = 0, came: bytes | None = None) -> tuple[Way, str | None, list[bytes]]:
        """One frame that passes at a device: its way, where something leaves, and what: the frame, its pieces, or an ICMP error. now: ns; came: the
        frame as it was before its rules, which an error quotes. As the loop does it, but one at a time."""

def pieces_of(frame: bytes, mtu: int) -> list[bytes]:
    """An Ethernet frame with an IPv4 packet, whose header was checked, cut up; nothing, if it cannot be."""

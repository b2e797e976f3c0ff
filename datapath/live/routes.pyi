from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

class RouteKind(IntEnum):
    ROUTE_VIA = 0
    ROUTE_LINK = 1
    ROUTE_OWN = 2
    ROUTE_GROUP = 3
    ROUTE_UNREACHABLE = 4
    ROUTE_PROHIBIT = 5
    ROUTE_BLACKHOLE = 6

@dataclass(frozen=True)
class RouteRow:
    """A route. kind: RouteKind; iface: ordinal of the interface that leads there; via: the gateway of ROUTE_VIA."""

    prefix: IPv4Network | IPv6Network
    kind: int
    iface: int = 0
    via: IPv4Address | IPv6Address | None = None

def text_of(hi: int, lo: int, six: bool) -> IPv4Address | IPv6Address:
    """An address of the two numbers that the tables have of it."""

class RouteTable:
    """Routes of both families."""

    n: int
    def __init__(self) -> None: ...
    def put(self, rows: Iterable[RouteRow]) -> None:
        """Have these routes from now on, and no others; of equal prefixes the first. Not while packets are routed. Raises ValueError for more than
        8,192 of a family; then nothing has changed."""
    def find(self, address: IPv4Address | IPv6Address) -> tuple[int, int, IPv4Address | IPv6Address] | None:
        """(kind, iface, gateway or first address of the prefix) of the route to an address; None without one."""

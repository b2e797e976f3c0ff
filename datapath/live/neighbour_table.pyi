from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

class NeighbourState(IntEnum):
    NEIGHBOUR_KNOWN = 0
    NEIGHBOUR_STALE = 1
    NEIGHBOUR_ASKED = 2
    NEIGHBOUR_FAILED = 3

class NeighbourTable:
    """Neighbours by ordinal of their interface and address; at most `capacity`. By one thread at a time, and not while packets are routed."""

    bell: int
    """An eventfd that rings when somebody is wanted who was not before."""
    def __init__(self, capacity: int = 16384) -> None: ...
    def __len__(self) -> int: ...
    def put(self, iface: int, address: Address, mac: bytes | None, *, stale: bool = False) -> bool:
        """What is known of a neighbour: its MAC address, None if it does not answer. stale: have it confirmed when it is used. False: no place."""
    def drop(self, iface: int, address: Address) -> bool:
        """Forget one; whether it was there."""
    def clear(self) -> None:
        """Forget all of them."""
    def find(self, iface: int, address: Address) -> tuple[NeighbourState, bytes] | None: ...
    def want(self, iface: int, address: Address) -> None:
        """Put one on the list of those to be asked for."""
    def take_wanted(self) -> list[tuple[int, Address]]:
        """The list, which is empty then."""
    def counters(self) -> dict[str, int]:
        """neighbours: there are now; asked: times that one was wanted; not_asked: the list was full; refused: there was no place."""
    def check(self) -> None:
        """Prove the invariants. For tests."""

"""What is expected on both sides, packet by packet: the kernel's expectations as ctnetlink lists them, and the engine's in the same words.

Theory of operation: where there are helpers, all expectations are asked for after each packet, and compared as a whole: which connection has
announced them, what fits them, their class, flags, time, and what becomes of their connections' addresses. Where the kernel announces another port
than it was asked for, it has drawn that at random: Watch.drawn() tells it, so that the engine can be given the same.
Invariant: seconds are compared as the kernel rounds them, down, with no more slack than its clock took.
Not here: how the kernel is asked (listen), what comes of expectations (compare, by the connections).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple

from ctcore.model.conn import Key
from ctcore.nat_rules import HELPERS
from ctcore.tracker import Tracker
from ctcore.types import Dir, Proto
from datapath.fields import address
from datapath.oracle.listen import ATTRIBUTE, NESTED, attribute

# Attributes by their numbers in linux/netfilter/nfnetlink_conntrack.h.
MASTER, TUPLE, MASK, TIMEOUT, HELP_NAME, FLAGS, CLASS, NAT, FUNCTION = 1, 2, 3, 4, 6, 8, 9, 10, 11
IP, PROTO = 1, 2  # of a tuple
SOURCES, DESTINATIONS = (1, 3), (2, 4)  # of IP: IPv4 and IPv6
NUMBER, SOURCE_PORT, DESTINATION_PORT = 1, 2, 3  # of PROTO
ICMP: dict[int, tuple[int, int, int]] = {Proto.PROTO_ICMP: (4, 5, 6), Proto.PROTO_ICMPV6: (7, 8, 9)}  # and of these: id, type, code
NAT_DIR, NAT_TUPLE = 1, 2
PERMANENT, INACTIVE = 1, 2
KIND_MASK = 0x3FFF  # without the bits that say nested and network order
# What the kernel calls the function that changes an expected connection's addresses. PPTP's has no name.
FUNCTIONS = {"": None, "master": "nat-follow-master", "pptp": None, "sip": "sip"}

Ends = tuple[str, str, int, int, int]  # source, destination, their ports or keys, protocol


class Expected(NamedTuple):
    """An expectation as both sides know it.

    master: the original tuple of who announced it; src, sport: None if open; helper: the master's; follow: the name of the function that changes its
    connection's addresses; nat: the master's direction in which its packets go, and their destination before translation.
    """

    master: Ends
    src: str | None
    dst: str
    proto: int
    sport: int | None
    dport: int
    kind: int
    helper: str | None
    permanent: bool
    inactive: bool
    follow: str | None
    nat: tuple[int, str, int] | None


# --- the kernel's ----------------------------------------------------------------------------------------------------------------------


def attributes(data: bytes) -> dict[int, bytes]:
    """Netlink attributes by number, one level deep."""
    found, at = {}, 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        found[kind & KIND_MASK] = data[at + ATTRIBUTE.size : at + length]
        at += max(ATTRIBUTE.size, (length + 3) & ~3)
    return found


def number(data: bytes) -> int:
    return int.from_bytes(data, "big")


@lru_cache(1 << 12)
def ends_of(data: bytes) -> Ends:
    """A tuple's attributes."""
    parts = attributes(data)
    ip, proto = attributes(parts.get(IP, b"")), attributes(parts.get(PROTO, b""))
    src, dst = (next((str(ip_address(ip[kind])) for kind in kinds if kind in ip), "") for kinds in (SOURCES, DESTINATIONS))
    return src, dst, number(proto.get(SOURCE_PORT, b"")), number(proto.get(DESTINATION_PORT, b"")), number(proto.get(NUMBER, b""))


def theirs_of(message: bytes) -> tuple[Expected, int]:
    """An expectation from its message, and the seconds it has left."""
    a = attributes(message)
    src, dst, sport, dport, proto = ends_of(a[TUPLE])
    mask = ends_of(a[MASK])
    flags, nat = number(a[FLAGS]), None
    if NAT in a:
        parts = attributes(a[NAT])
        saved = ends_of(parts[NAT_TUPLE])
        nat = number(parts[NAT_DIR]), saved[0], saved[2]
    any_src = ip_address(mask[0]).packed == bytes(len(ip_address(mask[0]).packed))
    one = Expected(
        ends_of(a[MASTER]), None if any_src else src, dst, proto, sport if mask[2] else None, dport, number(a[CLASS]), _text(a.get(HELP_NAME)),
        bool(flags & PERMANENT), bool(flags & INACTIVE), _text(a.get(FUNCTION)), nat,
    )  # fmt: skip
    return one, number(a[TIMEOUT])


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.rstrip(b"\0").decode(errors="replace")


# --- ours ------------------------------------------------------------------------------------------------------------------------------


def ours_of(tracker: Tracker) -> Iterator[tuple[Expected, float]]:
    """What the engine expects, and the seconds that are left of each."""
    for row in tracker.expectations():
        master = tracker.conn(row.master)[0]
        key = master["flow"][Dir.ORIG]["key"]
        family = int(key["family"])
        src, dst = (address(key[name].tobytes(), family) for name in ("src", "dst"))
        helper = int(master["helper"])
        saved = row.follow and (row.saved_port or any(ip_address(row.saved).packed))
        one = Expected(
            (src, dst, int(key["sport"]), int(key["dport"]), int(key["proto"])), None if row.src == "any" else row.src, row.dst, row.proto,
            row.sport or None, row.dport, row.kind, HELPERS[helper - 1] if helper else None, row.permanent, row.inactive, FUNCTIONS[row.follow],
            (row.dir, row.saved, row.saved_port) if saved else None,
        )  # fmt: skip
        yield one, row.timeout


def tuple_of(key: Key) -> bytes:
    """A tuple's attributes."""
    four = key.family == 4
    size = 4 if four else 16
    ip = attribute(SOURCES[not four], key.src[:size]) + attribute(DESTINATIONS[not four], key.dst[:size])
    proto = attribute(NUMBER, bytes([key.proto]))
    if key.proto in ICMP:
        numbers = key.sport.to_bytes(2, "big"), bytes([key.dport >> 8]), bytes([key.dport & 0xFF])
        proto += b"".join(map(attribute, ICMP[key.proto], numbers))
    else:
        proto += attribute(SOURCE_PORT, key.sport.to_bytes(2, "big")) + attribute(DESTINATION_PORT, key.dport.to_bytes(2, "big"))
    return attribute(IP | NESTED, ip) + attribute(PROTO | NESTED, proto)


# --- both ------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """What the kernel has expected so far. hz: ticks a second."""

    hz: int
    known: dict[Expected, int] = field(default_factory=dict)  # and the seconds left, in the kernel's order
    slack: int = 0  # most ticks that passed while the kernel judged a packet
    _said: Sequence[bytes] = ()
    _new: Sequence[Expected] = ()

    def hear(self, messages: Sequence[bytes], slack: int) -> None:
        """What the kernel lists after a packet."""
        self.slack = max(self.slack, slack)
        if messages == self._said:
            self._new = ()
            return
        before, self._said = self.known, messages
        self.known = dict(map(theirs_of, messages))
        self._new = [one for one in self.known if one not in before]

    def drawn(self) -> int | None:
        """The port of what the packet at hand has announced, of the class for which ports are drawn at random."""
        return next((one.dport for one in self._new if one.kind == 0), None)

    def unlike(self, ours: Mapping[Expected, float], passed: int) -> dict[str, tuple[Any, Any]]:
        """Where the sides differ. passed: ticks since the packet was judged."""
        found: dict[str, tuple[Any, Any]] = {}
        mine, other = [one for one in ours if one not in self.known], [one for one in self.known if one not in ours]
        if mine or other:
            found["expectations"] = [one._asdict() for one in mine], [one._asdict() for one in other]
        for one in ours.keys() & self.known.keys():
            ticks = round(ours[one] * self.hz)
            if not max(ticks - passed, 0) // self.hz <= self.known[one] <= (ticks + self.slack) // self.hz:
                found["expectation.timeout"] = ours[one], self.known[one]
        return found

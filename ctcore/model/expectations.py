"""Expectations in the model: connections that were announced, by helpers or by a caller, youngest first.

Invariants (tracker.check): none outlives its master or its deadline. Not here: what announces them (helpers), what becomes of their connections.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, auto
from typing import NamedTuple

from ctcore.model.conn import Key


class ExpectationRow(NamedTuple):
    """An expectation as callers see it (tracker.pyi)."""

    master: int
    src: str
    dst: str
    proto: int
    sport: int
    dport: int
    zone: int
    timeout: float
    permanent: bool
    kind: int
    inactive: bool
    follow: str
    dir: int
    saved: str
    saved_port: int


class Kind(IntEnum):
    """Classes, each with a limit of its own. All helpers but SIP have only the first."""

    DEFAULT = 0
    AUDIO = 1
    VIDEO = 2
    IMAGE = 3


SIGNALLING = Kind.DEFAULT


class Follow(Enum):
    """What its connection's addresses become."""

    NONE = auto()
    MASTER = auto()  # as the master is translated
    PPTP = auto()  # the same, and the other direction of the tunnel is expected no more
    SIP = auto()  # the destination as it was before, the source as the master's if it is the master's


FOLLOWS = {Follow.NONE: "", Follow.MASTER: "master", Follow.PPTP: "pptp", Follow.SIP: "sip"}


class Announced(Enum):
    """How an announcement ended: accepted, in the way of another one, there already as another kind or another connection's, or not to be had."""

    YES = auto()
    BUSY = auto()
    ALREADY = auto()
    REFUSED = auto()


@dataclass(frozen=True)
class Expectation:
    """A connection to come. Destination, protocol and zone are exact; source address and port may be open, and are then 0 in the key."""

    key: Key
    any_src: bool = False
    any_sport: bool = True
    kind: Kind = Kind.DEFAULT
    master: int = -1
    deadline: int = 0  # tick
    permanent: bool = False
    inactive: bool = False  # fits nothing yet
    owned: bool = False  # announced by a helper
    shared: bool = False  # whoever announces it first
    helper: str | None = None  # that its connection gets
    follow: Follow = Follow.NONE
    dir: int = 0  # of the master, in which its packets go
    saved: tuple[bytes, int] = (bytes(16), 0)  # destination before translation

    def fits(self, key: Key) -> bool:
        """Whether a packet fits, be it active or not."""
        return self._masked(self.key) == self._masked(key)

    def overlaps(self, other: Expectation) -> bool:
        """Could a packet fit both?"""
        return other._masked(self._masked(self.key)) == self._masked(other._masked(other.key))

    def alike(self, other: Expectation) -> bool:
        return (self.any_src, self.any_sport) == (other.any_src, other.any_sport) and self.overlaps(other)

    def same(self, other: Expectation) -> bool:
        return self.master == other.master and self.alike(other)

    def _masked(self, key: Key) -> Key:
        return key._replace(src=bytes(16) if self.any_src else key.src, sport=0 if self.any_sport else key.sport)


# By helper: most expectations of a connection by kind, and seconds they live.
LIMITS: dict[str, tuple[dict[int, int], int]] = {
    "ftp": ({Kind.DEFAULT: 1}, 300),
    "tftp": ({Kind.DEFAULT: 1}, 300),
    "sip": ({SIGNALLING: 1, Kind.AUDIO: 4, Kind.VIDEO: 4, Kind.IMAGE: 2}, 180),
    "irc": ({Kind.DEFAULT: 8}, 300),
    "pptp": ({Kind.DEFAULT: 2}, 300),
}


class Expectations:
    """All of a tracker's. most: expect_max."""

    def __init__(self, most: int):
        self.most = most
        self.all: list[Expectation] = []
        self.created = self.deleted = 0

    def __iter__(self) -> Iterator[Expectation]:
        return iter(self.all)

    def find(self, key: Key) -> Expectation | None:
        return next((e for e in self.all if e.fits(key) and not e.inactive), None)

    def forget(self, key: Key) -> None:
        """The youngest one that a packet would fit, active or not, goes."""
        found = next((e for e in self.all if e.fits(key)), None)
        self.drop(lambda e: e is found)

    def add(self, new: Expectation) -> bool:
        """In place of an identical one. False if there are too many."""
        self.drop(lambda e: e.same(new))
        if len(self.all) >= self.most:
            return False
        self.all.insert(0, new)
        self.created += 1
        return True

    def announce(self, new: Expectation, helper: str) -> Announced:
        """Add what a helper announces, unless a packet could fit another one, too. With as many of a kind there as may be, the oldest goes."""
        for e in self.all:
            if e.same(new) or (new.shared and e.alike(new)):
                if (e.kind, e.master) != (new.kind, new.master):
                    return Announced.ALREADY
                break
            if e.overlaps(new):
                return Announced.BUSY
        self.drop(lambda e: e.same(new))
        siblings = [e for e in self.all if e.owned and (e.master, e.kind) == (new.master, new.kind)]
        if len(siblings) >= LIMITS[helper][0][new.kind]:
            self.drop(lambda e: e is siblings[-1])
        return Announced.YES if self.add(new) else Announced.REFUSED

    def change(self, old: Expectation, **fields: object) -> None:
        """Put another one in the place of one that is there."""
        self.all = [replace(e, **fields) if e is old else e for e in self.all]  # type: ignore[arg-type]

    def drop(self, which: Callable[[Expectation], bool]) -> None:
        left = [e for e in self.all if not which(e)]
        self.deleted += len(self.all) - len(left)
        self.all = left

    def rows(self, tick: int, hz: int) -> list[ExpectationRow]:
        return sorted(_row_of(e, (e.deadline - tick) / hz) for e in self.all)


def _row_of(e: Expectation, left: float) -> ExpectationRow:
    src, dst, saved = (str(ipaddress.ip_address(address[: 4 if e.key.family == 4 else 16])) for address in (*e.key[:2], e.saved[0]))
    own = e.master, "any" if e.any_src else src, dst, e.key.proto, e.key.sport, e.key.dport, e.key.zone, left, e.permanent
    return ExpectationRow(*own, int(e.kind), e.inactive, FOLLOWS[e.follow], e.dir, saved, e.saved[1])

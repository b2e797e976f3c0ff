"""As much of the kernel's TC as makes, tells, lists and deletes filters at interfaces' ingress: for what a backend asks, and in which order.

What it tells of a filter is its cookie and its counters, which is all that backends read of their own. Not here: expectations; a real TC (vm).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from struct import pack
from types import SimpleNamespace

import pytest

from offload import exact_rules
from offload.exact_rules import ExactRules
from offload.netlink.attributes import ACTION, FLOWER, STATS, TC
from offload.netlink.channel import NetlinkError
from offload.netlink.exact import COOKIE, MARK, cookie_in
from offload.netlink.extack import Answer
from offload.netlink.filters import (
    CHAIN,
    DELETE_FILTER,
    DELETE_QDISC,
    DUMP,
    GET_FILTER,
    INGRESS_PARENT,
    MESSAGE,
    NEW_FILTER,
    OPTIONS,
    TCMSG,
)
from offload.netlink.monitor import Change
from offload.netlink.pack import attribute, u32
from offload.sides import Sides, side

LEFT, RIGHT = 3, 4
SIDES = Sides([side("left", ["10.1.0.0/16"]), side("right")])
NAMES = {NEW_FILTER: "made", DELETE_FILTER: "deleted", DELETE_QDISC: "qdisc deleted"}
Place = tuple[int, int, int]  # interface, priority, handle


@dataclass
class Filter:
    """cookie: as it is on its action; None: somebody else's."""

    cookie: int | None
    packets: int = 0
    octets: int = 0


class FeignedTc:
    """A Channel (offload.netlink.channel), and what the kernel has. order: what was done; refuses: errno by kind of request; heard: of others."""

    def __init__(self, order: list[str]) -> None:
        self.order = order
        self.socket = None
        self.echoed: list[bytes] = []
        self.filters: dict[Place, Filter] = {}
        self.refuses: dict[int, int] = {}
        self.heard: list[Change] = []
        self.closed = False

    def ask(self, requests, sparing: bool = False) -> list[Answer]:
        self.echoed = []
        return [self.answer(MESSAGE.unpack_from(request)[1], request[MESSAGE.size :]) for request in requests]

    def answer(self, kind: int, body: bytes) -> Answer:
        _, ifindex, handle, _, info = TCMSG.unpack_from(body)
        place = ifindex, info >> 16, handle
        if kind in NAMES:
            self.order.append(NAMES[kind])
        if error := self.refuses.get(kind, 0):
            return Answer(error)
        if kind == NEW_FILTER:
            if place in self.filters:
                return Answer(errno.EEXIST)
            self.filters[place] = Filter(cookie_in(body))
        elif kind in (GET_FILTER, DELETE_FILTER):
            assert handle, "whole priorities may hold filters of others"
            if place not in self.filters:
                return Answer(errno.ENOENT)
            if kind == GET_FILTER:
                self.echoed.append(self.told(place))
            else:
                del self.filters[place]
        return Answer(0)

    def whole(self, request: bytes) -> list[bytes]:
        """Sorted as the kernel has them."""
        _, kind, flags, _, _ = MESSAGE.unpack_from(request)
        _, wanted, _, parent, info = TCMSG.unpack_from(request, MESSAGE.size)
        assert kind == GET_FILTER and flags & DUMP
        if error := self.refuses.get(DUMP, 0):
            raise NetlinkError("netlink: no list", error)
        places = sorted(place for place in self.filters if place[0] == wanted and parent == INGRESS_PARENT)
        return [self.told(place) for place in places if info >> 16 in (0, place[1])]

    def told(self, place: Place) -> bytes:
        ifindex, prio, handle = place
        one = self.filters[place]
        cookie = b"" if one.cookie is None else attribute(ACTION.numbers["COOKIE"], COOKIE.pack(MARK, one.cookie))
        basic = attribute(STATS.numbers["BASIC"], pack("=QIxxxx", one.octets, one.packets))
        action = attribute(1, attribute(1, b"mirred\0") + cookie + attribute(ACTION.numbers["STATS"], basic))
        options = attribute(OPTIONS, attribute(FLOWER.numbers["ACT"], action))
        return TCMSG.pack(0, ifindex, handle, INGRESS_PARENT, prio << 16) + attribute(TC.numbers["KIND"], b"flower\0") + u32(CHAIN, 0) + options

    def hit(self, cookie: int, packets: int, octets: int) -> None:
        """Packets come by the filter of a command's cookie."""
        (one,) = (each for each in self.filters.values() if each.cookie == cookie)
        one.packets, one.octets = one.packets + packets, one.octets + octets

    def changes(self) -> list[Change]:
        found, self.heard = self.heard, []
        return found

    def close(self) -> None:
        self.closed = True


def feigned(monkeypatch: pytest.MonkeyPatch, tc: FeignedTc) -> None:
    """Whoever makes an ExactRules (offload.exact_rules) asks this kernel, which has two interfaces, `left` and `right`."""
    monkeypatch.setattr(exact_rules, "Channel", lambda: tc)
    monkeypatch.setattr(exact_rules, "Monitor", lambda *_: SimpleNamespace(changes=tc.changes, overrun=False, close=lambda: None))
    monkeypatch.setattr(exact_rules, "running", lambda channel: {"left": True, "right": True})
    monkeypatch.setattr(exact_rules, "links", lambda channel: {"left": LEFT, "right": RIGHT})


def exact_in(monkeypatch: pytest.MonkeyPatch, tc: FeignedTc) -> ExactRules:
    feigned(monkeypatch, tc)
    return ExactRules(SIDES)

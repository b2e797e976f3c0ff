"""What others do to TC and to interfaces, as the kernel tells it: filters and qdiscs made and deleted, chains deleted, interfaces that come and go.

Theory of operation: a socket in the kernel's two groups, with a filter of a few instructions that lets through what is watched, and of that nothing
that our own socket has asked for; and, where only some priorities are anybody's business, no filter of another one. So what a mirror does itself
costs the listener nothing, nor what the mirrors of other workers do.
A filter that is made may be one that replaces ours in place. A chain that is made is none of ours: the kernel makes none where filters are, and tells
of the chains that our own filters need as if nobody had asked for them.
Source: linux/rtnetlink.h. Not here: the socket (listener), what is to be done about it (offload.exact_rules).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from sys import byteorder
from typing import NamedTuple

from offload.netlink.attributes import TC
from offload.netlink.channel import ROUTE
from offload.netlink.filters import DELETE_CHAIN, DELETE_FILTER, DELETE_QDISC, NEW_FILTER, NEW_QDISC, TCMSG
from offload.netlink.links import IFINFO, NEW_LINK
from offload.netlink.listener import INSTRUCTION, Listener
from offload.netlink.read import Malformed, read

DELETE_LINK = 17  # RTM_DELLINK
LINKS, FILTERS = 1 << 0, 1 << 3  # RTMGRP_LINK, RTMGRP_TC
WATCHED = (NEW_FILTER, DELETE_FILTER, DELETE_CHAIN, NEW_QDISC, DELETE_QDISC, NEW_LINK, DELETE_LINK)
OF_FILTERS = (NEW_FILTER, DELETE_FILTER)
LOAD_HALF, LOAD_WORD, EQUAL, RETURN = 0x28, 0x20, 0x15, 0x06  # BPF_LD|BPF_H|BPF_ABS, ...|BPF_W|..., BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
TYPE_AT, PORT_AT = 4, 12  # in struct nlmsghdr
PRIO_AT = 34 if byteorder == "little" else 32  # in the struct tcmsg behind it: the upper half of its last word
ALL = 0xFFFFFFFF


class Change(NamedTuple):
    """kind: DELETE_FILTER, ...; parent: of a filter or chain; prio, handle: 0: all of a chain, of a priority."""

    kind: int
    ifindex: int
    parent: int = 0
    chain: int = 0
    prio: int = 0
    handle: int = 0


def program(ours: int, watched: Sequence[int] = WATCHED, prios: Sequence[int] = ()) -> bytes:
    """The socket's filter. ours: the port of the socket whose doings are left out; prios: of filters, those of these priorities alone, and what is
    said of a whole chain; empty: all. Words are loaded as the network has them."""
    lines = [*_one_of(TYPE_AT, watched), (LOAD_WORD, 0, 0, PORT_AT), (EQUAL, 0, 1, _swapped(ours, 4)), (RETURN, 0, 0, 0)]
    if prios:
        last = _one_of(PRIO_AT, (0, *prios))
        kinds = [_swapped(kind, 2) for kind in OF_FILTERS]
        lines += [(LOAD_HALF, 0, 0, TYPE_AT), *((EQUAL, len(kinds) - at, 0, kind) for at, kind in enumerate(kinds)), (RETURN, 0, 0, ALL), *last]
    return b"".join(INSTRUCTION.pack(*line) for line in [*lines, (RETURN, 0, 0, ALL)])


def _one_of(at: int, values: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Go on if a half word is one of these; else nothing is let through."""
    tests = [(EQUAL, len(values) - number, 0, _swapped(value, 2)) for number, value in enumerate(values)]
    return [(LOAD_HALF, 0, 0, at), *tests, (RETURN, 0, 0, 0)]


def _swapped(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "big"), byteorder)


class Monitor(Listener):
    """Of the network namespace that this thread is in. ours: the socket that asks for our own changes; prios: see program(). A context manager."""

    def __init__(self, ours: socket.socket, prios: Sequence[int] = ()) -> None:
        super().__init__(ROUTE, program(ours.getsockname()[0], prios=prios), LINKS | FILTERS)

    def changes(self) -> Iterator[Change]:
        """What has come since the last time. Raises Malformed."""
        yield from (change for kind, body in self.heard() if (change := change_of(kind, body)) is not None)


def change_of(kind: int, body: bytes) -> Change | None:
    """None: of no interest. Raises Malformed."""
    if kind in (NEW_LINK, DELETE_LINK):
        if len(body) < IFINFO.size:
            raise Malformed(f"link: {len(body)} bytes: expected {IFINFO.size} or more")
        return Change(kind, IFINFO.unpack_from(body)[2])
    if kind not in WATCHED:
        return None
    if len(body) < TCMSG.size:
        raise Malformed(f"tcmsg: {len(body)} bytes: expected {TCMSG.size} or more")
    _, ifindex, handle, parent, info = TCMSG.unpack_from(body)
    if kind in (NEW_QDISC, DELETE_QDISC):
        return Change(kind, ifindex, parent)
    chain = read(TC, body[TCMSG.size :]).get("CHAIN", 0)
    return Change(kind, ifindex, parent, chain, info >> 16, handle)

"""A fragment, and what reassembly makes of it, as plain values: what the engine (fragments) and the model (model.fragments) take and give.

Not here: reading packets (model.fragments.read for people and tests, datapath.defragment for the datapath).
"""

from __future__ import annotations

from typing import NamedTuple


class Fragment(NamedTuple):
    """A fragment as it came.

    src, dst: 4 or 16 bytes; proto: IPv4's protocol, 0 for IPv6, whose fragments are told apart without it. head: the headers that the datagram will
    begin with if this is its first part (IPv6: up to the fragment header). payload: the captured bytes of `length`. size: bytes from the IP header
    on. dont: IPv4's DF bit. ecn: two bits. next_at, next: IPv6: where in head the type of the following header stands, and what it becomes.
    """

    src: bytes
    dst: bytes
    proto: int
    ident: int
    zone: int
    offset: int
    more: bool
    head: bytes
    payload: bytes
    length: int
    size: int
    dont: bool = False
    ecn: int = 0
    next_at: int = 0
    next: int = 0
    number: int = 0

    @property
    def family(self) -> int:
        return 4 if len(self.src) == 4 else 6


class Answer(NamedTuple):
    """What becomes of a fragment: "held", "dropped" (for a Reason), "passed" (to be tracked as it is) or "whole": it completed its datagram.

    data: the datagram from its IP header on, as far as its beginning was captured; length: all of its bytes. largest: bytes of the largest fragment
    from its IP header on; dont: that one had DF. parts: (packet number, offset, length) of each fragment, by offset.
    """

    outcome: str
    reason: int = 0
    data: bytes = b""
    length: int = 0
    largest: int = 0
    dont: bool = False
    parts: tuple[tuple[int, int, int], ...] = ()


COUNTERS = (
    "datagrams", "duplicate", "malformed", "overlap", "memory", "died_timeout", "died_overlap", "died_malformed", "died_too_far", "lost",
)  # fmt: skip

"""Carries the arrays between a flow table, its mirror and a backend, between batches of packets.

Invariant: what a backend answers at once is known to the flow table when pump() returns, so that a NIC without latency is never behind.
Not here: deciding anything (mirror), packets.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from offload.backend import Backend
from offload.mirror import Mirror

ROUNDS = 4  # a removal that makes room for an install, and counters of one direction after the other, take two


class MirroredFlows(Protocol):
    """A flow table that is mirrored."""

    def advance(self, now: int) -> None:
        """Time goes on."""

    def asks(self, most: int = ...) -> NDArray[Any]:
        """ASK_DTYPE[n]."""

    def answer(self, answers: NDArray[Any]) -> None:
        """ANSWER_DTYPE[n]."""


def pump(flows: MirroredFlows, mirror: Mirror, backend: Backend, now: int, most: int = 65_536) -> None:
    """To be called between batches, at least once a second of the frames' time. now: ns; most: asks, and commands, that are carried in one call."""
    flows.advance(now)
    listen(mirror, backend, now)
    mirror.feed(flows.asks(most), now)
    mirror.advance(now)
    for _ in range(ROUNDS):
        commands = mirror.commands(most)
        taken = backend.submit(commands, now) if len(commands) else 0
        mirror.sent(taken, now)
        if not listen(mirror, backend, now) and not taken:
            break
    flows.answer(mirror.answers())


def listen(mirror: Mirror, backend: Backend, now: int) -> int:
    """Replies, and whether hardware has begun anew by then: before anything else is asked of what it may no longer have. How many there were."""
    replies = backend.replies(now)
    if mirror.resets not in (-1, backend.resets):
        mirror.reset(now)
    mirror.resets = backend.resets
    mirror.replies(replies, now)
    return len(replies)

"""What somebody who looks on is told while frames go through an Offloaded: what NIC and software made of them, what flow table and mirror say.

Invariant: who looks on changes nothing: with and without a watch the same packets leave. Not here: what is made of it (offload_series, offload_why).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from offload.pump import MirroredFlows
from offload.simnic.kept import Kept


class Seen(NamedTuple):
    """Frames of a slice, before the mirror has its turn. into: rows of those that met the NIC; found: what it says of each of these (the NIC's
    RESULT_DTYPE); soft: rows of those that software had; decisions: DECISION_DTYPE of these, None if there are none."""

    memory: NDArray[np.uint8]
    frames: NDArray[Any]
    into: NDArray[Any]
    found: NDArray[Any]
    soft: NDArray[Any]
    decisions: NDArray[Any] | None


def misses(seen: Seen, kept: Mapping[int, Kept]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each row that software had: the NIC's Why, -1 of one that has met none, and why the rule is in software only that it has met (Kept).

    kept: of rules in software only, by number (Nic.kept)."""
    found = np.full((len(seen.frames), 2), -1, dtype=np.int64)
    found[seen.into, 0], found[seen.into, 1] = seen.found["why"], seen.found["rule"]
    whys, rules = found[seen.soft].T
    return whys, np.array([kept.get(rule, Kept.NO) for rule in rules.tolist()], dtype=np.int64)


class Watch(Protocol):
    """Somebody who looks on. Times are ns."""

    def slice(self, seen: Seen) -> None:
        """Frames are through."""

    def asked(self, asks: NDArray[Any], now: int) -> None:
        """ASK_DTYPE[n] of the flow table."""

    def answered(self, answers: NDArray[Any], now: int) -> None:
        """ANSWER_DTYPE[n] of the mirror, which the flow table does not know yet."""

    def turned(self, now: int) -> None:
        """The mirror has had its turn."""


class Watched:
    """A flow table whose mirror somebody looks at."""

    def __init__(self, flows: MirroredFlows, watch: Watch, now: int) -> None:
        self.flows, self.watch, self.now = flows, watch, now

    def advance(self, now: int) -> None:
        self.flows.advance(now)

    def asks(self, most: int = 65_536) -> NDArray[Any]:
        asks = self.flows.asks(most)
        if len(asks):
            self.watch.asked(asks, self.now)
        return asks

    def answer(self, answers: NDArray[Any]) -> None:
        if len(answers):
            self.watch.answered(answers, self.now)
        self.flows.answer(answers)

"""Commands on their way into hardware: how many a second, how long each takes, in which order.

Theory of operation: rules are inserted and deleted at a rate, with a burst (a token bucket, as the time at which the next one is due); each is there,
and answered, a latency later. Statistics come from the driver's cache, and cost nothing but the latency. Commands that came together wait together;
only delays make one overtake another.
Invariant: a command that was taken is given back once, or lost with a reset.
Not here: what commands do (commands).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.records import COMMAND_DTYPE, Op
from offload.simnic.faults import FOREVER, Faults
from offload.simnic.profile import Profile

# ready: ns; order: in which they came; refused: an errno; lost: before it is carried out; silent: it is, but nobody hears of it.
WAITING_DTYPE = np.dtype(
    [("command", COMMAND_DTYPE), ("ready", "i8"), ("order", "i8"), ("refused", "i4"), ("lost", "?"), ("silent", "?"), ("pad", "u1", 2)]
)
SECOND = 1_000_000_000


class Line:
    """waiting: how many commands are on their way; earliest: ns, when the first of them is due."""

    def __init__(self, profile: Profile, faults: Faults) -> None:
        self.profile, self.faults = profile, faults
        self.waiting, self.earliest = 0, FOREVER
        self._parts: deque[NDArray[Any]] = deque()
        self._next = 0  # when the bucket would be full again
        self._order = 0

    def take(self, commands: NDArray[Any], now: int) -> int:
        """The first commands for which there is room; how many."""
        n = min(len(commands), self.profile.rates.queue - self.waiting)
        if n <= 0:
            return 0
        part = np.zeros(n, dtype=WAITING_DTYPE)
        part["command"] = commands[:n]
        part["ready"] = self._paced(part["command"]["op"] != Op.STATS, now) + self.profile.latency_ns
        part["order"] = np.arange(self._order, self._order + n)
        self._order += n
        self.faults.befall(part, now)
        part = part[np.argsort(part["ready"], kind="stable")]
        self._parts.append(part)
        self.waiting += n
        self.earliest = min(self.earliest, int(part["ready"][0]))
        return n

    def _paced(self, cost: NDArray[Any], now: int) -> NDArray[Any]:
        """When each may begin. cost: which of them spend a token."""
        rates = self.profile.rates
        if not rates.inserts:
            return np.full(len(cost), now, dtype=np.int64)
        step = SECOND / rates.inserts
        before = np.cumsum(cost) - cost
        start = max(self._next, now)
        began = np.maximum(now, start + (before * step).astype(np.int64) - int((rates.burst - 1) * step))
        self._next = start + int(np.count_nonzero(cost) * step)
        return np.where(cost, began, now)

    def due(self, now: int) -> NDArray[Any]:
        """WAITING_DTYPE[n]: what is ready at `now`, in order; it waits no more."""
        if now < self.earliest or not self._parts:  # captures may be of any time
            return np.zeros(0, dtype=WAITING_DTYPE)
        found = []
        left: deque[NDArray[Any]] = deque()
        self.earliest = FOREVER
        for part in self._parts:
            n = int(np.searchsorted(part["ready"], now, side="right"))
            if n:
                found.append(part[:n])
            if n < len(part):
                left.append(part[n:])
                self.earliest = min(self.earliest, int(part["ready"][n]))
        self._parts = left
        whole = np.concatenate(found)
        self.waiting -= len(whole)
        return whole[np.lexsort((whole["order"], whole["ready"]))] if len(found) > 1 else whole

    def forget(self) -> None:
        """A reset: nobody will answer."""
        self._parts.clear()
        self.waiting, self.earliest, self._next = 0, FOREVER, 0

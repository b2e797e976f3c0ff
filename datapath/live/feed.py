"""Events of connections, numbered, to whoever listens; and what becomes of those for whom that is too fast.

Theory of operation: the trackers' buffers are emptied by a short job every PERIOD, as long as somebody listens. Every event has a number, counted
from the node's start, lost ones included: those that found the buffer full come behind those that are in it, since it keeps the oldest. A listener
has a queue of batches; one that is full takes no more until there is room again, and its reader is told how many are missing.
While nobody listens, the buffer stays full, and an event costs the datapath no more than a number that is added; these are `unheard`.
Invariants: numbers go up; each event up to the last number was in a batch, or is told of as lost, or nobody listened. A listener that does not read
costs QUEUE events of memory, and nobody's time.
Not here: messages and connections of clients (control), events being made (ctcore.events).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.tracker import Tracker
from ctcore.types import EventKind
from datapath import fields
from datapath.fields import Record
from datapath.live.wanted import EVERYTHING, Wanted

PERIOD = 0.05  # seconds
QUEUE = 16384  # events that wait for one listener
PART = 256  # events turned into records at a time: what does so holds the interpreter's lock, for which the datapath may wait
KINDS = {name: int(kind) for kind, name in fields.EVENT_NAMES.items()}


@dataclass(frozen=True)
class Taken:
    """What a job found. seq: the number of the first event; lost: events that were lost behind these."""

    seq: int
    events: NDArray[Any]
    evictions: NDArray[Any]
    lost: int


class Tap:
    """Counts and takes events, of all workers' trackers together. Its methods are done in jobs of the node, so that no tracker goes on meanwhile."""

    def __init__(self) -> None:
        self.taken = 0  # in batches, or forgotten
        self.unheard = 0
        self.lost = 0  # while somebody listened
        self._lost_before = 0

    @property
    def next(self) -> int:
        """The number of the first event that has not been taken."""
        return self.taken + self._lost_before

    def seq(self, trackers: Sequence[Tracker]) -> int:
        """The number that the next event gets."""
        return self.taken + sum(tracker.events_waiting + tracker.events_lost for tracker in trackers)

    def open(self, trackers: Sequence[Tracker]) -> int:
        """Somebody listens from now on: the number of the first event to be heard."""
        waiting = sum(tracker.forget_events() for tracker in trackers)
        self.taken += waiting
        self.unheard += waiting + self._lost_since(trackers)
        for tracker in trackers:
            tracker.evictions()
        return self.seq(trackers)

    def take(self, trackers: Sequence[Tracker]) -> Taken:
        """All there is, by time."""
        seq, lost = self.next, self._lost_since(trackers)
        events = np.concatenate([tracker.events() for tracker in trackers])
        if len(trackers) > 1:
            events = events[np.argsort(events["time"], kind="stable")]
        self.taken += len(events)
        self.lost += lost
        return Taken(seq, events, np.concatenate([tracker.evictions() for tracker in trackers]), lost)

    def _lost_since(self, trackers: Sequence[Tracker]) -> int:
        before, self._lost_before = self._lost_before, sum(tracker.events_lost for tracker in trackers)
        return self._lost_before - before

    def counters(self, trackers: Sequence[Tracker], listening: bool) -> dict[str, int]:
        """Numbers of events: made in all, lost (that listeners could not have), unheard (that nobody listened for)."""
        since = 0 if listening else self.seq(trackers) - self.taken - self._lost_before
        return {"events": self.seq(trackers), "lost": self.lost, "unheard": self.unheard + since}


@dataclass
class _Gap:
    """Events that a listener does not get. seq: the first number; past: behind the last; n: how many it would have got, as far as that is known."""

    seq: int
    past: int
    n: int


@dataclass
class _Batch:
    numbers: NDArray[Any]
    events: NDArray[Any]
    evictions: NDArray[Any]


@dataclass
class Listener:
    """What one client wants to hear, and what waits for it."""

    wanted: Wanted = EVERYTHING
    kinds: int = sum(KINDS.values())
    waiting: int = 0
    lost: int = 0
    queue: deque[_Batch | _Gap] = field(default_factory=deque)

    def put(self, taken: Taken) -> None:
        """Take in what it wants of a batch, if there is room for it."""
        events = taken.events
        chosen = np.flatnonzero((events["kind"] & self.kinds) != 0)
        chosen = chosen[self.wanted.fits(np.ascontiguousarray(events["conn"][chosen]))] if len(chosen) else chosen
        if len(chosen) and self.waiting + len(chosen) > QUEUE and self.waiting:
            self._miss(taken.seq, taken.seq + len(events), len(chosen))
        elif len(chosen):
            self.queue.append(_Batch(taken.seq + chosen, events[chosen], taken.evictions))
            self.waiting += len(chosen)
        if taken.lost:
            self._miss(taken.seq + len(events), taken.seq + len(events) + taken.lost, taken.lost)

    def _miss(self, seq: int, past: int, n: int) -> None:
        self.lost += n
        last = self.queue[-1] if self.queue else None
        if isinstance(last, _Gap):
            last.past, last.n = past, last.n + n
        else:
            self.queue.append(_Gap(seq, past, n))

    def messages(self, hz: int, acct: bool) -> Iterator[dict[str, Any]]:
        """All that waits, as parts of an answer: {"events": [...]} with a number in each record, or {"lost": n, "seq": first, "past": behind}."""
        while self.queue:
            item = self.queue.popleft()
            if isinstance(item, _Gap):
                yield {"lost": item.n, "seq": item.seq, "past": item.past}
                continue
            for start in range(0, len(item.events), PART):
                part = slice(start, start + PART)
                yield {"events": list(_numbered(item, part, hz, acct))}
                self.waiting -= len(item.events[part])


def _numbered(batch: _Batch, part: slice, hz: int, acct: bool) -> Iterator[Record]:
    records = fields.event_records(batch.events[part], hz, acct, batch.evictions)
    return ({"seq": seq, **record} for seq, record in zip(batch.numbers[part].tolist(), records, strict=True))


assert set(KINDS.values()) == {int(kind) for kind in EventKind}

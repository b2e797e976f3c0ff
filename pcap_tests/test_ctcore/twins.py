"""Engine and model side by side: given the same, compared in everything that can be seen of them.

Not here: what they are given (test_equality, test_collisions).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.filter import Filter
from ctcore.model import ModelTracker
from ctcore.tracker import Tracker
from ctcore.types import REWRITE_DTYPE, End
from datapath.frame import frames_of
from datapath.leave import CHANGES
from datapath.wire import parse_batch
from pcap_tests.scene import SECOND, START

SWEEPS = (End.END_TIMEOUT, End.END_FLUSHED, End.END_EVICTED)


class Twins:
    """zone: of the packets to come. Packets wait until flush_batch() or call(); events wait in the trackers' rings until take_events()."""

    def __init__(self, config: Config):
        self.engine, self.model = Tracker(config), ModelTracker(config)
        self.now = START
        self.zone = 0
        self.lost = self.audit_lost = 0
        self.waiting: list[tuple[bytes, int]] = []
        self.helped = bool(config.helpers or config.helper_actions)

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def packet(self, frame: bytes) -> None:
        self.waiting.append((frame, self.now))

    def flush_batch(self, piece: int = 1 << 20) -> np.ndarray:
        """Everything that waits goes into the model as one batch, into the engine in batches of `piece`. Returns the decisions."""
        frames, times = [frame for frame, _ in self.waiting], np.array([ts for _, ts in self.waiting], dtype=np.int64)
        self.waiting = []
        ours = [self.advance(self.engine, frames[i : i + piece], times[i : i + piece]) for i in range(0, max(1, len(frames)), piece)]
        decisions, rewrites = (np.concatenate([part[i] for part in ours]) for i in (0, 1))
        theirs = self.advance(self.model, frames, times)
        same(decisions, theirs[0], "decisions")
        same_rewrites(rewrites, theirs[1])
        self.compare()
        self.watch(decisions, rewrites, frames, times)
        return decisions

    def advance(self, tracker: Tracker | ModelTracker, frames: Sequence[bytes], times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decisions, and what is to be changed in the packets."""
        rewrites = np.zeros(len(frames), dtype=REWRITE_DTYPE)
        return tracker.advance(self.batch(frames, times), rewrites), rewrites

    def watch(self, decisions: np.ndarray, rewrites: np.ndarray, frames: Sequence[bytes], times: np.ndarray) -> None:
        """For those who want to prove more of what both have said."""

    def batch(self, frames: Sequence[bytes], times: np.ndarray):
        return parse_batch(*frames_of(frames, ts=times), zone=self.zone)

    def call(self, method: str, *arguments, **named) -> None:
        """The same call to both; ConfigError from both or from neither."""
        self.flush_batch()
        outcomes = []
        for tracker in (self.engine, self.model):
            try:
                outcomes.append(getattr(tracker, method)(*arguments, **named))
            except ConfigError:
                outcomes.append(ConfigError)
        assert outcomes[0] == outcomes[1], (method, arguments)
        self.compare()

    def compare(self) -> None:
        """All but the events, which would be gone."""
        same(self.engine.conns(), self.model.conns(), "conns")
        for ordinal in self.engine.conns()["flow"]["id"][:, 0].tolist() if self.helped else ():
            assert self.engine.offsets(ordinal) == self.model.offsets(ordinal)
        ours, theirs = self.engine.counters(), self.model.counters()
        assert {name: ours[name] for name in theirs} == theirs
        assert self.engine.expectations() == self.model.expectations()
        assert self.engine.zone_counts() == self.model.zone_counts()
        assert self.engine.nat_pools() == self.model.nat_pools()
        assert (self.engine.now, self.engine.count, self.engine.events_lost) == (self.model.now, self.model.count, self.model.events_lost)
        self.engine.check()
        self.model.check()

    def select(self, filter: Filter) -> None:
        self.flush_batch()
        same(self.engine.select(filter), self.model.select(filter), f"select {filter}")

    def take_evictions(self) -> None:
        """The same audit. If it ran over, which ones of a bucket's worth are still in it may differ."""
        self.flush_batch()
        ours, theirs = (np.sort(tracker.evictions(), order=("time", "conn")) for tracker in (self.engine, self.model))
        assert (len(ours), self.engine.evictions_lost) == (len(theirs), self.model.evictions_lost), "evictions"
        if self.engine.evictions_lost == self.audit_lost:
            same(ours, theirs, "evictions")
        self.audit_lost = self.engine.evictions_lost

    def take_events(self) -> None:
        """The same events. If the buffer ran over while many connections ended at once, which of these were still told of may differ."""
        self.flush_batch()
        ours, theirs = self.engine.events(), self.model.events()
        assert len(ours) == len(theirs), "events"
        if self.engine.events_lost > self.lost:
            ours, theirs = without_last_sweep(ours), without_last_sweep(theirs)
        self.lost = self.engine.events_lost
        same(in_order(ours), in_order(theirs), "events")


def without_last_sweep(events: np.ndarray) -> np.ndarray:
    """The events but for those at the end that one call or one instant can have brought about in any order."""
    others = np.flatnonzero(~np.isin(events["end"], SWEEPS))
    return events[: others[-1] + 1 if len(others) else 0]


def in_order(events: np.ndarray) -> np.ndarray:
    """By time; the order within one sweep of expiry is nobody's business."""
    return events[np.lexsort((events["conn"]["flow"]["id"][:, 0], events["time"]))]


def same(engine: np.ndarray, model: np.ndarray, what: str) -> None:
    assert len(engine) == len(model), what
    for (field, ours), (_, theirs) in zip(leaves(engine, what), leaves(model, what), strict=True):
        assert ours.tolist() == theirs.tolist(), field


def same_rewrites(engine: np.ndarray, model: np.ndarray) -> None:
    """What is to be changed; the rest of a row means nothing where its flag is not set."""
    assert engine["flags"].tolist() == model["flags"].tolist(), "rewrites.flags"
    asked = (engine["flags"] & CHANGES) != 0
    same(engine["to"][asked], model["to"][asked], "rewrites.to")


def leaves(array: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The plain arrays that a structured one consists of, with their names."""
    if not array.dtype.names:
        yield name, array
    for part in array.dtype.names or ():
        yield from leaves(array[part], f"{name}.{part}")

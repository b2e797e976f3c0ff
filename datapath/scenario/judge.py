"""Who judges frames: one small interface for the engine, the model, and whoever else tracks connections.

A judge is given frames one by one, each with the seconds to let pass before it, and says what became of it. It starts with an empty table.
To add one: a function that takes settings and zone and gives a context manager of a Judge, and a line in JUDGES.
Not here: comparing with what was expected (run).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import numpy as np

from ctcore.config import Config
from ctcore.model import ModelTracker
from ctcore.tracker import Tracker
from ctcore.types import REWRITE_DTYPE, Dir
from datapath.defragment import Gatherer
from datapath.fields import Record, conn_records, packet_records, translated
from datapath.frame import frames_of
from datapath.scenario.gather import ModelGatherer
from datapath.scenario.steps import ScenarioError

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND  # ns; when a scenario begins


class Seen(NamedTuple):
    """record: the packet's, as fields.packet_records makes it. conn: the record of the connection that the packet belongs to, or its tuple if it is
    invalid, as fields.conn_records makes it and as it is after the packet; None if there is none, or none any more."""

    record: Record
    conn: Record | None


class Judge(Protocol):
    """name: as in JUDGES. unknown: fields of a packet record it knows nothing of ("reason"). tolerance: seconds by which its timeouts may be off."""

    @property
    def name(self) -> str: ...
    @property
    def unknown(self) -> frozenset[str]: ...
    @property
    def tolerance(self) -> float: ...

    def packet(self, frame: bytes, wait: float, zone: int | None = None) -> Seen:
        """Let `wait` seconds pass, then judge an Ethernet frame. zone: in place of the judge's own. Raises CtmirrorError if that is not possible."""
        ...


class TrackerJudge:
    """The engine or the model, on a clock that only the waits move."""

    unknown: frozenset[str] = frozenset()
    tolerance = 0.0

    def __init__(self, name: str, tracker: Tracker | ModelTracker, gatherer: Gatherer | ModelGatherer) -> None:
        self.name, self.tracker, self.gatherer = name, tracker, gatherer
        self.now, self.packets, self.zone = START, 0, gatherer.zone

    def packet(self, frame: bytes, wait: float, zone: int | None = None) -> Seen:
        self.now += round(wait * SECOND)
        memory, frames = frames_of([frame], ts=self.now)
        config = self.tracker.config
        self.gatherer.zone = self.zone if zone is None else zone
        batch = self.gatherer.parse(memory, frames)
        rewrites = np.zeros(1, REWRITE_DTYPE)
        decisions, keys = self.tracker.advance(batch, rewrites), batch.array["key"].copy()
        record = next(translated(packet_records(frames, decisions, keys, self.packets, config.hz), keys, rewrites))
        self.packets += 1
        return Seen(record, self._conn(record["conn"], keys[0]))

    def _conn(self, ordinal: int | None, key: np.void) -> Record | None:
        """The connection by its ordinal, or by the packet's tuple."""
        conns = self.tracker.conns()
        flows = conns["flow"]
        chosen = flows["id"][:, Dir.ORIG] == ordinal if ordinal is not None else (flows["key"] == key).any(axis=1)
        return next(conn_records(conns[chosen], self.tracker.config.hz, self.tracker.config.acct), None)


@contextmanager
def engine(config: Config, zone: int) -> Iterator[Judge]:
    yield TrackerJudge("engine", Tracker(config), Gatherer(config, zone=zone))


@contextmanager
def model(config: Config, zone: int) -> Iterator[Judge]:
    yield TrackerJudge("model", ModelTracker(config), ModelGatherer(config, zone=zone))


def kernel(config: Config, zone: int) -> AbstractContextManager[Judge]:
    """The running kernel, in a network namespace of its own."""
    from datapath.oracle import judge  # needs pyroute2, and the others do not

    return judge.kernel(config, zone)


JUDGES: dict[str, Callable[[Config, int], AbstractContextManager[Judge]]] = {"engine": engine, "model": model, "kernel": kernel}


def open_judge(name: str, config: Config, zone: int = 0) -> AbstractContextManager[Judge]:
    """A judge with an empty table. name: one of JUDGES. Raises CtmirrorError where it cannot be asked."""
    if name not in JUDGES:
        raise ScenarioError(f"judge '{name}': expected one of {', '.join(JUDGES)}")
    return JUDGES[name](config, zone)

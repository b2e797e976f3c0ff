"""The composition root of diff: captures, engine and running kernel in lock step, and the records of what differs.

Each capture is compared on its own, in a namespace of its own: what one leaves behind is not there for the next.
Invariants: what was compared before a capture turned out damaged, or Ctrl-C, is counted and reported; the namespace is gone whatever happened.
Not here: what is compared (oracle.compare), text for people (commands.diff).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from ctcore.errors import CaptureError
from ctcore.types import Proto
from datapath import fields
from datapath.app import Progress, Tracking
from datapath.capture import PcapSource
from datapath.differences import Difference, Disagreement, packet_words
from datapath.names import printable
from datapath.oracle.compare import Difference as Fields
from datapath.oracle.compare import differences
from datapath.oracle.kernel import Side
from datapath.oracle.lockstep import Compared, Lockstep
from datapath.oracle.oracle import Oracle
from datapath.oracle.probes import Record as Observation
from datapath.oracle.witness import Layout

CHUNK = 4096
Record = dict[str, Any]


@dataclass(frozen=True)
class Chunk:
    """Some packets of a capture, judged by both. first: number of the first one; frames: FRAME_DTYPE[n]."""

    name: str
    first: int
    frames: np.ndarray
    compared: Compared
    differences: list[Fields]
    layout: Layout
    hz: int

    def records(self, side: Side, file: str | None = None) -> list[Record]:
        """The packet records of one side, without what only the kernel has."""
        return list(fields.packet_records(self.frames, side.decisions, self.compared.keys, self.first, self.hz, file))

    def kernel_records(self, file: str | None = None) -> list[Record]:
        """The kernel's packet records, naming their capture if `file` does, with the connection as it is after the packet.

        Under "kernel" is what only the kernel has: its clock (tick), the status behind conntrack (judged) and after confirm (leaving), its sentences
        and ctnetlink's events. Its reason is not known, so it is null. What was not shown is as the link layer left it, with the reason why.
        """
        theirs = self.compared.theirs
        records, ours = self.records(theirs, file), self.records(self.compared.ours, file)
        conns = list(fields.conn_records(theirs.conns, self.hz, acct=True))
        for i, (record, sighting, unshown) in enumerate(zip(records, self.compared.sightings, self.compared.unshown, strict=True)):
            record["reason"] = None
            if unshown is not None:
                records[i] = ours[i] | {"kernel": {"unshown": str(unshown)}}
            if sighting:
                moments = {"judged": sighting.judged, "leaving": sighting.leaving}
                status = {moment: self._status(seen) for moment, seen in moments.items()}
                said, events = list(sighting.said), list(sighting.events)
                record["kernel"] = {"tick": sighting.tick, "status": status, "said": said, "events": events}
            if theirs.has_conn[i] and record["proto"] == fields.proto_name(Proto.PROTO_TCP):
                record["tcp"] = conns[i]["tcp"]
        return records

    def _status(self, seen: Observation | None) -> list[str] | None:
        status = self.layout.status_of(seen)
        return None if status is None else list(fields.status_names(status))

    def difference_records(self) -> Iterator[Record]:
        """One record for each packet that differs: which fields, and both sides' packet records."""
        if not self.differences:
            return
        ours, theirs = self.records(self.compared.ours), self.kernel_records()
        for difference in self.differences:
            i = difference.i
            differs = {name: {"ctmirror": pair[0], "kernel": pair[1]} for name, pair in difference.fields.items()}
            yield {"file": self.name, "i": self.first + i, "differs": differs, "ctmirror": ours[i], "kernel": theirs[i]}

    def disagreements(self) -> Iterator[Disagreement]:
        """The same for people; the kernel's reasons are its sentences."""
        ours = self.records(self.compared.ours) if self.differences else []
        for difference in self.differences:
            record, sighting = ours[difference.i], self.compared.sightings[difference.i]
            said = "; ".join(sighting.said) if sighting else ""
            found = tuple(Difference(name, *pair) for name, pair in difference.fields.items())
            yield Disagreement(self.name, record["i"], packet_words(record), found, (record["reason"], said or None))


@dataclass
class Outcome:
    """What comparing one capture found. unshown: why packets were not shown to the kernel; error: what stopped the reading of the capture."""

    name: str
    packets: int = 0
    differ: int = 0
    unshown: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    error: str = ""
    interrupted: bool = False

    @property
    def shown(self) -> int:
        return self.packets - sum(self.unshown.values())


def diff(name: str, tracking: Tracking, take: Callable[[Chunk], None], progress: Progress | None = None) -> Outcome:
    """Compare a capture; `take` gets chunk after chunk. KernelError if the running kernel or the privileges do not suffice."""
    outcome = Outcome(printable(name))
    with PcapSource(name) as source, Oracle(tracking.config, zone=tracking.zone) as oracle:
        lockstep = Lockstep(oracle, zone=tracking.zone)
        start = perf_counter()
        try:
            while not lockstep.interrupted and (chunk := _next(source, lockstep, outcome)):
                take(chunk)
                if progress:
                    progress(name, source.position, source.size or 0)
        except CaptureError as error:
            outcome.error = str(error)
        except KeyboardInterrupt:
            outcome.interrupted = True
        outcome.interrupted |= lockstep.interrupted
        outcome.seconds = perf_counter() - start
    return outcome


def _next(source: PcapSource, lockstep: Lockstep, outcome: Outcome) -> Chunk | None:
    """The next packets, compared; None at the end of the capture."""
    memory, frames = source.read(CHUNK)
    if not len(frames):
        return None
    compared = lockstep.run(np.asarray(memory), frames)
    frames = frames[: len(compared.keys)]
    hz = lockstep.config.hz
    chunk = Chunk(outcome.name, outcome.packets, frames, compared, differences(compared, hz), lockstep.oracle.layout, hz)
    outcome.packets += len(frames)
    outcome.differ += len(chunk.differences)
    outcome.unshown.update(str(why) for why in compared.unshown if why is not None)
    return chunk

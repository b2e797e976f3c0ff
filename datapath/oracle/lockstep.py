"""Engine and kernel, packet by packet, by one clock.

Theory of operation: each packet is shown to the kernel first, which judges it at some tick; then the engine judges the same packet at that tick. So
whatever depends on time (timeouts, what has expired, the two seconds of UDP) is the same question to both.
Invariants: rows of both sides are in the order of the packets; a packet that cannot be shown (exhibit) is given to the engine all the same, at
the tick of the one before it, and is marked.
Not here: which fields are compared, and how closely (compare).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctcore.config import Config
from ctcore.tracker import Tracker
from ctcore.types import CONN_DTYPE, DECISION_DTYPE, Proto, State, Verdict
from datapath.fields import WITHOUT_PORTS
from datapath.link import inner
from datapath.oracle.exhibit import Unshown, exhibit
from datapath.oracle.oracle import Oracle
from datapath.oracle.probes import Record
from datapath.oracle.witness import CTINFO, KNOWN_STATUS, UNTRACKED, Sighting
from datapath.wire import parse_batch

SECOND = 1_000_000_000
NONE = 255


@dataclass
class Side:
    """What one side says of n packets.

    conns: the connection each packet's tuple belongs to, as it is after the packet, also where the packet is invalid; has_conn: where there is one.
    """

    decisions: np.ndarray  # DECISION_DTYPE[n]
    conns: np.ndarray  # CONN_DTYPE[n]
    has_conn: np.ndarray  # bool[n]

    @classmethod
    def empty(cls, n: int) -> Side:
        decisions = np.zeros(n, DECISION_DTYPE)
        decisions["conn"] = decisions["timeout"] = -1
        decisions["dir"] = decisions["l4state"] = NONE
        return cls(decisions, np.zeros(n, CONN_DTYPE), np.zeros(n, bool))


@dataclass
class Compared:
    """Both sides of n packets.

    keys: KEY_DTYPE[n]; unshown: why a packet was not shown to the kernel, or None; sightings: what was seen of the others.
    """

    ours: Side
    theirs: Side
    keys: np.ndarray
    unshown: Sequence[Unshown | None]
    sightings: Sequence[Sighting | None]


class Lockstep:
    """One engine beside one kernel. The engine's settings are the oracle's."""

    def __init__(self, oracle: Oracle, *, zone: int = 0) -> None:
        self.oracle, self.zone = oracle, zone
        self.config: Config = oracle.config
        self.reset()

    def reset(self) -> None:
        """Both begin anew, without connections; ordinals count from 0."""
        self.oracle.flush()
        self.tracker = Tracker(self.config)
        self.ordinals: dict[int, int] = {}  # where a connection lies in the kernel -> its ordinal
        self.born = 0

    def run(self, memory: np.ndarray, frames: np.ndarray) -> Compared:
        """Judge frames (FRAME_DTYPE[n]) of memory (uint8[m]) by both. The frames' own times are not used."""
        n = len(frames)
        rows = parse_batch(memory, frames, zone=self.zone, checksum=self.config.checksum).array
        places = inner(memory, frames)
        frames = frames.copy()
        ours, theirs = Side.empty(n), Side.empty(n)
        unshown: list[Unshown | None] = [None] * n
        sightings: list[Sighting | None] = [None] * n
        records: list[Record] = []
        for i in range(n):
            packet = exhibit(rows[i], places[i], memory)
            if isinstance(packet, Unshown):
                unshown[i] = packet
            else:
                sightings[i] = sighting = self.oracle.show(int(places[i]["family"]), packet, key_of(rows[i]))
                record = self._judge(sighting, rows[i], theirs, i)
                if record:
                    records.append(record)
                    theirs.has_conn[i] = True
            frames["ts"][i] = self.oracle.tick * SECOND // self.config.hz
            self._engine(memory, frames[i : i + 1], ours, i)
        if records:
            theirs.conns[theirs.has_conn] = self.oracle.layout.conns(records, [-1] * len(records))
        return Compared(ours, theirs, rows["key"].copy(), unshown, sightings)

    def _engine(self, memory: np.ndarray, frame: np.ndarray, ours: Side, i: int) -> None:
        """Our decision, and the connection as it is then."""
        batch = parse_batch(memory, frame, zone=self.zone, checksum=self.config.checksum)
        ours.decisions[i] = self.tracker.advance(batch)[0]
        state, ordinal = ours.decisions[i]["state"], int(ours.decisions[i]["conn"])
        conn = None
        if state == State.RELATED:
            conn = self.tracker.conn(ordinal)
        elif state not in (State.NOT_SEEN, State.UNTRACKED):
            key = key_of(batch.array[0])
            conn = self.tracker.find(key) if key else None
        if conn is not None:
            ours.conns[i] = conn[0]
            ours.has_conn[i] = True

    def _judge(self, sighting: Sighting, row: np.void, theirs: Side, i: int) -> Record | None:
        """The kernel's decision from what was seen; the observation of the connection to compare, if it lives on."""
        layout, decision = self.oracle.layout, theirs.decisions[i]
        decision["zone"], decision["proto"], decision["family"] = self.zone, row["key"]["proto"], row["key"]["family"]
        decision["verdict"] = Verdict.ACCEPT if sighting.came else Verdict.DROP
        judged, final = sighting.judged, sighting.final
        if judged is None:
            decision["state"] = State.NOT_SEEN
            return None
        if final is None:
            decision["state"] = State.UNTRACKED if judged.nfct == UNTRACKED else State.INVALID
            if sighting.asked:
                decision["l4state"] = self._l4state(sighting.asked)
            return sighting.asked
        if not layout.is_confirmed(final):
            decision["state"] = State.NOT_SEEN  # dropped at confirm: the connection never was
            return None
        decision["state"], decision["dir"] = CTINFO[judged.ctinfo]
        decision["conn"] = self._ordinal(judged, final)
        decision["status"] = layout.number(final, layout.status, 4) & KNOWN_STATUS
        decision["mark"] = layout.number(final, layout.mark, 4)
        decision["timeout"] = max(layout.left(final, sighting.tick), 0)
        decision["l4state"] = self._l4state(final)
        return final if layout.is_live(final) else None

    def _ordinal(self, judged: Record, final: Record) -> int:
        if not self.oracle.layout.is_confirmed(judged):
            self.ordinals[final.address] = self.born
            self.born += 1
        return self.ordinals.get(final.address, -1)

    def _l4state(self, record: Record) -> int:
        layout = self.oracle.layout
        proto = Proto(layout.proto(record)) if layout.proto(record) in layout.l4state else None
        return record.conn[layout.l4state[proto]] if proto else NONE


def key_of(row: np.void) -> bytes:
    """A packet's tuple (the bytes of a KEY_DTYPE), or nothing if it has none, since what the key holds of ports means nothing then."""
    return b"" if int(row["reason"]) in WITHOUT_PORTS else row["key"].tobytes()

"""Engine and kernel, packet by packet, by one clock.

Theory of operation: each packet is shown to the kernel first, which judges it at some tick; then the engine judges the same packet at that tick. So
whatever depends on time (timeouts, what has expired, the two seconds of UDP) is the same question to both.
Invariants: rows of both sides are in the order of the packets; a packet that cannot be shown (exhibit) is marked, and reaches no tracker: the engine
gets it only if it is not to track it either, for then it says why. So what comes after is the same question to both.
Where addresses are translated, Linux chooses some ports at random, of new connections and of announced ones: its choice is where our search begins.
It ends there only if our rules allow that port, and it is free.
Not here: which fields are compared, and how closely (compare).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from socket import AF_INET, AF_INET6
from typing import Any

import numpy as np

from ctcore.batch import Batch
from ctcore.config import Config
from ctcore.model.conn import Key
from ctcore.tracker import Tracker
from ctcore.types import REWRITE_DTYPE, Dir, End, Reason, State, Verdict
from datapath.defragment import Gatherer
from datapath.frame import frames_of
from datapath.leave import Leaving, leaving
from datapath.link import inner
from datapath.oracle.exhibit import HEADER6, UNROUTED, Unshown, exhibit, is_fragment, unrouted
from datapath.oracle.expected import Watch, ours_of, tuple_of
from datapath.oracle.kernel import Kernel, Side, key_of
from datapath.oracle.oracle import Oracle
from datapath.oracle.witness import Sighting
from datapath.wire import parse_batch

SECOND = 1_000_000_000
FAMILIES = {4: AF_INET, 6: AF_INET6}
NO_LINK = {4: bytes(12) + b"\x08\x00", 6: bytes(12) + b"\x86\xdd"}  # what a packet that was shown is put into for the engine


@dataclass
class Compared:
    """Both sides of n packets.

    keys: KEY_DTYPE[n]; unshown: why a packet was not shown to the kernel, or None; sightings: what was seen of the others; slack: int64[n], how many
    ticks passed while the kernel set the timeout that the packet's connection has now: by so much it may be off; expected: by packet, where the sides
    expect different connections after it, as {name: (ours, theirs)}.
    """

    ours: Side
    theirs: Side
    keys: np.ndarray
    unshown: list[Unshown | None]
    sightings: list[Sighting | None]
    slack: np.ndarray
    expected: dict[int, dict[str, tuple[Any, Any]]] = field(default_factory=dict)

    def first(self, n: int) -> Compared:
        """The first n packets."""
        expected = {i: unlike for i, unlike in self.expected.items() if i < n}
        return Compared(self.ours.first(n), self.theirs.first(n), self.keys[:n], self.unshown[:n], self.sightings[:n], self.slack[:n], expected)


class Lockstep:
    """One engine beside one kernel. The engine's settings are the oracle's."""

    def __init__(self, oracle: Oracle, *, zone: int = 0) -> None:
        self.oracle, self.zone = oracle, zone
        self.config: Config = oracle.config
        self.interrupted = False
        self.reset()

    def reset(self) -> None:
        """Both begin anew, without connections; ordinals count from 0."""
        self.oracle.flush()
        self.tracker = Tracker(replace(self.config, events=frozenset({"destroy"})) if self.oracle.translates else self.config)
        self.gatherer = Gatherer(self.config, zone=self.zone)
        self._redirects = any(not rule.source for rule in self.config.nat)
        self.kernel = Kernel(self.oracle)
        self.watch = Watch(self.config.hz)

    def run(self, memory: np.ndarray, frames: np.ndarray) -> Compared:
        """Judge frames (FRAME_DTYPE[n]) of memory (uint8[m]) by both. The frames' own times are not used.

        Interrupted by Ctrl-C, it says so in `interrupted` and returns the packets judged until then.
        """
        n = len(frames)
        rows = self._parse(memory, frames).array
        places = inner(memory, frames)
        frames = frames.copy()
        both = Compared(Side.empty(n), Side.empty(n), rows["key"].copy(), [None] * n, [None] * n, np.zeros(n, np.int64))
        try:
            for i in range(n):
                self._packet(memory, frames, (rows[i], places[i]), both, i)
        except KeyboardInterrupt:
            self.interrupted, n = True, i
        self.kernel.finish(both.theirs)
        return both.first(n)

    def _parse(self, memory: np.ndarray, frames: np.ndarray) -> Batch:
        return parse_batch(memory, frames, zone=self.zone, checksum=self.config.checksum, nat=bool(self.config.nat))

    def _packet(self, memory: np.ndarray, frames: np.ndarray, parsed: tuple[np.void, np.void], both: Compared, i: int) -> None:
        """Row i of both sides."""
        row, place = parsed
        packet = exhibit(row, place, memory)
        if self._redirects and isinstance(packet, bytes) and unrouted(int(place["family"]), packet):
            packet = UNROUTED
        if isinstance(packet, Unshown):
            both.unshown[i] = packet
            if row["verdict"] == Verdict.PENDING:
                return
        else:
            family = int(place["family"])
            if self.oracle.translates or row["reason"] == Reason.R_FRAGMENT or is_fragment(family, packet):
                self._shown(family, packet, both, i)
                return
            both.sightings[i] = sighting = self.kernel.show(family, packet, lambda: row, both.theirs, i)
            both.slack[i] = self.kernel.slack(sighting)
        frames["ts"][i] = self._now()
        self._engine(self._parse(memory, frames[i : i + 1]), both.ours, i)

    def _shown(self, family: int, packet: bytes, both: Compared, i: int) -> None:
        """Row i of both sides, where a packet may leave otherwise than it came: the engine gets what was shown."""
        memory, frame = frames_of([NO_LINK[family] + packet])

        @cache
        def gathered() -> Batch:
            frame["ts"] = self._now()
            return self.gatherer.parse(memory, frame)

        if self.oracle.translates:
            self.tracker.expire(self.oracle.probes.now() * SECOND // self.config.hz)
            self._bury()
        both.sightings[i] = sighting = self.kernel.show(family, packet, lambda: gathered().array[0], both.theirs, i)
        both.slack[i], both.keys[i] = self.kernel.slack(sighting), gathered().array["key"][0]
        if self.config.helpers:
            self.watch.hear(self.oracle.listener.expectations(), sighting.slack)
        self.tracker.prefer(*self.kernel.chosen(sighting), self.watch.drawn())
        decision, rewrites = self._engine(gathered(), both.ours, i)
        if self.config.helpers:
            if self._bury():  # what expired in the tick of this very packet
                self.watch.hear(self.oracle.listener.expectations(), sighting.slack)
            if unlike := self.watch.unlike(dict(ours_of(self.tracker)), self.oracle.probes.now() - sighting.tick):
                both.expected[i] = unlike
        if decision["verdict"][0] == Verdict.ACCEPT and (self.oracle.translates or is_fragment(family, packet)):
            edits = self.tracker.edits() if self.config.helpers else None
            both.ours.out[i] = packets_of(leaving(memory, frame, decision, rewrites, edits, self.gatherer.datagrams))

    def _bury(self) -> bool:
        """Let the kernel look for what has expired, as the engine says, and so delete it. Whether there was anything.

        Until it comes by such a connection it keeps what that expects, and gives others of the same source the port that it had.
        """
        events = self.tracker.events()
        over = events[events["end"] == End.END_TIMEOUT]["conn"]["flow"]["key"][:, Dir.ORIG]
        for key in over:
            self.oracle.listener.look_up(FAMILIES[int(key["family"])], tuple_of(Key.of(key.tobytes())), int(key["zone"]))
        return len(over) > 0

    def _now(self) -> int:
        """The kernel's clock in ns."""
        return self.oracle.tick * SECOND // self.config.hz

    def _engine(self, batch: Batch, ours: Side, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Our decision, and the connection as it is then; the decision and what is to be changed in the packet."""
        rewrites = np.zeros(1, REWRITE_DTYPE) if self.oracle.translates else None
        decision = self.tracker.advance(batch, rewrites)
        ours.decisions[i] = decision[0]
        state, ordinal = ours.decisions[i]["state"], int(ours.decisions[i]["conn"])
        conn = None
        if state == State.RELATED:
            conn = self.tracker.conn(ordinal)
        elif state not in (State.NOT_SEEN, State.UNTRACKED):
            key = key_of(batch.array[0])
            conn = self.tracker.find(key) if key else None
            if conn is not None and ordinal < 0 and conn["timeout"][0] == 0:
                conn = None  # overdue: no packet belongs to it any more, as the oracle has it
        if conn is not None:
            ours.conns[i] = conn[0]
            ours.has_conn[i] = True
        return decision, rewrites


def packets_of(left: Leaving) -> tuple[bytes, ...]:
    """The IP packets in frames that leave, without what the link added behind them."""
    packets = []
    for place in inner(left.memory, left.frames):
        start, have = int(place["offset"]), int(place["have"])
        packet = left.memory[start : start + have].tobytes()
        length = int.from_bytes(packet[2:4], "big") if place["family"] == 4 else HEADER6 + int.from_bytes(packet[4:6], "big")
        packets.append(packet[:length])
    return tuple(packets)

"""A connection's life through rules: its packets, and of each the rule, the device and the flow table's word.

Theory of operation: a packet may be tracked in several zones, and its decision tells of the last one only. So the captures are gone through twice:
once until the connection is there, for its tuples; then from the beginning, and each packet that bears one of them goes alone: if the connection has
counted it, it is the connection's. A packet whose decision names the connection is in any case.
One packet: pod to pod, tracked in zones 1 and 2: its record says conn 8, of zone 2; conn 7, of zone 1, has one packet more behind it than before.
Not here: words (narrate), one packet's way (explain_rules), a life without rules (explain). Not found: packets of the second of three connections,
where the first one's `ct` has translated them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ctcore.errors import CaptureError, ConfigError, CtmirrorError
from ctcore.types import KEY_DTYPE, Dir, Proto, Reason, State, Status, Verdict
from datapath import fields
from datapath.app import Progress, Tracking, with_events
from datapath.capture import PcapSource
from datapath.dissect import brief, has_header
from datapath.explain import Life, Step, no_connection
from datapath.explain_rules import chunks_of
from datapath.ruled import RulePipeline
from datapath.ruled_run import pipeline_of, place_of
from datapath.wire import parse_batch

NOWHERE = "-"


@dataclass(frozen=True)
class RuledStep(Step):
    """One packet of a life through rules. dir: of the connection, Dir."""

    dir: int = Dir.ORIG

    def direction(self, conn: np.void) -> int:
        return self.dir


def explain_conn(captures: Sequence[str], ordinal: int, tracking: Tracking, progress: Progress | None = None) -> Life:
    """Connection `ordinal`, of those that begin anywhere in `captures`; steps are numbered in the last. Raises CtmirrorError if there is none."""
    if "-" in captures:
        raise CtmirrorError("-: to follow a connection through rules it has to be read twice: expected files, not standard input")
    keys = _keys_of(captures, ordinal, tracking)
    following = _Following(_pipeline(tracking), ordinal, keys, tracking)
    damage = None
    for i, name in enumerate(captures):
        number, damage = 0, None
        try:
            with PcapSource(name) as source:
                for memory, frames, hooks in chunks_of(source, _rules(tracking), progress):
                    following.pipeline.arrive(hooks)
                    following.take(memory, frames, number if i == len(captures) - 1 else None)
                    number += len(frames)
        except CaptureError as error:
            damage = str(error)
    return following.life(damage)


def _rules(tracking: Tracking) -> Any:
    assert tracking.rules is not None
    return tracking.rules


def _pipeline(tracking: Tracking) -> RulePipeline:
    """With the ends of connections as events, and counters, by which packets are told."""
    return pipeline_of(_rules(tracking), replace(with_events(tracking.config, everything=False, ends=True), acct=True))


def _keys_of(captures: Sequence[str], ordinal: int, tracking: Tracking) -> np.ndarray:
    """The connection's tuples (KEY_DTYPE[2]), as soon as it is there."""
    pipeline, damage, made = _pipeline(tracking), "", 0
    for name in captures:
        damage = ""
        try:
            with PcapSource(name) as source:
                for memory, frames, hooks in chunks_of(source, _rules(tracking), None):
                    pipeline.arrive(hooks)
                    made = max(made, int(pipeline.process(memory, frames)[0]["conn"].max(initial=-1)) + 1)
                    ended = _ended(pipeline, ordinal)
                    conn = alive(pipeline, ordinal) if ended is None else ended["conn"]
                    if conn is not None:
                        return conn["flow"]["key"].copy()
        except CaptureError as error:
            damage = str(error)
    raise CtmirrorError(damage or no_connection(captures[-1], ordinal, made))


def alive(pipeline: RulePipeline, ordinal: int) -> Any:
    """A connection that is in the table, or None."""
    try:
        return pipeline.tracker.conn(ordinal)[0]
    except ConfigError:
        return None


def _ended(pipeline: RulePipeline, ordinal: int) -> Any:
    """The destroy event of a connection, among those since the last look, or None."""
    events = fields.destroyed(pipeline.tracker.events())
    rows = np.flatnonzero(events["conn"]["flow"]["id"][:, Dir.ORIG] == ordinal)
    return events[rows[0]] if len(rows) else None


def tuples(keys: np.ndarray) -> np.ndarray:
    """Keys without their zones, to be compared."""
    bare = np.ascontiguousarray(keys).copy()
    bare["zone"] = 0
    return bare.view(np.dtype((np.void, KEY_DTYPE.itemsize))).reshape(-1)


class _Following:
    """A pipeline of rules, and one connection in it. keys: its tuples, KEY_DTYPE[2]."""

    def __init__(self, pipeline: RulePipeline, ordinal: int, keys: np.ndarray, tracking: Tracking) -> None:
        self.pipeline, self.ordinal, self.keys, self.tracking = pipeline, ordinal, keys, tracking
        self.names = [place_of(rule) for rule in _rules(tracking).ruleset.rules]
        self.tuples = tuples(keys)
        self.zones = set(keys["zone"].tolist())
        self.steps: list[Step] = []
        self.ended: Any = None
        self.counted = 0  # packets of the connection so far
        self.begun = False

    def take(self, memory: Any, frames: np.ndarray, number: int | None) -> None:
        """A chunk. number: of its first packet; None: of a capture before the one whose packets are shown."""
        came = parse_batch(memory, frames, checksum=False, at_hook=True).array["key"]
        alone = np.flatnonzero(np.isin(tuples(came), self.tuples)).tolist()
        start = 0
        for row in alone:
            self._piece(memory, frames[start:row], number, start)
            self._piece(memory, frames[row : row + 1], number, row, alone=True)
            start = row + 1
        self._piece(memory, frames[start:], number, start)

    def _piece(self, memory: Any, frames: np.ndarray, number: int | None, start: int, *, alone: bool = False) -> None:
        """Packets one after the other. start: of the first of them in its chunk; alone: one that bears a tuple of the connection."""
        if not len(frames):
            return
        before = self.pipeline.tracker.now
        decisions, keys, results = self.pipeline.process(memory, frames, keys=True, results=True)
        ended = _ended(self.pipeline, self.ordinal)
        self.ended = ended if self.ended is None else self.ended
        conn = alive(self.pipeline, self.ordinal) if ended is None else ended["conn"]
        counted = 0 if conn is None else int(conn["flow"]["packets"].sum())
        rows = decisions["conn"] == self.ordinal
        if alone:
            rows |= counted > self.counted or self._is_stray(decisions[0])
        self.counted = counted
        chosen = np.flatnonzero(rows)
        self.begun = self.begun or len(chosen) > 0
        if number is not None and len(chosen):
            times = np.maximum.accumulate(np.maximum(frames["ts"], before))[chosen]
            self.steps += self._steps(
                memory, frames[chosen], times, (decisions[chosen], keys[chosen], results[chosen]), conn, number + start + chosen
            )

    def _is_stray(self, decision: np.void) -> bool:
        """An invalid packet that bears the connection's tuple, in its zone."""
        return self.begun and bool(decision["state"] == State.INVALID) and int(decision["zone"]) in self.zones

    def _steps(
        self, memory: Any, frames: np.ndarray, times: np.ndarray, said: tuple[np.ndarray, np.ndarray, np.ndarray], conn: Any, numbers: np.ndarray
    ) -> Iterator[Step]:
        """said: decisions, keys and results of these packets; conn: the connection after the last of them."""
        batch = parse_batch(memory, frames, checksum=False, at_hook=True)
        for i, (decision, key, result) in enumerate(zip(*said, strict=True)):
            packet = batch.array[i].copy()
            direction = self._direction(decision, key)
            its_own = decision["conn"] == self.ordinal or decision["state"] == State.INVALID or conn is None
            shown = decision if its_own else seen_as(decision, conn, direction)
            yield RuledStep(int(numbers[i]), int(times[i]), shown, packet, _what(packet, batch.l4_bytes(i)), self._way(decision, result), direction)

    def _direction(self, decision: np.void, key: np.void) -> int:
        if decision["conn"] == self.ordinal and decision["dir"] in (Dir.ORIG, Dir.REPLY):
            return int(decision["dir"])
        mine = tuples(np.array([key], dtype=KEY_DTYPE))[0]
        return Dir.REPLY if mine == self.tuples[Dir.REPLY] and mine != self.tuples[Dir.ORIG] else Dir.ORIG

    def _way(self, decision: np.void, result: np.void) -> tuple[str, ...]:
        """Where it went, by which rule, and what the flow table has of it."""
        verdict, n_hits = int(result["verdict"]), int(result["n_hits"])
        where = f"to {self.pipeline.program.devices[int(result['device'])]}" if verdict == Verdict.ACCEPT else WENT.get(verdict, NOWHERE)
        rule = self.names[int(result["hit"][min(n_hits, len(result["hit"])) - 1])] if n_hits else NOWHERE
        offload = () if self.pipeline.flows is None else (fields.OFFLOAD_NAMES[int(decision["offload"])] or NOWHERE,)
        return (where, rule.rpartition("/")[2], *offload)

    def life(self, damage: str | None) -> Life:
        """The connection as it is by now. Its tuples are known, so it has been there."""
        last = alive(self.pipeline, self.ordinal) if self.ended is None else self.ended["conn"]
        assert last is not None
        end, stop = (0, 0) if self.ended is None else (int(self.ended["end"]), int(self.ended["time"]))
        return Life(last, self.steps, end, stop, damage)


WENT: dict[int, str] = {Verdict.DROP: "dropped", Verdict.HELD: "held"}


def _what(packet: np.void, l4: bytes) -> str:
    """A packet in a few words. Of what has been put together from fragments there is only the last one to be seen."""
    if packet["reason"] == Reason.R_FRAGMENT:
        return "the last to come of its datagram's fragments"
    proto = int(packet["key"]["proto"])
    return brief(proto, l4, int(packet["l4_len"])) if l4 and has_header(proto, l4) else f"len {int(packet['l4_len'])}"


def seen_as(decision: np.void, conn: np.void, direction: int) -> np.void:
    """A packet's decision in the words of another connection that it was tracked as: conn, after the packet.

    What the packet itself was called there is not kept; this is what it follows from: a reply, or a packet after one, is established.
    """
    own, status = decision.copy(), int(conn["status"])
    expected = State.RELATED if status & Status.EXPECTED else State.NEW
    proto = int(conn["flow"][Dir.ORIG]["key"]["proto"])
    own["conn"], own["dir"], own["status"], own["timeout"] = conn["flow"][Dir.ORIG]["id"], direction, status, conn["timeout"]
    own["state"] = State.ESTABLISHED if direction == Dir.REPLY or status & Status.SEEN_REPLY else expected
    own["l4state"] = conn["tcp" if proto == Proto.PROTO_TCP else "sctp"]["state"] if proto in (Proto.PROTO_TCP, Proto.PROTO_SCTP) else 255
    own["proto"], own["reason"] = proto, Reason.R_OK if own["conn"] != decision["conn"] else decision["reason"]
    return own

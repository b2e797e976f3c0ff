"""A pipeline of rules behind a NIC: frames meet the NIC first, what it misses goes on in software, and the mirror keeps the two together.

    frames -> nic.process_some -> what it forwards, drops, gives to the host     decided in hardware
                               -> what it misses -> pipeline.process(resumes)    goes on where the NIC stopped
    when somebody has something to say: pump(flows, mirror, nic)                 asks, commands, replies, answers

Theory of operation: hardware learns of a connection between two slices, as a real one does between two polls; so frames of one slice meet the
tables as they were at its beginning. A slice ends 1 ms behind the first frame that software has to look at, or when the mirror wants its turn; frames
that hardware takes by itself change nothing, and go on together.
One connection: the third packet of its handshake misses, and is its admission to the flow table, which asks for hardware; packets of later slices
are forwarded by the NIC, and come back as its statistics only.
Invariants: each frame is decided once, by the NIC or by software, or dropped with a reason; what the NIC has counted of a rule software has not.
Not here: what the NIC does (offload.simnic), what was counted (offload_shares), what is told to people (report_nic), files (offloaded_run).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.errors import ConfigError
from ctcore.types import DECISION_DTYPE, KEY_DTYPE, Reason, State
from datapath.commands.offload_decisions import decisions_of, results_of
from datapath.commands.offload_shares import Shares
from datapath.commands.offload_watch import Seen, Watch, Watched
from datapath.pipeline.outputs import OUTPUT_DTYPE, OutputFlag
from datapath.pipeline.rules import Hook, Ruleset
from datapath.pipeline.walk import RESULT_DTYPE
from datapath.ruled import RulePipeline
from datapath.wire import parse_batch
from offload.mirror import Mirror
from offload.mirror_settings import MirrorSettings
from offload.pump import pump
from offload.simnic.arrivals import Arrived, Part, arrived
from offload.simnic.layout import STATE_EST
from offload.simnic.nic import Nic
from offload.simnic.program import Program as NicProgram
from offload.simnic.results import NO_RULE, Flag, Verdict
from offload.simnic.results import RESULT_DTYPE as FOUND_DTYPE
from offload.simnic.results import OutputFlag as NicOutput

SLICE, SLICE_NS = 256, 1_000_000  # frames, and ns of their time, until software is heard: whichever is over first
LONGEST = 4096  # frames of a slice that hardware takes by itself
SECOND = 1_000_000_000  # ns: at most so long between two looks at the mirror while no packet comes
PATIENCE = 3600 * SECOND  # ns behind the time of the flow table in which all that is idle has left hardware that answers
NEVER = (1 << 63) - 1
NO_TABLE = "NIC: expected a flow table: connections are offloaded from it"
KINDS = {"decisions": DECISION_DTYPE, "keys": KEY_DTYPE, "results": RESULT_DTYPE}  # what process() tells, in its order


class Batch(NamedTuple):
    """What process() was given. hooks: where each frame came, by Program.hook(); came, found: the same for the NIC, and what that made of it; told:
    what was asked for; outputs: whether what leaves is wanted."""

    memory: NDArray[np.uint8]
    frames: NDArray[Any]
    hooks: NDArray[Any]
    came: Arrived
    found: NDArray[Any]
    told: dict[str, NDArray[Any]]
    outputs: bool


def alike(flags: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """The first row of each run of equal values, and the one behind its last."""
    ends = [*(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(flags)]
    return zip([0, *ends], ends, strict=False)


def only_hardware(ruleset: Ruleset) -> NDArray[np.bool_]:
    """By number of a rule, and in the end of none: whether software skips it."""
    return np.array([*(rule.skip_sw for rule in ruleset.rules), False], dtype=bool)


def mirror_of(pipeline: RulePipeline, settings: MirrorSettings | None = None) -> Mirror:
    """A mirror of all rows of the pipeline's flow table. Raises ConfigError without a flow table."""
    if pipeline.flows is None:
        raise ConfigError(NO_TABLE)
    return Mirror(pipeline.flows.rows, settings)


class Offloaded:
    """The face of a RulePipeline, for who replays captures through it. Not thread-safe.

    pipeline: with a flow table; it is mirrored from here on; most: asks and commands that are carried in one turn of the mirror. Raises ConfigError
    without a flow table, and for a mirror of fewer flows than that has rows.
    """

    def __init__(self, pipeline: RulePipeline, nic: Nic, mirror: Mirror, most: int = 65_536) -> None:
        if pipeline.flows is None:
            raise ConfigError(NO_TABLE)
        if mirror.size < pipeline.flows.rows:
            raise ConfigError(f"NIC: expected a mirror of as many flows as the flow table has rows ({pipeline.flows.rows}), not of {mirror.size}")
        self.pipeline, self.nic, self.mirror, self.most = pipeline, nic, mirror, most
        self.program, self.tracker, self.walker, self.flows = pipeline.program, pipeline.tracker, pipeline.walker, pipeline.flows
        self.shares = Shares()
        self.watch: Watch | None = None
        self.framed = 0  # frames that were given an Ethernet header before they came here
        self.looked: frozenset[int] = frozenset()  # connections whose counters were read at the end
        self._looked: int | None = None  # ns: when the mirror had its last turn
        idle = max(self.tracker.config.flowtable_tcp_timeout, self.tracker.config.flowtable_udp_timeout)
        self._patience = PATIENCE + idle * SECOND
        self._hooks = np.zeros(1, dtype=np.uint32)
        self._rows: list[NDArray[Any]] = []
        self._bytes: list[NDArray[np.uint8]] = []
        self._only_hard = only_hardware(pipeline.program.ruleset)
        self.flows.mirrored()

    def take(self, program: NicProgram) -> None:
        """The pipeline has taken other rules (RulePipeline.take), and the NIC gets the same (Nic.compiled). Before arrive() packets pass."""
        self.program, self.walker = self.pipeline.program, self.pipeline.walker
        self._only_hard = only_hardware(self.program.ruleset)
        self.nic.load(program)

    def arrive(self, hooks: Sequence[Hook]) -> None:
        """See RulePipeline.arrive()."""
        self.pipeline.arrive(hooks)
        self._hooks = np.array([self.program.hook(hook) for hook in hooks], dtype=np.uint32)

    def process(
        self,
        memory: NDArray[np.uint8],
        frames: NDArray[Any],
        *,
        decisions: bool = True,
        keys: bool = False,
        results: bool = False,
        outputs: bool = False,
    ) -> tuple[Any, Any, Any]:
        """See RulePipeline.process()."""
        wanted = zip(KINDS.items(), (decisions, keys, results), strict=True)
        told = {name: np.zeros(len(frames), dtype=kind) for (name, kind), is_wanted in wanted if is_wanted}
        self._rows, self._bytes = [], []
        hooks = self._hooks[np.minimum(frames["iface"], len(self._hooks) - 1)]
        batch = Batch(memory, frames, hooks, arrived(memory, frames, hooks >> 1), np.zeros(len(frames), dtype=FOUND_DTYPE), told, outputs)
        met = hooks & 1 == 0  # what goes out at a device comes from the host, and meets its NIC behind the rules
        for start, end in alike(met):
            while start < end:
                start = self._slice(batch, start, end, bool(met[start]))
        self.shares.count(frames, batch.found, met)
        return told.get("decisions"), told.get("keys"), told.get("results")

    def outputs(self) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """See RulePipeline.outputs()."""
        if not self._rows:
            return np.zeros(0, dtype=OUTPUT_DTYPE), np.zeros(0, dtype=np.uint8)
        at = accumulate((len(part) for part in self._bytes), initial=0)
        for rows, base in zip(self._rows, at, strict=False):  # the last one is where the next would be
            rows["offset"][(rows["flags"] & OutputFlag.OUTPUT_CHANGED) != 0] += base
        rows = np.concatenate(self._rows)
        return rows[np.argsort(rows["frame"], kind="stable")], np.concatenate(self._bytes)

    def summary(self) -> dict[str, Any]:
        """See RulePipeline.summary(): of what either has decided."""
        told, shares = self.pipeline.summary(), self.shares
        told["packets"], told["bytes"] = told["packets"] + shares.states[0], told["bytes"] + shares.states[1]
        told["reason_packets"] = told["reason_packets"] + shares.reasons
        told["dropped"] += int(shares.reasons.sum() - shares.reasons[Reason.R_OK])
        told["total_packets"] += shares.hardware
        told["total_bytes"] += shares.hardware_bytes
        told["last_ts"] = max(told["last_ts"], shares.last_ts)
        return told

    def count(self, reason: Reason) -> int:
        """See RulePipeline.count()."""
        return self.pipeline.count(reason) + int(self.shares.reasons[reason])

    def shortcuts(self) -> dict[str, int]:
        """See RulePipeline.shortcuts()."""
        return self.pipeline.shortcuts()

    def counters(self) -> NDArray[Any]:
        """Of both: see RulePipeline.counters()."""
        counts, hardware = self.pipeline.counters(), self.nic.counters()
        for name in ("packets", "bytes", "drops", "overlimits"):
            counts[name][: len(hardware)] += hardware[name].astype(np.uint64)
        counts["last"][: len(hardware)] = np.maximum(counts["last"][: len(hardware)], hardware["last"])
        return counts

    # --- turns of the mirror -----------------------------------------------------------------------------------------------------------------

    @property
    def due(self) -> int:
        """ns: when the mirror should have its turn; 0: now; NEVER: when software has looked at a packet."""
        if self._looked is None or self.mirror.resets != self.nic.resets:
            return 0
        return min(self.flows.due, self.mirror.due, self.nic.due)

    def turn(self, now: int) -> None:
        """The mirror's: asks, commands, replies, answers. Where nothing is due it changes nothing. now: ns."""
        watch = self.watch
        pump(self.flows if watch is None else Watched(self.flows, watch, now), self.mirror, self.nic, now, self.most)
        self._looked = now if self._looked is None else max(now, self._looked)
        if watch is not None:
            watch.turned(now)

    def settle(self, now: int) -> None:
        """Time goes on to `now` (ns) without packets: rounds, commands, replies."""
        self._quiet(now)
        self.turn(now)

    def _quiet(self, until: int) -> None:
        """Before `until` (ns) no packet came, and what is in hardware grows old all the same, or hardware would still serve what has been idle for
        hours. Where there is nothing, time may jump. What does not come to an end is looked at ever more seldom, up to once a second; and what is
        there long after it should have left, as hardware does not answer, ever more seldom without a bound, since captures may jump by centuries."""
        step, begun = SLICE_NS, self._looked
        while self._looked is not None and begun is not None and (self.mirror.flows or self.mirror.waiting):
            late = (self._looked - begun - self._patience) // 16
            now = self._looked + late if late > SECOND else min(max(self.due, self._looked + step), self._looked + SECOND)
            if now >= until:
                return
            self.turn(now)
            step = SLICE_NS if self.due > now else min(2 * step, SECOND)

    # --- a slice -----------------------------------------------------------------------------------------------------------------------------

    def _slice(self, batch: Batch, start: int, end: int, met: bool) -> int:
        """Frames from row `start` on, before row `end`; met: they come to the NIC. Returns the row behind the last one."""
        now = int(batch.frames["ts"][start])
        self._quiet(now)
        stop = self._hardware(batch, start, end, now) if met else self._beside(batch, start, end, now)
        soft = np.flatnonzero(batch.found["verdict"][start:stop] == Verdict.MISSED)
        decisions = self._software(batch, start, soft) if len(soft) else None
        if self.watch is not None:
            into = np.arange(stop - start if met else 0)
            self.watch.slice(Seen(batch.memory, batch.frames[start:stop], into, batch.found[start : start + len(into)], soft, decisions))
        now = int(batch.frames["ts"][start:stop].max())
        if self.due <= now:
            self.turn(now)
        return stop

    def _hardware(self, batch: Batch, start: int, end: int, now: int) -> int:
        until = min(max(self.due, now + SLICE_NS), now + SECOND, NEVER)
        part = Part(start, min(end, start + LONGEST), until, max(now - SLICE_NS, -NEVER), SLICE, SLICE_NS)
        stop = self.nic.process_some(batch.came, batch.found, part)
        if batch.outputs:
            self._leave_nic()
        if batch.told:
            self._tell(batch, start + np.flatnonzero(batch.found["verdict"][start:stop] != Verdict.MISSED))
        return stop

    @staticmethod
    def _beside(batch: Batch, start: int, end: int, now: int) -> int:
        """Frames that meet no NIC are all software's."""
        late = np.flatnonzero(np.abs(batch.frames["ts"][start : min(end, start + SLICE)] - now) >= SLICE_NS)
        stop = start + int(late[0]) if len(late) else min(end, start + SLICE)
        found = batch.found[start:stop]
        found["verdict"], found["rule"], found["conn"] = Verdict.MISSED, NO_RULE, -1
        found["caplen"], found["length"] = batch.frames["caplen"][start:stop], batch.frames["len"][start:stop]
        return stop

    def _tell(self, batch: Batch, which: NDArray[Any]) -> None:
        """What the NIC has decided, as software would have told it."""
        if not len(which):
            return
        found = batch.found[which]
        keys = parse_batch(batch.memory, batch.frames[which], checksum=False, at_hook=True).array["key"]
        decided = decisions_of(self.tracker, found, keys)
        told = {"keys": keys, "decisions": decided}
        if "results" in batch.told:
            told["results"] = results_of(found, decided, batch.hooks[which] >> 1, self.nic.outputs()[0])
        for name, rows in batch.told.items():
            rows[which] = told[name]

    def _software(self, batch: Batch, start: int, soft: NDArray[Any]) -> NDArray[Any] | None:
        """Let the frames that missed go on where the NIC has stopped. soft: their rows from `start`. What was decided, if anybody wants it."""
        which = start + soft
        stopped, rows = batch.found[which], batch.frames[which]
        rows["caplen"], rows["len"] = stopped["caplen"], stopped["length"]  # the NIC may have cut off what is behind the packet
        given, lent = batch.memory, None
        if (moved := (stopped["flags"] & Flag.CHANGED) != 0).any():
            given, lent = self._gathered(batch.memory, rows, np.where(moved, stopped["offset"], -1))
        wanted = {name: name in batch.told for name in KINDS}
        wanted["decisions"] |= self.watch is not None
        answers = self.pipeline.process(given, rows, **wanted, outputs=batch.outputs, resumes=self._resumes(batch.hooks[which], stopped))
        for name, found in zip(KINDS, answers, strict=True):
            if name in batch.told:
                batch.told[name][which] = found
        if batch.outputs:
            self._leave_software(which, given, lent)
        decided: NDArray[Any] | None = answers[0]
        return decided

    def _gathered(self, memory: NDArray[np.uint8], rows: NDArray[Any], at: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Frames of which some lie in the NIC's memory (at: where; -1: it does not), in a memory of their own, and how far each has come from the
        caller's; those that cannot go back there have NEVER. Writes: rows."""
        own = self.nic.outputs()[1]
        spans = zip(at.tolist(), rows["offset"].tolist(), rows["caplen"].tolist(), strict=True)
        parts = [own[i : i + n] if i >= 0 else memory[offset : offset + n] for i, offset, n in spans]
        starts = np.array(list(accumulate((len(part) for part in parts[:-1]), initial=0)), dtype=np.int64)
        lent = np.where(at >= 0, NEVER, rows["offset"].astype(np.int64) - starts)
        rows["offset"] = starts
        return np.concatenate(parts), lent

    def _resumes(self, hooks: NDArray[Any], stopped: NDArray[Any]) -> NDArray[Any] | None:
        """RESUME_DTYPE[n], None where all frames begin at the beginning."""
        # What nothing has been done to begins anew, and is served by the flow table if that knows it; unless only hardware would begin so.
        begun = (stopped["chain"] != 0) | (stopped["action"] != 0) | (stopped["chains"] > 1)
        on = begun | self._only_hard[np.minimum(stopped["rule"], len(self._only_hard) - 1)]
        if not on.any():
            return None
        resumes: NDArray[Any] = self.program.resumes(hooks, stopped["chain"], stopped["rule"], stopped["action"])
        resumes["conn"] = np.where(stopped["ct_state"] != 0, stopped["conn"], -1)
        resumes["state"] = np.where(stopped["ct_state"] & STATE_EST, State.ESTABLISHED, State.NEW)
        resumes["zone"], resumes["turns"] = stopped["zone_restore"], stopped["chains"]
        resumes["mark"], resumes["priority"] = stopped["skb_mark"], stopped["priority"]
        resumes["on"] = on
        return resumes

    # --- frames that leave -----------------------------------------------------------------------------------------------------------------

    def _leave_nic(self) -> None:
        """What the NIC has sent, as rows of OUTPUT_DTYPE with bytes of their own."""
        left, own = self.nic.outputs()
        if not len(left):
            return
        rows = np.zeros(len(left), dtype=OUTPUT_DTYPE)
        for name in ("frame", "offset", "caplen", "length", "mark", "priority", "egress"):
            rows[name] = left[name]
        rows["device"] = left["iface"]
        changed, copies = ((left["flags"] & flag) != 0 for flag in (NicOutput.CHANGED, NicOutput.COPY))
        rows["flags"] = changed * int(OutputFlag.OUTPUT_CHANGED) | copies * int(OutputFlag.OUTPUT_COPY)
        used = int((left["offset"] + left["caplen"])[changed].max()) if changed.any() else 0
        self._rows.append(rows)
        self._bytes.append(own[:used].copy())

    def _leave_software(self, which: NDArray[Any], given: NDArray[np.uint8], lent: NDArray[Any] | None) -> None:
        """given, lent: see _gathered(); None: it is the caller's memory."""
        rows, changed = self.pipeline.outputs()
        if lent is not None:
            far, back = lent[rows["frame"]], (rows["flags"] & OutputFlag.OUTPUT_CHANGED) == 0
            stay = back & (far == NEVER)
            back &= far != NEVER
            rows["offset"][back] = (rows["offset"][back].astype(np.int64) + far[back]).astype(rows["offset"].dtype)
            rows["offset"][stay] += len(changed)
            rows["flags"][stay] |= int(OutputFlag.OUTPUT_CHANGED)
            changed = np.concatenate([changed, given]) if stay.any() else changed
        rows["frame"] = which[rows["frame"]]
        self._rows.append(rows)
        self._bytes.append(changed)

"""A pipeline of rules behind a NIC: frames meet the NIC first, what it misses goes on in software, and the mirror keeps the two together.

    frames -> nic.process -> what it forwards, drops, gives to the host      decided in hardware
                          -> what it misses -> pipeline.process(resumes)     goes on where the NIC stopped
    after each slice: pump(flows, mirror, nic)                               asks, commands, replies, answers

Theory of operation: hardware learns of a connection between two slices, as a real one does between two polls; so frames of one slice meet the
tables as they were at its beginning. One connection: the third packet of its handshake misses, and is its admission to the flow table, which asks for
hardware; packets of later slices are forwarded by the NIC, and come back as its statistics only.
Invariants: each frame is decided once, by the NIC or by software, or dropped with a reason; what the NIC has counted of a rule software has not.
Not here: what the NIC does (offload.simnic), what is told to people (report_offload), files (offloaded_run).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.errors import ConfigError
from ctcore.types import DECISION_DTYPE, KEY_DTYPE, Dir, Offload, Proto, Reason, State
from ctcore.types import Verdict as Final
from datapath.commands.offload_watch import Seen, Watch, Watched
from datapath.pipeline.outputs import OUTPUT_DTYPE, OutputFlag
from datapath.pipeline.rules import Hook
from datapath.pipeline.walk import RESULT_DTYPE
from datapath.ruled import RulePipeline
from datapath.wire import parse_batch
from offload.mirror import Mirror
from offload.pump import pump
from offload.simnic.layout import STATE_EST, STATE_RPL
from offload.simnic.nic import Nic
from offload.simnic.results import NO_RULE, Flag, Verdict, Why
from offload.simnic.results import OutputFlag as NicOutput

SLICE, SLICE_NS = 256, 1_000_000  # frames, and ns of their time, between two looks at the mirror: whichever is over first
# What the NIC did, as records and counters have it.
FINAL = {Verdict.FORWARDED: Final.ACCEPT, Verdict.PASSED: Final.ACCEPT, Verdict.DROPPED: Final.DROP}
DROPS = {Why.RULE: Reason.R_RULE_DROP, Why.POLICED: Reason.R_RULE_POLICE}
SECOND = 1_000_000_000  # ns between two looks at the mirror while no packet comes
KINDS = {"decisions": DECISION_DTYPE, "keys": KEY_DTYPE, "results": RESULT_DTYPE}  # what process() tells, in its order


class Slice(NamedTuple):
    """Frames that meet the tables as they are when the first one comes. hooks: where each came, by Program.hook(); start: the first one's row of all;
    told: the rows that are theirs, of what was asked for; outputs: whether what leaves is wanted."""

    memory: NDArray[np.uint8]
    frames: NDArray[Any]
    hooks: NDArray[Any]
    start: int
    told: dict[str, NDArray[Any]]
    outputs: bool


def slices(times: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first row of each slice, and the one behind its last. times: ns."""
    start = 0
    for i, time in enumerate(times):
        if i - start == SLICE or abs(time - times[start]) >= SLICE_NS:
            yield start, i
            start = i
    if start < len(times):
        yield start, len(times)


def states_of(found: NDArray[Any]) -> NDArray[Any]:
    """What a CT table has said of frames, as the tracker would (types.State). found: RESULT_DTYPE[n] of the NIC."""
    served = (found["flags"] & Flag.CT) != 0
    return np.where(served, np.where(found["ct_state"] & STATE_EST, State.ESTABLISHED, State.NEW), State.NOT_SEEN)


def reasons_of(found: NDArray[Any]) -> NDArray[Any]:
    """Why the NIC has dropped frames (types.Reason)."""
    return np.array([DROPS.get(Why(value), Reason.R_OK) for value in found["why"].tolist()], dtype=np.uint8)


@dataclass
class Shares:
    """What the NIC has taken of all frames. why: of those it has missed, by offload.simnic.results.Why; syns: SYNs that it forwarded as of an
    established connection (contract A4.27). states: packets and bytes on the wire that it has decided, by types.State; reasons: packets of these."""

    frames: int = 0
    bytes: int = 0
    hardware: int = 0
    hardware_bytes: int = 0
    syns: int = 0
    why: Counter[int] = field(default_factory=Counter)
    states: NDArray[Any] = field(default_factory=lambda: np.zeros((2, State.N_STATES), dtype=np.uint64))
    reasons: NDArray[Any] = field(default_factory=lambda: np.zeros(Reason.N_REASONS, dtype=np.uint64))
    last_ts: int = 0


class Offloaded:
    """The face of a RulePipeline, for who replays captures through it. Not thread-safe.

    pipeline: with a flow table; it is mirrored from here on. Raises ConfigError without one.
    """

    def __init__(self, pipeline: RulePipeline, nic: Nic, mirror: Mirror) -> None:
        if pipeline.flows is None:
            raise ConfigError("NIC: expected a flow table: connections are offloaded from it")
        self.pipeline, self.nic, self.mirror = pipeline, nic, mirror
        self.program, self.tracker, self.walker, self.flows = pipeline.program, pipeline.tracker, pipeline.walker, pipeline.flows
        self.shares = Shares()
        self.watch: Watch | None = None
        self._looked: int | None = None  # ns: when the mirror had its last turn
        self._hooks = np.zeros(1, dtype=np.uint32)
        self._rows: list[NDArray[Any]] = []
        self._bytes: list[NDArray[np.uint8]] = []
        self.flows.mirrored()

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
        for start, end in slices(frames["ts"].tolist()):
            part = {name: rows[start:end] for name, rows in told.items()}
            self._slice(Slice(memory, frames[start:end], hooks[start:end], start, part, outputs))
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

    def settle(self, now: int) -> None:
        """Time goes on to `now` (ns) without packets: rounds, commands, replies."""
        self._quiet(now)
        self._turn(now)

    def _quiet(self, until: int) -> None:
        """Before `until` (ns) no packet came, and what is in hardware grows old all the same, or hardware would still serve what has been idle for
        hours. Where there is nothing, time may jump."""
        while self._looked is not None and until - self._looked > SECOND and (self.mirror.counters()["flows"] or self.mirror.waiting):
            self._turn(self._looked + SECOND)

    def _turn(self, now: int) -> None:
        """Asks, commands, replies, answers."""
        watch = self.watch
        pump(self.flows if watch is None else Watched(self.flows, watch, now), self.mirror, self.nic, now)
        self._looked = now if self._looked is None else max(now, self._looked)
        if watch is not None:
            watch.turned(now)

    # --- a slice -----------------------------------------------------------------------------------------------------------------------------

    def _slice(self, part: Slice) -> None:
        self._quiet(int(part.frames["ts"][0]))
        # What goes out at a device comes from the host, and meets its NIC behind the rules.
        into = np.flatnonzero(part.hooks & 1 == 0)
        found = self.nic.process(part.memory, part.frames[into], (part.hooks[into] >> 1).astype(np.int64))
        done = found["verdict"] != Verdict.MISSED
        self._count(part, into, found, done)
        if part.outputs:
            self._leave_nic(part, into)
        if done.any() and part.told:
            self._tell(part, into[done], found[done])
        soft = np.ones(len(part.frames), dtype=bool)
        soft[into[done]] = False
        which, decisions = np.flatnonzero(soft), None
        if len(which):
            missed = np.zeros(len(part.frames), dtype=found.dtype)
            missed["rule"], missed["conn"] = NO_RULE, -1
            missed[into] = found
            decisions = self._software(part, which, missed[which])
        if self.watch is not None:
            self.watch.slice(Seen(part.memory, part.frames, into, found, which, decisions))
        self._turn(int(part.frames["ts"].max()))

    def _count(self, part: Slice, into: NDArray[Any], found: NDArray[Any], done: NDArray[Any]) -> None:
        shares = self.shares
        shares.frames += len(part.frames)
        shares.bytes += int(part.frames["len"].sum(dtype=np.int64))
        shares.hardware += int(done.sum())
        shares.hardware_bytes += int(part.frames["len"][into[done]].sum(dtype=np.int64))
        state, lengths = states_of(found[done]), part.frames["len"][into[done]]
        for row, weights in enumerate((None, lengths)):
            shares.states[row] += np.bincount(state, weights, minlength=State.N_STATES).astype(np.uint64)
        shares.reasons += np.bincount(reasons_of(found[done]), minlength=Reason.N_REASONS).astype(np.uint64)
        shares.last_ts = max(shares.last_ts, int(part.frames["ts"].max()))
        shares.syns += int(np.count_nonzero(found["flags"] & Flag.SYN))
        for why, n in zip(*np.unique(found["why"][~done], return_counts=True), strict=True):
            shares.why[int(why)] += int(n)

    # --- frames that leave -----------------------------------------------------------------------------------------------------------------

    def _leave_nic(self, part: Slice, into: NDArray[Any]) -> None:
        """What the NIC has sent, as rows of OUTPUT_DTYPE with bytes of their own."""
        left, own = self.nic.outputs()
        rows = np.zeros(len(left), dtype=OUTPUT_DTYPE)
        rows["frame"] = into[left["frame"]] + part.start
        for name in ("offset", "caplen", "length", "mark", "priority", "egress"):
            rows[name] = left[name]
        rows["device"] = left["iface"]
        changed, copies = ((left["flags"] & flag) != 0 for flag in (NicOutput.CHANGED, NicOutput.COPY))
        rows["flags"] = changed * int(OutputFlag.OUTPUT_CHANGED) | copies * int(OutputFlag.OUTPUT_COPY)
        used = int((left["offset"] + left["caplen"])[changed].max()) if changed.any() else 0
        self._rows.append(rows)
        self._bytes.append(own[:used].copy())

    def _software(self, part: Slice, which: NDArray[Any], stopped: NDArray[Any]) -> NDArray[Any] | None:
        """Let the frames that missed go on where the NIC has stopped. Returns what was decided, if anybody wants it."""
        rows, given, moved = part.frames[which].copy(), part.memory, (stopped["flags"] & Flag.CHANGED) != 0
        if moved.any():
            given = np.concatenate([part.memory, self.nic.outputs()[1]])
            rows["offset"][moved] = stopped["offset"][moved] + len(part.memory)
        met = part.hooks[which] & 1 == 0
        rows["caplen"][met], rows["len"][met] = stopped["caplen"][met], stopped["length"][met]  # the NIC may have cut off what is behind the packet
        resumes = self.program.resumes(part.hooks[which], stopped["chain"], stopped["rule"], stopped["action"])
        resumes["conn"] = np.where(stopped["ct_state"] != 0, stopped["conn"], -1)
        resumes["state"] = np.where(stopped["ct_state"] & STATE_EST, State.ESTABLISHED, State.NEW)
        resumes["zone"], resumes["turns"] = stopped["zone_restore"], stopped["chains"]
        resumes["mark"], resumes["priority"] = stopped["skb_mark"], stopped["priority"]
        resumes["on"] = (stopped["chain"] != 0) | (stopped["rule"] != NO_RULE)
        wanted = {name: name in part.told for name in KINDS}
        wanted["decisions"] |= self.watch is not None
        answers = self.pipeline.process(given, rows, **wanted, outputs=part.outputs, resumes=resumes)
        for name, found in zip(KINDS, answers, strict=True):
            if name in part.told:
                part.told[name][which] = found
        if part.outputs:
            self._leave_software(part, given, which)
        decided: NDArray[Any] | None = answers[0]
        return decided

    def _leave_software(self, part: Slice, given: NDArray[np.uint8], which: NDArray[Any]) -> None:
        """given: the memory of the frames, and behind it the NIC's, which will not be there any more."""
        own = len(part.memory)
        rows, changed = self.pipeline.outputs()
        rows["frame"] = which[rows["frame"]] + part.start
        lent = ((rows["flags"] & OutputFlag.OUTPUT_CHANGED) == 0) & (rows["offset"] >= own)
        if lent.any():
            rows["offset"][lent] = rows["offset"][lent] - own + len(changed)
            rows["flags"][lent] |= int(OutputFlag.OUTPUT_CHANGED)
            changed = np.concatenate([changed, given[own:]])
        self._rows.append(rows)
        self._bytes.append(changed)

    # --- records ---------------------------------------------------------------------------------------------------------------------------

    def _tell(self, part: Slice, which: NDArray[Any], found: NDArray[Any]) -> None:
        """What the NIC has decided, as software would have told it."""
        keys = parse_batch(part.memory, part.frames[which], checksum=False, header_sum=False).array["key"]
        decided = self._decisions(found, keys)
        decided["verdict"] = [FINAL[Verdict(value)] for value in found["verdict"].tolist()]
        decided["reason"] = reasons_of(found)
        if "keys" in part.told:
            part.told["keys"][which] = keys
        if "decisions" in part.told:
            part.told["decisions"][which] = decided
        if "results" in part.told:
            results = np.zeros(len(which), dtype=RESULT_DTYPE)
            results["rule"], results["mark"], results["priority"] = found["rule"], found["skb_mark"], found["priority"]
            results["n_hits"], results["hit"][:, 0] = found["rule"] != NO_RULE, found["rule"]
            results["device"] = part.hooks[which] >> 1
            results["verdict"], results["reason"] = decided["verdict"], decided["reason"]
            results["tracked"], results["decision"] = (found["flags"] & Flag.CT) != 0, decided
            self._ends(found, results)
            part.told["results"][which] = results

    def _ends(self, found: NDArray[Any], results: NDArray[Any]) -> None:
        """Where each frame that was sent on has ended: by its last output that is no copy."""
        left, _ = self.nic.outputs()
        own = np.flatnonzero((left["flags"] & NicOutput.COPY) == 0)
        at = {int(left["frame"][i]): i for i in own.tolist()}
        for i, first in enumerate(found["first_output"].tolist()):
            last = at.get(int(left["frame"][first])) if found["n_outputs"][i] else None
            if last is not None:
                results["device"][i], results["egress"][i], results["hops"][i] = left["iface"][last], left["egress"][last], 1

    def _decisions(self, found: NDArray[Any], keys: NDArray[Any]) -> NDArray[Any]:
        """What a CT table has said of frames, with what software knows of their connections, which may have ended."""
        decided = np.zeros(len(found), dtype=DECISION_DTYPE)
        decided["conn"], decided["timeout"] = -1, -1
        decided["proto"], decided["family"] = keys["proto"], keys["family"]
        decided["dir"], decided["l4state"] = 0xFF, 0xFF
        served = (found["flags"] & Flag.CT) != 0
        decided["state"] = states_of(found)
        decided["offload"] = np.where(served, Offload.OFFLOAD_HARDWARE, Offload.OFFLOAD_NONE)
        decided["dir"][served] = np.where(found["ct_state"][served] & STATE_RPL, Dir.REPLY, Dir.ORIG)
        for name in ("conn", "zone", "mark"):
            decided[name][served] = found[name][served]
        for ordinal in np.unique(decided["conn"][served]).tolist():
            try:
                conn = self.tracker.conn(ordinal)[0]
            except ConfigError:  # it has ended, and its rules are about to go
                continue
            of_it = decided["conn"] == ordinal
            decided["status"][of_it], decided["timeout"][of_it] = conn["status"], conn["timeout"].astype(np.int32)
            decided["l4state"][of_it & (decided["proto"] == Proto.PROTO_TCP)] = conn["tcp"]["state"]
        return decided

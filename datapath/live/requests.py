"""What a client may ask of a node, and how it is done: each request a few short jobs, and what they found made into records afterwards.

Theory of operation: a request is an asynchronous generator of the parts of its answer; what it returns at last is marked by Done. Tables are gone
through one worker after the other, SLOTS slots a job, so that packets never wait for a large table, as the kernel's own listing does not hold its
table either.
Invariants: a listing has each connection that lives all the while once. A request that changes something is logged with who asked.
Not here: messages, clients and their limits (control), events (feed).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ctcore.errors import ConfigError
from ctcore.filter import ALL_LABELS, ALL_MARKS, Filter
from ctcore.tracker import ExpectationRow
from ctcore.types import Dir, Status
from datapath import fields
from datapath.live.expected import expectation_records
from datapath.live.feed import PART, Tap
from datapath.live.figures import NO_ROWS, Rates, counted_rows, figures, look
from datapath.live.message import Answer, Done, Message, RequestError
from datapath.live.node import LOG, Node
from datapath.live.offload_desk import OffloadDesk
from datapath.live.offloading import merged
from datapath.live.reevaluate import Trial
from datapath.live.shared import summed
from datapath.live.state_file import snapshot, write_state
from datapath.live.wanted import ALL, EVERYTHING, Wanted, label_of, status_bits, wanted_of
from datapath.live.wiring import doubts_of
from datapath.live.worker import Worker
from datapath.pipeline import rules_file
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import Ruleset

SLOTS = 1024  # a job looks at: some 0.2 ms, while a ring of 2048 frames fills in 2 ms at a million a second
FEW = 256  # connections a job changes one by one, each looked up by its tuple
LARGEST_RULES = 4 << 20  # bytes of a client's rules
MOST_TOP = 1000
LONGEST_LOOK = 60.0  # seconds
LEVELS = ("debug", "info", "warning", "error")
ESTABLISHED = ("keep", "reevaluate")

T = TypeVar("T")


class Peer(NamedTuple):
    """Who is at the other end, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


@dataclass
class Session:
    """What is remembered of one client. text: of the rules that it is sending."""

    peer: Peer
    text: list[str] = field(default_factory=list)
    size: int = 0


class Desk:
    """Does requests on one node."""

    def __init__(self, node: Node) -> None:
        self.node, self.tap, self.rates = node, Tap(), Rates()
        self.start = time.monotonic()
        self.listening: Callable[[], bool] = lambda: False
        self.others: Callable[[], Message] = dict  # what the server counts
        self._rules, self._saving = asyncio.Lock(), asyncio.Lock()
        self._looking = asyncio.Lock()
        self.known: dict[str, Callable[[Session, Message], Answer]] = {
            "list": self.listed, "delete": self.delete, "update": self.update, "flush": self.flush, "count": self.count, "counters": self.counters,
            "stats": self.stats, "top": self.top, "text": self.take_text, "rules": self.rules, "log": self.log,
            "save": self.save, "expectations": self.expectations, **OffloadDesk(self).known,
        }  # fmt: skip
        config = node.tracking
        self.hz, self.acct = config.hz, config.acct

    async def ask(self, job: Callable[[Node], T]) -> T:
        """Have a job done in the datapath, while all workers stand still. Raises RequestError if it stops."""
        return await _answer_of(self.node.ask(job))

    async def ask_one(self, worker: Worker, job: Callable[[Worker], T]) -> T:
        """The same of one worker, while the others work on."""
        return await _answer_of(worker.ask(job))

    async def ranges(self, job: Callable[[Worker, range], T], size: int | None = None) -> AsyncIterator[T]:
        """A job of its own for each range of slots of each worker, until all are done."""
        size = size or SLOTS
        for worker in self.node.workers:
            first, used = 0, 1
            while first < used:
                slots = range(first, first + size)
                done = worker.ask(lambda worker, slots=slots: (job(worker, slots), worker.pipeline.tracker.slots))  # type: ignore[misc]
                found, used = await _answer_of(done)
                yield found
                first += size

    def _records(self, conns: NDArray[Any]) -> list[Message]:
        """Parts of an answer."""
        return [{"conns": list(fields.conn_records(conns[start : start + PART], self.hz, self.acct))} for start in range(0, len(conns), PART)]

    # --- reading --------------------------------------------------------------------------------------------------------------------------

    async def listed(self, session: Session, request: Message) -> Answer:
        """The connections wanted, and the number of the event from which on changes are not in it, or not for certain."""
        wanted = wanted_of(request.get("which"))
        seq = await self.ask(lambda node: self.tap.seq(node.trackers))
        shown = 0
        async for conns in self.ranges(lambda worker, slots: worker.pipeline.tracker.select(wanted.filter, slots=slots)):
            chosen = conns[wanted.rest(conns)]
            shown += len(chosen)
            for part in self._records(chosen):
                yield part
        yield Done({"count": shown, "seq": seq})

    async def expectations(self, session: Session, request: Message) -> Answer:
        """What helpers expect."""
        first, used, shown = 0, 1, 0
        while first < used:
            rows, masters, used = await self.ask(partial(_expected, range(first, first + FEW)))
            shown += len(rows)
            if rows:
                yield {"expectations": list(expectation_records(rows, masters))}
            first += FEW
        yield Done({"count": shown})

    async def count(self, session: Session, request: Message) -> Answer:
        yield Done(await self.ask(lambda node: {"count": node.count, "max": node.tracking.capacity}))

    async def counters(self, session: Session, request: Message) -> Answer:
        yield Done({"counters": await self.ask(lambda node: summed(tracker.counters() for tracker in node.trackers))})

    async def stats(self, session: Session, request: Message) -> Answer:
        seen, events = await self.ask(lambda node: (look(node), self.tap.counters(node.trackers, self.listening())))
        yield Done({**figures(seen, self.node, time.monotonic() - self.start), "events": events, "control": self.others()})

    async def top(self, session: Session, request: Message) -> Answer:
        """The connections with the highest rates: since the last look, whoever took it, or over `seconds` if that is too long ago or too short."""
        most, seconds = _number(request, "most", 1, MOST_TOP, 20), _number(request, "seconds", 0.1, 10, 1.0)
        by = request.get("by", "bytes")
        if by not in ("packets", "bytes"):
            raise RequestError("by: expected packets or bytes")
        if not self.acct:
            raise RequestError("top: nothing is counted: expected conntrack.acct = true")
        wanted = wanted_of(request.get("which"))
        async with self._looking:
            if not seconds / 2 <= self.rates.age() <= LONGEST_LOOK:
                self.rates.since(*await self._look())
                await asyncio.sleep(seconds)
            rows, when = await self._look()
            span = when - self.rates.when
            packets, sizes = self.rates.since(rows, when)
        meant = np.arange(len(rows)) if wanted == EVERYTHING else np.flatnonzero(np.isin(rows["conn"], await self._ordinals(wanted)))
        best = meant[np.argsort(-(packets if by == "packets" else sizes)[meant], kind="stable")[: int(most)]]
        found = {record["conn"]: record for record in await self._by_ordinal(rows["conn"][best])}
        speeds = zip(rows["conn"][best].tolist(), packets[best].tolist(), sizes[best].tolist(), strict=True)
        shown = [{**found[conn], "packet_rate": packet_rate, "byte_rate": rate} for conn, packet_rate, rate in speeds if conn in found]
        whole = {"connections": len(rows), "packet_rate": float(packets.sum()), "byte_rate": float(sizes.sum())}
        offload = await self.ask(lambda node: merged(worker.offload.figures() for worker in node.workers if worker.offload is not None))
        yield Done({"top": shown, "seconds": span, **whole, "offload": offload or None})

    async def _look(self) -> tuple[NDArray[Any], float]:
        found = [NO_ROWS]
        async for rows in self.ranges(lambda worker, slots: counted_rows(worker.pipeline.tracker.select(ALL, slots=slots))):
            found.append(rows)
        rows = np.concatenate(found)
        return rows[np.argsort(rows["conn"], kind="stable")], time.monotonic()

    async def _ordinals(self, wanted: Wanted) -> NDArray[np.int64]:
        found = [np.zeros(0, dtype=np.int64)]
        async for conns in self.ranges(lambda worker, slots: worker.pipeline.tracker.select(wanted.filter, slots=slots)):
            found.append(conns["flow"]["id"][wanted.rest(conns), Dir.ORIG])
        return np.concatenate(found)

    async def _by_ordinal(self, ordinals: NDArray[np.int64]) -> list[Message]:
        """Records of those that still live."""
        found: list[Message] = []
        async for conns in self.ranges(lambda worker, slots: worker.pipeline.tracker.select(ALL, slots=slots)):
            found += fields.conn_records(conns[np.isin(conns["flow"]["id"][:, Dir.ORIG], ordinals)], self.hz, self.acct)
        return found

    # --- changing -------------------------------------------------------------------------------------------------------------------------

    def _changed(self, session: Session, what: str, **about: Any) -> None:
        facts = ", ".join(f"{name} {value}" for name, value in {**about, **session.peer._asdict()}.items())
        LOG.info(f"control: {what}: {facts}", extra={**session.peer._asdict(), **about})

    async def delete(self, session: Session, request: Message) -> Answer:
        """Those wanted go; they are in the answer as they were."""
        wanted, done = wanted_of(request.get("which")), 0
        async for conns in self.ranges(lambda worker, slots: _delete(worker, wanted, slots), SLOTS if wanted.simple else FEW):
            done += len(conns)
            for part in self._records(conns):
                yield part
        self._changed(session, "delete", connections=done)
        yield Done({"count": done})

    async def flush(self, session: Session, request: Message) -> Answer:
        """Those wanted go, all without `which`, and nobody is told which they were."""
        wanted, done = wanted_of(request.get("which")), 0
        if not wanted.simple:
            raise RequestError("flush: expected a `which` without `translated` and `l4state`; delete knows them")
        async for n in self.ranges(lambda worker, slots: worker.pipeline.tracker.delete(wanted.filter, slots=slots)):
            done += n
        self._changed(session, "flush", connections=done)
        yield Done({"count": done})

    async def update(self, session: Session, request: Message) -> Answer:
        """Those wanted change; they are in the answer as they are then."""
        wanted, change, done = wanted_of(request.get("which")), change_of(request.get("change")), 0
        async for conns in self.ranges(lambda worker, slots: _update(worker, wanted, change, slots), SLOTS if wanted.simple else FEW):
            done += len(conns)
            for part in self._records(conns):
                yield part
        self._changed(session, "update", connections=done)
        yield Done({"count": done})

    async def log(self, session: Session, request: Message) -> Answer:
        level = request.get("level")
        if level not in LEVELS:
            raise RequestError(f"level: expected one of {', '.join(LEVELS)}")
        before = logging.getLevelName(LOG.getEffectiveLevel()).lower()
        self._changed(session, f"log level {level}")
        LOG.setLevel(level.upper())
        yield Done({"level": level, "before": before})

    async def save(self, session: Session, request: Message) -> Answer:
        """Connections into the configured file, and into no other: who may command need not be who may write files."""
        path, start = self.node.config.state.file, time.monotonic()
        if path is None:
            raise RequestError("save: this node keeps no state: expected `file` in the section [state] of its configuration")
        async with self._saving:
            saved, conns = await self.ask(lambda node: (snapshot(node), node.pipeline.tracker.count))
            size = await _in_thread(lambda: write_state(path, saved))
        done = {"connections": conns, "bytes": size, "seconds": round(time.monotonic() - start, 3)}
        self._changed(session, "save", **done)
        yield Done({"file": path, **done})

    # --- rules ----------------------------------------------------------------------------------------------------------------------------

    async def take_text(self, session: Session, request: Message) -> Answer:
        """A piece of a rules file, behind those before it."""
        text = request.get("text")
        if not isinstance(text, str):
            raise RequestError("text: expected text")
        if session.size + len(text.encode()) > LARGEST_RULES:
            session.text, session.size = [], 0
            raise RequestError(f"text: more than {LARGEST_RULES} bytes of rules; what was sent is forgotten")
        session.text.append(text)
        session.size += len(text.encode())
        yield Done({"bytes": session.size})

    async def rules(self, session: Session, request: Message) -> Answer:
        """The text that was sent becomes the node's rules, or nothing changes."""
        text, name, established = "".join(session.text), request.get("name", "rules"), request.get("established", "keep")
        session.text, session.size = [], 0
        if not isinstance(name, str) or len(name) > 4096:
            raise RequestError("name: expected text, for messages")
        if established not in ESTABLISHED:
            raise RequestError(f"established: expected {' or '.join(ESTABLISHED)}")
        async with self._rules:
            ruleset, warnings = await _in_thread(lambda: _read(text, name))
            ruleset = self.node.called(ruleset)
            programs = await _in_thread(lambda: self.node.load_rules(ruleset))
            n = await self.ask(lambda node: node.take_rules(programs))
            unwanted = await self._reevaluate(ruleset) if established == "reevaluate" else 0
        self._changed(session, "rules", file=name, rules=n, established=established, deleted=unwanted)
        yield Done({"rules": n, "warnings": [*warnings, *doubts_of(self.node.config, ruleset)], "deleted": unwanted})

    async def _reevaluate(self, ruleset: Ruleset) -> int:
        """Delete what the rules would not let begin, and track all others again instead of having the flow table serve them."""
        names, routed = [iface.name for iface in self.node.config.iface], self.node.router is not None
        trial = await _in_thread(lambda: Trial(ruleset, self.node.pipeline.tracker.config, names, routed=routed))
        async for conns in self.ranges(lambda worker, slots: worker.pipeline.tracker.select(ALL, slots=slots)):
            await _in_thread(lambda conns=conns: trial.add(conns))  # type: ignore[misc]
        gone, deleted = np.array(trial.unwanted(), dtype=np.int64), 0
        async for n in self.ranges(lambda worker, slots: _delete_ordinals(worker, gone, slots), FEW):
            deleted += n
        await self.ask(_flush_flows)
        return deleted


async def _answer_of(done: Future[T]) -> T:
    """What a job found. Raises RequestError if the datapath stops, or a filter cannot be."""
    try:
        return await asyncio.wrap_future(done)
    except (RuntimeError, ConfigError) as error:
        raise RequestError(str(error)) from None


async def _in_thread(work: Callable[[], T]) -> T:
    """Something long, beside the loop that attends to clients. What is wrong with rules is a RequestError."""
    try:
        return await asyncio.get_running_loop().run_in_executor(None, work)
    except ConfigError as error:
        raise RequestError(str(error)) from None


def _read(text: str, name: str) -> tuple[Ruleset, list[str]]:
    found = Findings()
    ruleset = rules_file.parse(text, name, found)
    if found.errors:
        lines = [str(error) for error in found.in_order()]
        raise RequestError(lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""))
    return ruleset, found.warnings


# --- jobs -------------------------------------------------------------------------------------------------------------------------------


def _each(conns: NDArray[Any]) -> list[Filter]:
    return [Filter(original=key) for key in fields.split(conns["flow"]["key"][:, Dir.ORIG])]


def _expected(slots: range, node: Node) -> tuple[list[ExpectationRow], NDArray[Any], int]:
    """Helpers are the first worker's."""
    tracker = node.pipeline.tracker
    return *tracker.expected(slots=slots), tracker.expectation_slots


def _delete(worker: Worker, wanted: Wanted, slots: range) -> NDArray[Any]:
    tracker = worker.pipeline.tracker
    conns = tracker.select(wanted.filter, slots=slots)
    if wanted.simple:
        tracker.delete(wanted.filter, slots=slots)
        return conns
    conns = conns[wanted.rest(conns)]
    for each in _each(conns):
        tracker.delete(each)
    return conns


def _delete_ordinals(worker: Worker, gone: NDArray[np.int64], slots: range) -> int:
    tracker = worker.pipeline.tracker
    conns = tracker.select(ALL, slots=slots)
    return sum(tracker.delete(each) for each in _each(conns[np.isin(conns["flow"]["id"][:, 0], gone)]))


def _flush_flows(node: Node) -> None:
    for worker in node.workers:
        if worker.pipeline.flows is not None:
            worker.pipeline.flows.flush()


def _update(worker: Worker, wanted: Wanted, change: dict[str, Any], slots: range) -> NDArray[Any]:
    """Those that were changed, as they are then; one whose timeout became 0, as it was."""
    tracker = worker.pipeline.tracker
    before = tracker.select(wanted.filter, slots=slots)
    before = before[wanted.rest(before)]
    if "timeout" in change:
        before = before[(before["status"] & Status.FIXED_TIMEOUT) == 0]
    if wanted.simple:
        tracker.update(wanted.filter, slots=slots, **change)
    else:
        for each in _each(before):
            tracker.update(each, **change)
    if change.get("timeout") == 0:
        return before
    after = tracker.select(ALL, slots=slots)
    return after[np.isin(after["flow"]["id"][:, 0], before["flow"]["id"][:, 0])]


def change_of(given: Any) -> dict[str, Any]:
    """From a request's `change`: arguments of Tracker.update(). Raises RequestError."""
    if not isinstance(given, dict) or not given:
        raise RequestError("change: expected an object with mark, label, timeout or status")
    known = {"mark": ALL_MARKS, "mark_mask": ALL_MARKS, "timeout": 1 << 31}
    change: dict[str, Any] = {}
    for name, value in given.items():
        if name in known:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= known[name]:
                raise RequestError(f"change: {name}: expected a whole number from 0 to {known[name]}")
            change[name] = value
        elif name in ("label", "label_mask"):
            change[name] = label_of(f"change: {name}", value) & ALL_LABELS
        elif name == "status":
            change[name] = status_bits("change: status", value)
        else:
            raise RequestError(f"change: {str(name)[:40]!r}: expected mark, mark_mask, label, label_mask, timeout or status")
    return change


def _number(request: Message, name: str, least: float, most: float, default: float) -> float:
    value = request.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise RequestError(f"{name}: expected {least} to {most}")
    return value

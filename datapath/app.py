"""The composition root of replay: captures, the datapath and the files that are asked for, put together.

Not here: what a packet goes through (worker), records (fields), files (export), text for people (report).
Invariants: captures continue one another in one tracker, in the order given; whatever stops the reading, what was read before is tracked, written
and in the result, which names what stopped it; a file that cannot be written ends the replay with its own error (OutputError and its kin); packets
that nobody wants records of cost no Python object.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ctcore.config import Config
from ctcore.errors import CaptureError, CtmirrorError
from ctcore.nat_rules import NatPool
from ctcore.types import EVICTION_DTYPE, End, Reason, RewriteFlag, State, Verdict
from datapath import export, fields
from datapath.capture import PcapSource
from datapath.evidence import BAD, Evidence, Headers
from datapath.frame import LINK_ETHERNET
from datapath.interrupt import finished_first
from datapath.names import printable
from datapath.rule_text import helper_text
from datapath.tally import Tally
from datapath.worker import Pipeline
from datapath.zones import zone_text

if TYPE_CHECKING:
    from datapath.pipeline.rules import Hook, Ruleset

CHUNK = 1 << 14  # packets between two looks at the events
EVENTS_A_PACKET = 4
MANY_EVENTS = 1 << 14  # where only the summary wants them: taking a few at a time costs more than what they say
FIRST_EVICTIONS = 3
EVENTS = frozenset(("new", "update", "destroy"))
FRAGMENTS = ("ipfrag_high_thresh", "frag6_high_thresh", "ipfrag_max_dist")
SETTINGS = ("tcp_liberal", "tcp_loose", "tcp_max_retrans", "tcp_ignore_invalid_rst", "checksum", "acct", "max", "buckets", "hz", "seed", *FRAGMENTS)
Progress = Callable[[str, int, int], None]  # file, bytes done, bytes in all


@dataclass(frozen=True)
class RulesGiven:
    """Rules to go through. device: where packets arrive whose capture does not say; flowtable: whether established connections may pass them by;
    fixed: whether they all arrive at that hook, those as well of which the capture says that they went out."""

    ruleset: Ruleset
    name: str
    device: Hook | None = None
    flowtable: bool = True
    fixed: bool = False


@dataclass(frozen=True)
class RulesAtWork:
    """What rules did. counters: COUNT_DTYPE, in the order of the rules; flows: of the flow table, None without; lost: mirrored copies that
    did not leave, by reason; mirrored: those that did, by device; came: packets by the hook that they came to."""

    ruleset: Ruleset
    counters: np.ndarray
    flows: dict[str, int] | None
    lost: np.ndarray
    mirrored: dict[str, int]
    came: dict[Hook, int]


@dataclass(frozen=True)
class Tracking:
    """How packets are to be tracked. flags: the options that differ from the defaults, to be repeated in a command that is suggested; rules: if any,
    they say what is tracked."""

    config: Config = field(default_factory=Config)
    zone: int = 0
    clock: Literal["capture", "wall"] = "capture"
    flags: str = ""
    rules: RulesGiven | None = None

    def settings(self) -> dict[str, int | str]:
        """What was in force, by the names of the options. NAT rules and helpers, if any, are numbered in their order."""
        named = {name: int(getattr(self.config, name)) for name in SETTINGS}
        limits = {"zone_limit": self.config.zone_limit} if self.config.zone_limit else {}
        each = [("zone_limit", self.config.zone_limits), ("zone_reserve", self.config.zone_reserves)]
        limits |= {f"{name}_{zone}": number for name, numbers in each for zone, number in numbers.items()}
        rules = {f"{rule.kind} {i}": rule.text for i, rule in enumerate(self.config.nat)}
        helpers = {f"helper {i}": helper_text(helper) for i, helper in enumerate(self.config.helpers)}
        return {**named, "zone": zone_text(self.zone, self.config.zone_dir), **limits, **self.config.timeouts, **rules, **helpers}


@dataclass(frozen=True)
class Outputs:
    """Which files to write: names, or None. form: the format of the records, None for that of each file's ending; rules: of their counters."""

    packets: str | None = None
    conns: str | None = None
    events: str | None = None
    forwarded: str | None = None
    form: str | None = None
    rules: str | None = None

    def names(self) -> list[str]:
        return [name for name in (self.packets, self.conns, self.events, self.forwarded, self.rules) if name]


@dataclass
class Capture:
    """What was read of one capture. first: how many packets came before it."""

    name: str
    first: int
    format: str = ""
    links: Sequence[str] = ()
    packets: int = 0


@dataclass
class Evictions:
    """Who had to make way: how many, and the first of them, EVICTION_DTYPE[k]."""

    number: int = 0
    first: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=EVICTION_DTYPE))

    def add(self, evictions: np.ndarray) -> None:
        self.number += len(evictions)
        if len(self.first) < FIRST_EVICTIONS:
            self.first = np.concatenate([self.first, evictions[: FIRST_EVICTIONS - len(self.first)]])


@dataclass
class Replayed:
    """What a replay found. stats: Pipeline.summary(); pools: Tracker.nat_pools(); forwarded: the file of forwarded packets and how many are in it;
    gathered: fragments that were held, and left with the one that completed their datagram; stuck: packets that passed and could not be changed or
    cut up; clamped: packets written whose timestamps that file cannot hold; errors: what stopped the reading of a capture, a line each."""

    tracking: Tracking
    captures: list[Capture] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    tally: Tally | None = None
    events_lost: int = 0
    evictions: Evictions = field(default_factory=Evictions)
    pools: list[NatPool] = field(default_factory=list)
    forwarded: tuple[str, int] | None = None
    gathered: int = 0
    stuck: int = 0
    clamped: int = 0
    checksums: Evidence = field(default_factory=Evidence)
    headers: Headers = field(default_factory=Headers)
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    interrupted: bool = False
    rules: RulesAtWork | None = None
    nic: Any = None  # a commands.offloaded.Offloaded, where there was a NIC in front of the rules
    nic_flags: str = ""  # the options that said which, to be repeated in `offload why`, if that has them


def check_files(captures: Sequence[str], outputs: Outputs) -> None:
    """Refuse, before anything is read, what cannot work: captures none of which is there, an output named twice or over a capture.

    One among others that is not there is left to the replay, which goes on with the next as behind a damaged one.
    """
    missing: list[OSError] = []
    for name in captures:
        try:
            if name != export.STDOUT:
                _check_readable(name)
        except OSError as error:
            missing.append(error)
    if missing and len(missing) == len(captures):
        raise missing[0]
    seen: list[str] = []
    for name in outputs.names():
        if any(_same(name, other) for other in seen):
            raise CtmirrorError(f"{name}: expected a file of its own for each output")
        if any(_same(name, capture) for capture in captures if capture != export.STDOUT):
            raise CtmirrorError(f"{name}: would be written over the capture that is read")
        seen.append(name)


def _check_readable(name: str) -> None:
    """Raise OSError for what cannot be opened, without opening what would notice: a FIFO's writer would lose its reader, or none has come yet."""
    mode = os.stat(name).st_mode
    if stat.S_ISREG(mode):
        with open(name, "rb"):
            return
    if stat.S_ISDIR(mode) or not os.access(name, os.R_OK):
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EACCES
        raise OSError(code, os.strerror(code), name)


def _same(a: str, b: str) -> bool:
    """Whether writing both would spoil a file, which may not be there yet. Devices such as /dev/null take what they are given."""
    if export.STDOUT in (a, b):
        return a == b
    if os.path.exists(a) and os.path.exists(b):
        return os.path.isfile(a) and os.path.samefile(a, b)
    return os.path.realpath(a) == os.path.realpath(b)


def replay(
    captures: Sequence[str],
    tracking: Tracking,
    outputs: Outputs,
    *,
    summary: bool = True,
    progress: Progress | None = None,
    kind: Callable[..., Run] | None = None,
) -> Replayed:
    """Run captures through the datapath and write what is asked for. summary: whether connections are to be counted for people; kind: of run, where
    it is not the one that `tracking` says.
    """
    check_files(captures, outputs)
    with ExitStack() as stack:
        run = (kind or _kind_of_run(tracking))(stack, tracking, outputs, named=len(captures) > 1, summary=summary)
        start = perf_counter()
        try:
            for name in captures:
                run.capture(name, progress)
        except KeyboardInterrupt:
            run.result.interrupted = True
        run.finish()
        run.result.seconds = perf_counter() - start
        return run.result


def _kind_of_run(tracking: Tracking) -> type[Run]:
    if tracking.rules is None:
        return Run
    from datapath.ruled_run import RuledRun

    return RuledRun


class Run:
    """One replay while it lasts: the pipeline, the writers, and the result as it grows."""

    chunk = CHUNK

    def __init__(self, stack: ExitStack, tracking: Tracking, outputs: Outputs, *, named: bool, summary: bool) -> None:
        self.outputs, self.named = outputs, named
        self.config = with_events(tracking.config, everything=bool(outputs.events), ends=bool(outputs.conns) or summary)
        self.result = Replayed(replace(tracking, config=self.config), tally=Tally(self.config) if summary else None)
        self.pipeline = self.make_pipeline(tracking)
        self.writers = {kind: _open(stack, kind, name, outputs.form) for kind, name in _kinds(outputs) if name}
        self.stack = stack
        self.sink: Any = None
        self.detailed = bool(outputs.packets or outputs.forwarded)

    def make_pipeline(self, tracking: Tracking) -> Any:
        return Pipeline(self.config, zone=tracking.zone, clock=tracking.clock)

    def read(self, source: PcapSource) -> tuple[Any, np.ndarray]:
        """The next chunk, which has been through the pipeline unless details are asked for."""
        return source.read(self.chunk) if self.detailed else self.pipeline.replay(source, self.chunk)

    def capture(self, name: str, progress: Progress | None) -> None:
        """Replay one capture to its end, or to where it is damaged."""
        facts = Capture(name, sum(capture.packets for capture in self.result.captures))
        self.result.captures.append(facts)
        try:
            with PcapSource(name) as source:
                self._sink_for(source)
                while True:
                    memory, frames = self.read(source)
                    if not len(frames):
                        break
                    with finished_first():
                        self.work(facts, memory, frames)
                        if self.writers or self.pipeline.tracker.events_waiting >= MANY_EVENTS:
                            self._drain()
                    facts.format, facts.links = source.format, sorted(source.links)
                    if progress:
                        progress(name, source.position, source.size or 0)
        except CaptureError as error:
            self.result.errors.append(str(error))

    def _sink_for(self, source: PcapSource) -> None:
        """The file of forwarded packets is opened with the first capture, whose link type it takes."""
        if self.outputs.forwarded and self.sink is None:
            from datapath.sink import PcapSink

            link = LINK_ETHERNET if source.link is None else source.link
            self.sink = self.stack.enter_context(PcapSink(self.outputs.forwarded, link=link, **self.options_of_sink()))

    def options_of_sink(self) -> dict[str, Any]:
        return {}

    def work(self, facts: Capture, memory: Any, frames: np.ndarray) -> None:
        """What is to be told of a chunk."""
        first, file = facts.packets, printable(facts.name) if self.named else None
        told: Any = None
        if self.detailed:
            told = self.pipeline.process(memory, frames, keys=True, rewrites=True)
        facts.packets += len(frames)  # at once: whatever is stopped from here on, they are tracked
        if "packets" in self.writers:
            decisions, keys, rewrites = told
            records = fields.packet_records(frames, decisions, keys, first, self.config.hz, file)
            self.writers["packets"].write(fields.translated(records, keys, rewrites))
        if self.sink is not None:
            self._forward((memory, frames), told, first, file)
        if self.result.tally:
            self.result.checksums.look(memory, frames, sum(self.pipeline.count(reason) for reason in BAD))

    def _forward(self, chunk: tuple[Any, np.ndarray], told: tuple[np.ndarray, ...], first: int, file: str | None) -> None:
        """Write what leaves. told: decisions, keys and rewrites; first: the number of the chunk's first packet in its capture; file: its name, where
        there are several.
        """
        decisions, keys, rewrites = told
        memory, frames, rows = self.pipeline.leaving(*chunk, decisions, rewrites, self.pipeline.tracker.edits())
        gone = set(rows.tolist())
        self.result.gathered += sum(len(one.parts) - 1 for one in self.pipeline.datagrams() if one.row in gone)
        self.result.stuck += int(np.count_nonzero(decisions["verdict"] == Verdict.ACCEPT)) - len(gone)
        said = None
        if self.sink.format == "pcapng":
            changes = {} if rewrites is None else dict(translations(keys[rows], rewrites[rows]))
            judged = comments(decisions[rows], (first + rows).tolist(), self.config.hz, file)
            said = [line + changes.get(i, "") for i, line in enumerate(judged)]
        self.sink.write(memory, frames, comments=said)
        self.result.forwarded, self.result.clamped = (self.outputs.forwarded or "", self.sink.packets), self.sink.clamped

    def _drain(self) -> None:
        """Take the events of the last packets out of the buffer."""
        if not self.config.events:
            return
        events, evictions = self.pipeline.tracker.events(), self.pipeline.tracker.evictions()
        self.result.evictions.add(evictions)
        if "events" in self.writers:
            self.writers["events"].write(self.told(fields.event_records(events, self.config.hz, self.config.acct, evictions)))
        self.ended(fields.destroyed(events))

    def ended(self, ended: np.ndarray) -> None:
        """Connections that are no more: EVENT_DTYPE[n]."""
        if "conns" in self.writers:
            records = fields.conn_records(ended["conn"], self.config.hz, self.config.acct, ended["end"], ended["time"])
            self.writers["conns"].write(self.told(records))
        if self.result.tally:
            self.result.tally.add(self.whole(ended["conn"]), ended["end"], ended["time"])

    def told(self, records: Iterator[fields.Record]) -> Iterator[fields.Record]:
        """Records of connections and events, with what a kind of run has to add."""
        return records

    def whole(self, conns: np.ndarray) -> np.ndarray:
        """Connections (CONN_DTYPE[n]) with all that was counted of them in both directions together."""
        return conns

    def finish(self) -> None:
        """Connections that have expired by the last packet's time end; the others are what is alive."""
        tracker = self.pipeline.tracker
        tracker.expire(tracker.now)
        self._drain()
        if "conns" in self.writers or self.result.tally:
            alive = tracker.conns()
            if "conns" in self.writers:
                self.writers["conns"].write(self.told(fields.conn_records(alive, self.config.hz, self.config.acct)))
            if self.result.tally:
                now = np.full(len(alive), tracker.now, dtype=np.int64)
                self.result.tally.add(self.whole(alive), np.full(len(alive), End.ALIVE, dtype=np.uint8), now)
        self.result.stats, self.result.counters, self.result.pools = self.pipeline.summary(), tracker.counters(), tracker.nat_pools()
        self.result.events_lost = tracker.events_lost


def _kinds(outputs: Outputs) -> Iterable[tuple[str, str | None]]:
    return ("packets", outputs.packets), ("conns", outputs.conns), ("events", outputs.events), ("rules", outputs.rules)


def _open(stack: ExitStack, kind: str, name: str, form: str | None) -> export.Writer:
    writer = export.open_writer(kind, name, form)
    stack.callback(writer.close)
    return writer


def with_events(config: Config, *, everything: bool, ends: bool) -> Config:
    """The settings with the events the outputs need, and a buffer that loses none between two looks at it.

    Time may jump, so that every connection ends in one chunk; beside that, a packet has no more to tell than the end of an old connection, and the
    beginning, change and end of its own.
    """
    events = EVENTS if everything else frozenset(("destroy",)) if ends else frozenset()
    room = config.capacity + EVENTS_A_PACKET * CHUNK + MANY_EVENTS if events else config.event_buffer
    return replace(config, events=events, event_buffer=max(config.event_buffer, room), eviction_buffer=max(config.eviction_buffer, room))


def translations(keys: np.ndarray, rewrites: np.ndarray) -> Iterator[tuple[int, str]]:
    """(row, what a comment says of its translation): " snat 10.0.0.2:40000 -> 192.0.2.1:40000", and the same of the destination.

    keys: KEY_DTYPE[n]; rewrites: REWRITE_DTYPE[n]. Rows that stay as they are have none.
    """
    for row, out in fields.outs(keys, rewrites):
        came = fields.endpoints(keys[row].tobytes())
        parts = []
        for flag, name, end, port in (
            (RewriteFlag.REWRITE_SRC, "snat", "src", "sport"),
            (RewriteFlag.REWRITE_DST, "dnat", "dst", "dport"),
        ):
            if int(rewrites["flags"][row]) & flag:
                parts.append(f" {name} {end_text(came, end, port)} -> {end_text(out, end, port)}")
        yield row, "".join(parts)


def end_text(ends: fields.Record, end: str, port: str) -> str:
    """One end of a tuple: address and port, or what the protocol has for it."""
    address = ends[end]
    if ends.get(port) is not None:
        return f"[{address}]:{ends[port]}" if ":" in address else f"{address}:{ends[port]}"
    return (
        f"{address} id {ends['id']}" if ends.get("id") is not None else f"{address} key {ends['key']}" if "key" in ends and end == "dst" else address
    )


def comments(decisions: np.ndarray, numbers: Sequence[int], hz: int, file: str | None = None) -> Iterable[str]:
    """A line for each packet's decision, as Wireshark shows it: which packet, what, where to, which connection, and why.

    numbers: the packets' numbers in their capture, which are not those in the file that is written; file: the capture's name, if there are several.
    """
    names = ("state", "dir", "proto", "l4state", "timeout", "conn", "status", "reason")
    columns = (decisions[name].tolist() for name in names)
    of = f" of {file}" if file else ""
    for number, state, direction, proto, l4state, timeout, conn, status, reason in zip(numbers, *columns, strict=True):
        parts = [f"#{number}{of} ct", fields.STATE_NAMES[State(state)], fields.DIR_NAMES.get(direction), fields.l4state_name(proto, l4state)]
        parts += [f"{fields.seconds_text(timeout, hz)}s" if timeout >= 0 else None, f"conn {conn}" if conn >= 0 else None]
        parts += [f"[{' '.join(fields.status_names(status))}]" if status else None, f"reason {fields.REASON_NAMES[Reason(reason)]}"]
        yield " ".join(part for part in parts if part)

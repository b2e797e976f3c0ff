"""A replay through rules: the same captures, files and result as app's, with a pipeline of rules in between.

Not here: what rules do (pipeline), where packets arrive (hooks), what is told to people (report).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from ctcore.config import Config
from ctcore.types import Reason
from datapath import fields
from datapath.app import CHUNK, Capture, Outputs, RulesAtWork, RulesGiven, Run, Tracking, comments
from datapath.capture import PcapSource
from datapath.evidence import BAD
from datapath.frame import FRAME_DTYPE
from datapath.hooks import Arrivals
from datapath.names import printable
from datapath.outgoing import outgoing
from datapath.pipeline.outputs import OutputFlag
from datapath.pipeline.rules import Hook, Rule, Ruleset
from datapath.pipeline.tc_print import rule_line
from datapath.rewrite import copied
from datapath.ruled import RulePipeline
from datapath.wire import parse_batch


def pipeline_of(rules: RulesGiven, config: Config, *, flowtable: bool | None = None) -> RulePipeline:
    """A pipeline of rules as they are given. flowtable: None: as is given, too."""
    devices = (rules.device.device,) if rules.device else ()
    return RulePipeline(rules.ruleset, config, devices=devices, flowtable=rules.flowtable if flowtable is None else flowtable)


def arrivals_in(rules: RulesGiven, source: PcapSource, memory: Any, frames: np.ndarray) -> tuple[tuple[Hook, ...], np.ndarray]:
    """Where packets of a chunk come to: hooks, and the frames with numbers of these for interfaces.

    The first hooks are those of interfaces, the others those of what went out at them; who has no packets in this chunk needs no hook yet. Raises
    ConfigError if nobody says where an interface's packets come to.
    """
    names = source.ifaces
    left = outgoing(memory, frames, blocks=source.format.startswith("pcapng"))
    if left.any():
        frames = frames.copy()
        frames["iface"][left] += len(names)
    finder = Arrivals(rules.ruleset, printable(source.name), rules.device, fixed=rules.fixed)
    used = np.unique(frames["iface"]).tolist()
    hooks = {i: finder.hook(names[i % len(names)], names, out=i >= len(names)) for i in used}
    anywhere = next(iter(hooks.values()))
    return tuple(hooks.get(i, anywhere) for i in range(used[-1] + 1)), frames


class RuledRun(Run):
    """One replay through rules while it lasts."""

    pipeline: Any

    def __init__(self, stack: ExitStack, tracking: Tracking, outputs: Outputs, *, named: bool, summary: bool) -> None:
        super().__init__(stack, tracking, outputs, named=named, summary=summary)
        assert tracking.rules is not None
        self.rules = tracking.rules
        self.names = [place_of(rule) for rule in self.rules.ruleset.rules]
        self.arrived: tuple[Hook, ...] = ()
        self.came: dict[Hook, int] = {}

    def make_pipeline(self, tracking: Tracking) -> Any:
        assert tracking.rules is not None
        return pipeline_of(tracking.rules, self.config)

    def read(self, source: Any) -> tuple[Any, np.ndarray]:
        memory, frames = source.read(self.chunk)
        if len(frames):
            memory, frames = self.arrived_as(memory, self._arrive(source, memory, frames))
            if not self.detailed:
                self.pipeline.process(memory, frames, decisions=False)
        return memory, frames

    def arrived_as(self, memory: Any, frames: np.ndarray) -> tuple[Any, np.ndarray]:
        """What packets are taken for."""
        return memory, frames

    def _arrive(self, source: Any, memory: Any, frames: np.ndarray) -> np.ndarray:
        arrived, frames = arrivals_in(self.rules, source, memory, frames)
        for hook, packets in zip(arrived, np.bincount(frames["iface"], minlength=len(arrived)).tolist(), strict=True):
            self.came[hook] = self.came.get(hook, 0) + packets
        if arrived != self.arrived:
            self.arrived = arrived
            self.pipeline.arrive(arrived)
        return frames

    def options_of_sink(self) -> dict[str, Any]:
        return {"ifaces": dict(enumerate(self.pipeline.program.devices))}

    def work(self, facts: Capture, memory: Any, frames: np.ndarray) -> None:
        first, file = facts.packets, printable(facts.name) if self.named else None
        if self.detailed:
            decisions, keys, results = self.pipeline.process(memory, frames, keys=True, results=True, outputs=True)
        facts.packets += len(frames)  # at once: whatever is stopped from here on, they are tracked
        if self.detailed:
            left = leaving(self.pipeline, memory, frames)
            if "packets" in self.writers:
                records = fields.packet_records(frames, decisions, keys, first, self.config.hz, file)
                outs = dict(outs_of(left, keys, results))
                went = Ways(results, outs, mirrored_of(left, self.pipeline.program.devices), self.pipeline.program.devices, self.names)
                self.writers["packets"].write(with_ways(records, went))
            if self.sink is not None:
                self._write(left, decisions, results, first, file)
        if self.result.tally:
            self.result.checksums.look(memory, frames, sum(self.pipeline.count(reason) for reason in BAD))
            self.result.headers.look(memory, frames)

    def _write(self, left: tuple[Any, np.ndarray, np.ndarray], decisions: np.ndarray, results: np.ndarray, first: int, file: str | None) -> None:
        memory, frames, rows = left
        row, said = rows["frame"], None
        if self.sink.format == "pcapng":
            devices = self.pipeline.program.devices
            judged = comments(decisions[row], (first + row.astype(np.int64)).tolist(), self.config.hz, file)
            copies = (rows["flags"] & OutputFlag.OUTPUT_COPY != 0).tolist()
            ends = [f" to {devices[device]}{' (a copy)' if copy else ''}" for device, copy in zip(rows["device"].tolist(), copies, strict=True)]
            said = [line + end for line, end in zip(judged, ends, strict=True)]
        self.sink.write(memory, frames, comments=said)
        self.result.forwarded, self.result.clamped = (self.outputs.forwarded or "", self.sink.packets), self.sink.clamped

    def finish(self) -> None:
        super().finish()
        counters, walker = self.pipeline.counters(), self.pipeline.walker
        flows = self.pipeline.flows.counters() if self.pipeline.flows is not None else None
        self.result.rules = RulesAtWork(self.rules.ruleset, counters, flows, walker.lost(), walker.mirrored(), self.came)
        if "rules" in self.writers:
            self.writers["rules"].write(rule_records(self.rules.ruleset, counters, self.in_hardware()))

    def in_hardware(self) -> Collection[int]:
        """Numbers of the rules that a NIC carries out."""
        return ()


# --- what became of packets -----------------------------------------------------------------------------------------------------------


NEVER_ASKED = 0xFF  # no reason has this number
PORTS = 4  # bytes
Left = tuple[Any, np.ndarray, np.ndarray]


def leaving(pipeline: RulePipeline, memory: Any, frames: np.ndarray) -> Left:
    """What left because of the last process(): memory, frames whose `iface` is the device, and the rows of OUTPUT_DTYPE."""
    rows, changed = pipeline.outputs()
    out = np.zeros(len(rows), dtype=FRAME_DTYPE)
    out["ts"], out["link"] = frames["ts"][rows["frame"]], frames["link"][rows["frame"]]
    out["offset"], out["caplen"], out["len"], out["iface"] = rows["offset"], rows["caplen"], rows["length"], rows["device"]
    moved = (rows["flags"] & OutputFlag.OUTPUT_CHANGED) != 0
    kept, laid = copied(memory, out[~moved])
    out["offset"][~moved] = laid["offset"] + len(changed)
    return np.concatenate([changed, kept]), out, rows


def outs_of(left: Left, keys: np.ndarray, results: np.ndarray) -> Iterator[tuple[int, fields.Record]]:
    """(row, what the packet leaves with) of those whose tuple is another one where they ended."""
    memory, frames, rows = left
    last = np.flatnonzero((rows["device"] == results["device"][rows["frame"]]) & (rows["flags"] & OutputFlag.OUTPUT_COPY == 0))
    last = last[np.unique(rows["frame"][last], return_index=True)[1]]  # of a datagram in pieces the first, which has the transport header
    if not len(last):
        return
    came = keys[rows["frame"][last]]
    gone = _tuples(memory, frames[last], came)
    differs = np.zeros(len(last), dtype=bool)
    for name in ("src", "dst", "sport", "dport"):
        differs |= (gone[name] != came[name]).reshape(len(last), -1).any(axis=1)
    for i in np.flatnonzero(differs & (gone["family"] != 0)).tolist():
        ends = fields.endpoints(gone[i].tobytes())
        yield int(rows["frame"][last[i]]), {name: ends[name] for name in fields.OUT_NAMES if name in ends}


def _tuples(memory: Any, frames: np.ndarray, came: np.ndarray) -> np.ndarray:
    """The tuples of frames that leave: KEY_DTYPE[n]. came: those they came with, which have no ports where a fragment was not put together."""
    gone = parse_batch(memory, frames, checksum=False, at_hook=True)
    keys = gone.array["key"].copy()
    for row in np.flatnonzero(gone.array["reason"] == Reason.R_FRAGMENT).tolist():
        ports = came["sport"][row], came["dport"][row]
        head = gone.l4_bytes(row)[:PORTS]
        if keys["proto"][row] in fields.WITH_PORTS and any(ports) and len(head) == PORTS:
            ports = int.from_bytes(head[:2], "big"), int.from_bytes(head[2:], "big")
        keys["sport"][row], keys["dport"][row] = ports
    return keys


def mirrored_of(left: Left, devices: Sequence[str]) -> dict[int, list[str]]:
    """The devices at which copies of a packet left, by row, each once and in the order in which they did."""
    rows = left[2]
    found: dict[int, list[str]] = {}
    copies = rows[(rows["flags"] & OutputFlag.OUTPUT_COPY) != 0]
    for row, device in zip(copies["frame"].tolist(), copies["device"].tolist(), strict=True):
        there = found.setdefault(row, [])
        if devices[device] not in there:
            there.append(devices[device])
    return found


class Ways(NamedTuple):
    """What became of a chunk's packets. results: RESULT_DTYPE[n]; outs, mirrored: by row; devices, rules: their names."""

    results: np.ndarray
    outs: dict[int, fields.Record]
    mirrored: dict[int, list[str]]
    devices: Sequence[str]
    rules: Sequence[str]


def with_ways(records: Iterator[fields.Record], ways: Ways) -> Iterator[fields.Record]:
    """Records with what the last `ct` said, where the packet went, and the last rule that matched: nobody behind it has had a say."""
    results = ways.results
    width = results["hit"].shape[1]
    said = np.where(results["tracked"], results["decision"]["reason"], NEVER_ASKED).tolist()
    columns = (results[name].tolist() for name in ("device", "verdict", "n_hits", "hit"))
    for i, (record, ct, device, verdict, n_hits, hit) in enumerate(zip(records, said, *columns, strict=True)):
        record["out"] = ways.outs.get(i)
        record["ct_reason"] = None if ct == NEVER_ASKED else fields.REASON_NAMES[ct]
        record["to"] = ways.devices[device] if verdict == fields.Verdict.ACCEPT else None
        record["mirrored"] = ways.mirrored.get(i, [])
        record["rule"] = ways.rules[hit[min(n_hits, width) - 1]] if n_hits else None
        yield record


def records_of(captures: Sequence[str], tracking: Tracking) -> Iterator[tuple[tuple[int, int], fields.Record]]:
    """The packet records of captures that continue one another, as replay --rules --packets writes them, each with its capture's and its own number.

    Raises CaptureError where a capture is damaged, ConfigError if nobody says where its packets arrive.
    """
    rules = tracking.rules
    assert rules is not None
    pipeline, names = pipeline_of(rules, tracking.config), [place_of(rule) for rule in rules.ruleset.rules]
    for k, name in enumerate(captures):
        first, file = 0, printable(name) if len(captures) > 1 else None
        with PcapSource(name) as source:
            while len((chunk := source.read(CHUNK))[1]):
                memory, frames = chunk
                hooks, frames = arrivals_in(rules, source, memory, frames)
                pipeline.arrive(hooks)
                decisions, keys, results = pipeline.process(memory, frames, keys=True, results=True, outputs=True)
                left = leaving(pipeline, memory, frames)
                outs = dict(outs_of(left, keys, results))
                records = fields.packet_records(frames, decisions, keys, first, tracking.config.hz, file)
                devices = pipeline.program.devices
                for record in with_ways(records, Ways(results, outs, mirrored_of(left, devices), devices, names)):
                    yield (k, record["i"]), record
                first += len(frames)


def rule_records(ruleset: Ruleset, counters: np.ndarray, in_hardware: Collection[int]) -> Iterator[fields.Record]:
    """A record for each rule, in their order in the file: where it hangs, what it says, what it has counted.

    counters: COUNT_DTYPE, in the order of the rules; in_hardware: numbers of those that a NIC carries out. `last` is None where nothing matched.
    """
    for i, rule in enumerate(ruleset.rules):
        packets, size, last, drops, overlimits = counters[i].item()
        hook = rule.hook
        where = {"device": None, "direction": None} if hook.block is not None else {"device": hook.device, "direction": hook.direction}
        yield {
            "rule": place_of(rule), **where, "block": hook.block, "chain": rule.chain, "prio": rule.prio, "handle": rule.handle,
            "tc": rule_line(rule), "skip_sw": rule.skip_sw, "skip_hw": rule.skip_hw, "in_hw": i in in_hardware,
            "packets": packets, "bytes": size, "drops": drops, "overlimits": overlimits, "last": last if packets else None,
        }  # fmt: skip


def place_of(rule: Rule) -> str:
    """A rule as records call it: file and line."""
    return f"{printable(rule.place.file)}:{rule.place.line}"

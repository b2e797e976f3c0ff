"""Many traces: blocks of them under one setting each, what differs shrunk and saved, and the summary.

Invariants: as long as the generators are the same, a seed, a block and a number name the same trace; every packet that was shown is counted.
Not here: what a trace consists of (plan).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ctcore.reasons import NAMES, REASONS
from datapath import fields
from datapath.scenario import text
from datapath.scenario.steps import Step
from pcap_tests.fuzz_kernel import plan, plan_nat
from pcap_tests.fuzz_kernel.draft import Draft, Settings, Watcher
from pcap_tests.fuzz_kernel.judge import Judge, Judged
from pcap_tests.fuzz_kernel.shrink import Shrinker, plainer_settings, scenario_of

MOST_SHRUNK = 5  # differing traces; the others are counted


class Plan(NamedTuple):
    """What traces are about. settings_of: of a block, from seed and block; trace: from seed, block and number."""

    settings_of: Callable[[int, int], Settings]
    trace: Callable[..., Draft]
    size: int  # traces under one setting: making a namespace with its probes takes as long as many of them


PLANS = {"plain": Plan(plan.settings_of, plan.trace, 200), "nat": Plan(plan_nat.settings_of, plan_nat.trace, 50)}


@dataclass
class Tally:
    """What was judged so far."""

    traces: int = 0
    packets: int = 0  # shown to the kernel
    unshown: int = 0
    differing: int = 0  # traces
    seconds: float = 0.0
    settings: Counter[str] = field(default_factory=Counter)
    protocols: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, settings: Settings, judged: Judged) -> None:
        self.traces += 1
        ours = judged.ours[judged.shown]
        self.packets += len(ours)
        self.unshown += len(judged.ours) - len(ours)
        self.differing += bool(judged.differences)
        config = settings.config
        self.settings[f"liberal {config.tcp_liberal:d} loose {config.tcp_loose:d} checksum {config.checksum:d}"] += len(ours)
        for family, proto in zip(ours["family"].tolist(), ours["proto"].tolist(), strict=True):
            self.protocols[f"ipv{family} {fields.proto_name(proto)}" if family else "no tuple"] += 1
        self.states.update(fields.STATE_NAMES[state] for state in ours["state"].tolist())
        self.reasons.update(NAMES[reason] for reason in ours["reason"].tolist())


@dataclass
class Campaign:
    """seed: of all traces; folder: where scenarios of differing ones are written; size: traces under one setting, None: as many as the plan says;
    say: takes lines for people; plan: what the traces are about."""

    seed: int
    folder: Path
    size: int | None = None
    say: Callable[[str], None] = print
    plan: Plan = PLANS["plain"]
    tally: Tally = field(default_factory=Tally)

    def run(self, *, traces: int | None = None, seconds: float | None = None, slow: bool = True) -> Tally:
        """Judge so many traces, or for so long; slow: also such as take their time."""
        start = time.monotonic()
        block = 0
        while (traces is None or self.tally.traces < traces) and (seconds is None or time.monotonic() - start < seconds):
            self.block(block, self.block_size if traces is None else min(self.block_size, traces - self.tally.traces), slow=slow)
            self.tally.seconds = time.monotonic() - start
            block += 1
        return self.tally

    @property
    def block_size(self) -> int:
        return self.size or self.plan.size

    def block(self, block: int, traces: int, *, slow: bool) -> None:
        settings = self.plan.settings_of(self.seed, block)
        watcher = Watcher(settings)
        with Judge(settings) as judge:
            for number in range(traces):
                draft = self.plan.trace(self.seed, block, number, watcher, slow=slow and number == self.block_size // 2)
                judged = judge.go_on(draft.steps, draft.builder.hosts, draft.builder.frames)
                self.tally.add(settings, judged)
                if judged.differences:
                    self.differing(judge, tuple(draft.steps), judged, f"seed {self.seed} block {block} trace {number}")
                    judge.lockstep.reset()  # ordinals may have come apart

    def differing(self, judge: Judge, steps: tuple[Step, ...], judged: Judged, where: str) -> None:
        """Shrink, save and print."""
        if self.tally.differing > MOST_SHRUNK:
            self.say(f"{where}: differs at packet {judged.differences[0].i}, too")
            return
        shorter = Shrinker(judge).shrink(steps)
        settings = plainer_settings(shorter, judge.settings)
        with Judge(settings) as last:
            again = last.judge(shorter)
            hz = last.oracle.config.hz
        if not again.differences:  # not to be had twice: what was seen the first time is what there is to show
            shorter, settings, again = steps[: judged.differences[0].i + 1], judge.settings, from_zero(judged)
            where += ", only once"
        opinions = opinions_of(again)
        scenario = scenario_of(shorter, settings, again, hz, (where, *opinions))
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / (where.replace(",", "").replace(" ", "-") + ".ct")
        path.write_text(text.format(scenario))
        self.say(f"{where}: {path}\n{text.format(scenario)}")


def from_zero(judged: Judged) -> Judged:
    """With the ordinals of a trace that had the table to itself."""
    theirs = judged.theirs.copy()
    conns = theirs["conn"]
    conns[conns >= 0] -= min(conns[conns >= 0], default=0)
    return replace(judged, theirs=theirs)


def opinions_of(judged: Judged) -> tuple[str, ...]:
    """Both opinions on the first packet that differs, a line for each field."""
    first = judged.differences[0]
    reason = NAMES[int(judged.ours[first.i]["reason"])]
    lines = [f"packet {first.i}: our reason is {reason}; the kernel says: {'; '.join(judged.said[first.i]) or 'nothing'}"]
    lines += [f"  {name}: ours {ours}, the kernel's {theirs}" for name, (ours, theirs) in first.fields.items()]
    return tuple(lines)


def summary(seed: int, tally: Tally) -> list[str]:
    """Lines for people. The first one says it all."""
    rate = tally.packets / tally.seconds if tally.seconds else 0
    head = (
        f"seed {seed}: {tally.traces:,} traces, {tally.packets:,} packets in {tally.seconds:.0f} s, {rate:,.0f} packets/s, "
        f"{tally.unshown:,} not shown; {tally.differing} differing traces"
    )
    never = [reason.name for reason in REASONS if reason.name not in tally.reasons]
    parts = {"settings": tally.settings, "protocols": tally.protocols, "states": tally.states, "our reasons": tally.reasons}
    lines = [f"{name}: " + ", ".join(f"{key} {count:,}" for key, count in counter.most_common()) for name, counter in parts.items()]
    return [head, *lines, "reasons never given: " + (", ".join(never) or "none")]

"""The shortest trace that engine and kernel still differ on, and its scenario.

Theory of operation: what follows the first difference is cut off; then pieces are left out as long as a difference remains (delta debugging); then
each step, the numbers of each connection and the settings are made plainer, one thing at a time.
Invariant: what comes out differs, each time it was judged.
Not here: judging (judge).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from ctcore.config import Config
from ctcore.types import State, Verdict
from datapath import fields as records
from datapath.scenario.steps import SETTINGS, Expect, Icmp, Ip, Packet, Scenario, ScenarioError, Step, Tcp
from pcap_tests.fuzz_kernel.draft import Settings
from pcap_tests.fuzz_kernel.judge import Judge, Judged

PATIENCE = 60.0  # seconds; a trace with pauses takes long to shrink
Steps = tuple[Step, ...]
Differs = Callable[[Sequence[Step]], Judged | None]


class Shrinker:
    """Shrinks traces that differ by these settings."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.until = time.monotonic() + PATIENCE

    def differs(self, steps: Steps) -> bool:
        return bool(steps) and time.monotonic() < self.until and first_difference(self.judge, steps) is not None

    def shrink(self, steps: Steps) -> Steps:
        """The same steps if they do not differ once more."""
        first = first_difference(self.judge, steps)
        if first is None:
            return steps
        steps = self.thin(steps[: first + 1])
        return self.thin(self.plainer(steps))

    def thin(self, steps: Steps) -> Steps:
        """Leave out as many steps as can be: halves, quarters, ... single ones."""
        size = max(1, len(steps) // 2)
        while True:
            at, before = 0, len(steps)
            while at < len(steps):
                fewer = without(steps, range(at, min(at + size, len(steps))))
                if self.differs(fewer):
                    steps = fewer
                else:
                    at += size
            if size == 1 and len(steps) == before:
                return steps
            size = max(1, size // 2)

    def plainer(self, steps: Steps) -> Steps:
        changed = True
        while changed:
            changed = False
            for candidate in plainer_traces(steps):
                if candidate != steps and self.differs(candidate):
                    steps, changed = candidate, True
                    break
        return steps


def first_difference(judge: Judge, steps: Sequence[Step]) -> int | None:
    try:
        found = judge.judge(steps).differences
    except ScenarioError:
        return None
    return found[0].i if found else None


def without(steps: Steps, gone: range) -> Steps:
    """Some steps less; also less what quotes them."""
    number: dict[int, int] = {}
    kept: list[Step] = []
    for i, step in enumerate(steps):
        about = step.packet.l4.about if isinstance(step.packet, Packet) and isinstance(step.packet.l4, Icmp) else None
        if i in gone or (isinstance(about, int) and about not in number):
            continue
        number[i] = len(kept)
        kept.append(step if about is None else with_l4(step, about=number[about]))  # type: ignore[index]
    return tuple(kept)


def with_l4(step: Step, **changes: Any) -> Step:
    assert isinstance(step.packet, Packet)
    return replace(step, packet=replace(step.packet, l4=replace(step.packet.l4, **changes)))


def plainer_traces(steps: Steps) -> Iterator[Steps]:
    """The trace with one thing plainer."""
    for i, step in enumerate(steps):
        for plainer in plainer_steps(step):
            yield (*steps[:i], plainer, *steps[i + 1 :])
    yield from rebased(steps)


def plainer_steps(step: Step) -> Iterator[Step]:
    packet = step.packet
    if not isinstance(packet, Packet):
        return
    if step.wait:
        yield replace(step, wait=0.0)
    for field in fields(Ip):
        if getattr(packet.ip, field.name) != getattr(Ip(), field.name):
            yield replace(step, packet=replace(packet, ip=replace(packet.ip, **{field.name: getattr(Ip(), field.name)})))
    keep = ("type", "v6", "about", "tag", "chunks", "proto", "version", "flags", "seq", "ack")
    for field in fields(packet.l4):
        value = getattr(packet.l4, field.name)
        if field.name not in keep and value != field.default:
            yield with_l4(step, **{field.name: field.default})
        if field.name == "data" and isinstance(value, int) and value > 1:
            yield with_l4(step, data=1)
        if field.name in ("options", "chunks") and len(value) > 1:
            for i in range(len(value)):
                yield with_l4(step, **{field.name: value[:i] + value[i + 1 :]})


def rebased(steps: Steps) -> Iterator[Steps]:
    """All numbers of one TCP sender moved so that its first one is a small one."""
    senders = {
        (p.src, p.sport, p.dst, p.dport): p.l4.seq for p in reversed([s.packet for s in steps]) if isinstance(p, Packet) and isinstance(p.l4, Tcp)
    }
    for sender, first in senders.items():
        for start in (100, 500):
            yield tuple(_moved(step, sender, start - first) for step in steps) if first not in (100, 500) else steps


def _moved(step: Step, sender: tuple, by: int) -> Step:
    packet = step.packet
    if not isinstance(packet, Packet) or not isinstance(packet.l4, Tcp):
        return step
    ends = (packet.src, packet.sport), (packet.dst, packet.dport)
    if (*ends[0], *ends[1]) == sender:
        return with_l4(step, seq=(packet.l4.seq + by) & 0xFFFFFFFF)
    if (*ends[1], *ends[0]) == sender and packet.l4.ack:
        return with_l4(step, ack=(packet.l4.ack + by) & 0xFFFFFFFF)
    return step


def plainer_settings(steps: Steps, settings: Settings) -> Settings:
    """Settings nearer to the defaults by which the steps still differ."""
    current = settings
    names = [field.name for field in fields(Config) if field.name in SETTINGS]
    for name in (None, *names, *sorted(settings.config.timeouts)):
        candidate = replace(current, zone=0) if name is None else _usual(current, name)
        if candidate != current:
            with Judge(candidate) as judge:
                if first_difference(judge, steps) is not None:
                    current = candidate
    for rule in settings.config.nat:
        candidate = replace(current, config=replace(current.config, nat=tuple(other for other in current.config.nat if other != rule)))
        with Judge(candidate) as judge:
            if first_difference(judge, steps) is not None:
                current = candidate
    return current


def _usual(settings: Settings, name: str) -> Settings:
    if name in settings.config.timeouts:
        left = {other: value for other, value in settings.config.timeouts.items() if other != name}
        return replace(settings, config=replace(settings.config, timeouts=left))
    return replace(settings, config=replace(settings.config, **{name: getattr(Config(), name)}))


# --- scenario files --------------------------------------------------------------------------------------------------------------------


def scenario_of(steps: Steps, settings: Settings, judged: Judged, hz: int, comments: tuple[str, ...]) -> Scenario:
    """The trace with the kernel's words as what is expected."""
    steps = tuple(judged.sent[: len(steps)]) or steps
    expected = tuple(replace(step, expect=expectation(judged, i, hz)) for i, step in enumerate(steps))
    usual = Config()
    values = {name: int(getattr(settings.config, name)) for name in SETTINGS if getattr(settings.config, name) != getattr(usual, name)}
    rules = settings.config.nat, settings.config.helpers
    zone = (settings.zone, settings.config.zone_dir) if settings.zone or settings.config.zone_dir != usual.zone_dir else None
    return Scenario(expected, "", {}, values, settings.config.timeouts, *rules, comments, zone=zone)


def expectation(judged: Judged, i: int, hz: int) -> Expect | None:
    """What the kernel said of a packet; None of one that was not shown to it."""
    if not judged.shown[i]:
        return None
    decision = judged.theirs[i]
    timeout, conn, verdict = int(decision["timeout"]), int(decision["conn"]), int(decision["verdict"])
    status = frozenset(records.status_names(int(decision["status"])))
    return Expect(
        state=records.STATE_NAMES[int(decision["state"])],
        l4state=records.l4state_name(int(decision["proto"]), int(decision["l4state"])),
        timeout=timeout / hz if timeout >= 0 else None,
        dir=records.DIR_NAMES.get(int(decision["dir"])),
        status=status if conn >= 0 else None,
        verdict=records.VERDICT_NAMES[verdict] if verdict != Verdict.ACCEPT else None,
        conn=conn if conn >= 0 or int(decision["state"]) == State.INVALID else None,
    )

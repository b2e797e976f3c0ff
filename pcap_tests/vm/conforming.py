"""A case in the kernel's TC and in our pipeline: what came out of each packet, byte by byte, and what each rule has counted.

Theory of operation: the rules are installed by our own installer in a namespace of their own; packets are sent one by one, and what came out answers
for what is sent next. Our pipeline gets the same frames at the same times. Where the two differ the case is shrunk: rules and packets that do not
matter are left out as long as it differs still; and the interpreter says whom of the two it agrees with.
What is allowed to differ: into which pieces a datagram is cut up that `ct` has put together (docs/rules.md), so pieces in order are put together
here on both sides. Two things end a case, since all that follows depends on them: a port or an ICMP id that both have drawn; and a RST of what was
in the flow table: Linux 6.1 holds it against what was acknowledged before, which 6.18 forgets when a connection leaves the table, as we do.
Not here: cases (conform_rules), devices (tapped).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ctcore.model.tracker import ModelTracker
from ctcore.reasons import NAMES
from ctcore.types import Verdict
from datapath import craft
from datapath.commands.tc.ask import KernelTc
from datapath.commands.tc.install import MARK, carried_out, hooks_of, planned
from datapath.frame import frames_of
from datapath.pipeline.ct_settings import settings_of
from datapath.pipeline.interpret import Interpreter
from datapath.pipeline.reference import RuleTracker
from datapath.pipeline.rules import ETH_IP, ETH_IPV6, Hook, Mirred, Rule, Ruleset
from datapath.pipeline.tc_print import rule_line
from datapath.ruled import RulePipeline
from pcap_tests.test_datapath.test_pipeline.walked import what_left
from pcap_tests.vm.conform_rules import DEVICES, Case, layout, packets
from pcap_tests.vm.tapped import Out, Tapped

BEGIN = 1_000_000_000_000  # ns: when the first packet comes to our pipeline
TRIES = 60  # runs that shrinking a case may take
# By protocol: where a source port or an id lies behind the IP header, and the checksum.
DRAWN = {6: ((0, 2), (16, 18)), 17: ((0, 2), (6, 8)), 136: ((0, 2), (6, 8)), 132: ((0, 2), (8, 12)), 1: ((2, 4), (4, 6)), 58: ((2, 4), (4, 6))}


class Sent(NamedTuple):
    """A frame that came to a hook. now: ns."""

    frame: bytes
    hook: Hook
    now: int


@dataclass
class Kernel:
    """What the kernel made of a case. packets: by rule, in the order of the file, those that its first action has counted; steps: the same after each
    packet, where asked for."""

    sent: list[Sent] = field(default_factory=list)
    out: list[list[Out]] = field(default_factory=list)
    packets: list[int] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)


class Ours(NamedTuple):
    """What our pipeline made of the same packets."""

    out: list[list[Out]]
    results: Any
    decisions: Any
    packets: list[int]
    drops: list[int]


@dataclass(frozen=True)
class Difference:
    """number: of the packet, None: the rules have counted other numbers in the end; what: in words."""

    number: int | None
    what: str


class Compared(NamedTuple):
    """packets: that were compared; ended: why no more were ("drawn", "reset"), or nothing; hits: of rules."""

    packets: int
    ended: str
    hits: int
    difference: Difference | None


# --- in the kernel --------------------------------------------------------------------------------------------------------------------------


def in_kernel(case: Case, count: int = 0, sent: Sequence[Sent] | None = None, *, steps: bool = False) -> Kernel:
    """The case with so many packets of its own traffic, or with these. steps: list the counters after each packet."""
    ruleset, told = case.ruleset, Kernel()
    with ExitStack() as stack:
        devices = Tapped(stack, DEVICES, case.settings)
        kernel = stack.enter_context(KernelTc(MARK))
        hooks = hooks_of(ruleset)
        plan = planned(ruleset, kernel.listed(hooks))
        assert plan.conflicts == () and [each.told() for each in carried_out(kernel, plan)] == []
        begun = time.monotonic_ns()

        def counted() -> list[int]:
            found = {_name(each): each.counted[0].packets for each in kernel.tallied(hooks)}
            return [found[_name(rule, rule.hook)] for rule in ruleset.rules]

        def send(frame: bytes, hook: Hook) -> list[Out]:
            told.sent.append(Sent(frame, hook, BEGIN + time.monotonic_ns() - begun))
            told.out.append(devices.send(frame, hook))
            if steps:
                told.steps.append(counted())
            return told.out[-1]

        if sent is None:
            _talk(case, count, send)
        for each in sent or ():
            send(each.frame, each.hook)
        told.packets = counted()
    return told


def _talk(case: Case, count: int, send: Callable[[bytes, Hook], list[Out]]) -> None:
    traffic = packets(case, count)
    coming = next(traffic, None)
    while coming is not None:
        out = send(*coming)
        try:
            coming = traffic.send(out)
        except StopIteration:
            coming = None


def _name(each: Any, hook: Hook | None = None) -> tuple[Hook, int, int, int]:
    return hook or each.hook, each.chain, each.prio, each.handle


# --- in our pipeline ------------------------------------------------------------------------------------------------------------------------


def in_ours(case: Case, sent: Sequence[Sent], ruleset: Ruleset | None = None) -> Ours:
    """ruleset: others than the case's."""
    pipeline = RulePipeline(ruleset or case.ruleset, case.config, devices=DEVICES)
    hooks = list(dict.fromkeys(each.hook for each in sent))
    pipeline.arrive(hooks)
    memory, frames = frames_of([each.frame for each in sent], np.array([each.now for each in sent], dtype=np.int64))
    frames["iface"] = [hooks.index(each.hook) for each in sent]
    decisions, _, results = pipeline.process(memory, frames, results=True, outputs=True)
    left = what_left(pipeline.outputs(), memory, pipeline.program.devices, len(sent))
    out = [[Out(it.device or each.hook.device, it.egress, it.frame, it.mark) for it in its] for each, its in zip(sent, left, strict=True)]
    counters = pipeline.counters()
    return Ours(out, results, decisions, counters["packets"].tolist(), counters["drops"].tolist())


def interpreted(case: Case, sent: Sequence[Sent]) -> list[Out]:
    """What the interpreter, with the model, says of the last packet."""
    ruleset = case.ruleset
    interpreter = Interpreter(ruleset, RuleTracker(ModelTracker(settings_of(ruleset, case.config))))
    for each in sent:
        passed = interpreter.deliver(each.frame, each.now, each.hook).passed
    return [Out(walk.hook.device, walk.hook.direction == "egress", piece.frame, walk.mark) for walk in passed for piece in walk.pieces]


# --- comparing ------------------------------------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Of a fragment: where it lies in its datagram, whether more follow, and its payload."""

    start: int
    more: bool
    data: bytes


def piece_of(frame: bytes) -> Piece | None:
    """None: it is no fragment."""
    at, _, kind = layout(frame)
    if kind == ETH_IP and len(frame) >= at + 20 and (word := int.from_bytes(frame[at + 6 : at + 8], "big")) & 0x3FFF:
        return Piece((word & 0x1FFF) * 8, word & 0x2000 > 0, frame[at + 20 :])
    if kind == ETH_IPV6 and len(frame) >= at + 48 and frame[at + 6] == craft.FRAGMENT:
        word = int.from_bytes(frame[at + 42 : at + 44], "big")
        return Piece(word & 0xFFF8, word & 1 > 0, frame[at + 48 :])
    return None


def whole(pieces: Sequence[Out]) -> Out:
    """The datagram of all its pieces, in order."""
    first = pieces[0].frame
    at, _, kind = layout(first)
    data = b"".join(found.data for each in pieces if (found := piece_of(each.frame)))
    if kind == ETH_IP:
        head = first[at : at + 2] + (20 + len(data)).to_bytes(2, "big") + first[at + 4 : at + 6] + b"\0\0" + first[at + 8 : at + 10]
        addresses = first[at + 12 : at + 20]
        head += craft.checksum(head + b"\0\0" + addresses).to_bytes(2, "big") + addresses
    else:
        head = first[at : at + 4] + len(data).to_bytes(2, "big") + first[at + 40 : at + 41] + first[at + 7 : at + 40]
    return pieces[0]._replace(frame=first[:at] + head + data)


def together(out: Sequence[Out]) -> list[Out]:
    """Sorted; pieces of a datagram that come in order, from the first to the last, as the datagram."""
    found: list[Out] = []
    for place in dict.fromkeys((each.device, each.egress) for each in out):
        group: list[Out] = []
        end = 0
        for each in (each for each in out if (each.device, each.egress) == place):
            piece = piece_of(each.frame)
            if piece is None or piece.start != end:
                found += group
                group, end = [], 0
            if piece is None or piece.start != end:
                found.append(each)
                continue
            group.append(each)
            end += len(piece.data)
            if not piece.more:
                found.append(whole(group))
                group, end = [], 0
        found += group
    # Only the log behind an ingress hook tells marks.
    return sorted(each._replace(mark=None if each.egress else each.mark) for each in found)


def undrawn(out: Out) -> Out:
    """Without what translation may draw."""
    at, _, kind = layout(out.frame)
    if len(out.frame) < at + {ETH_IP: 20, ETH_IPV6: 40}.get(kind, len(out.frame)):
        return out
    l4, proto = (at + (out.frame[at] & 15) * 4, out.frame[at + 9]) if kind == ETH_IP else (at + 40, out.frame[at + 6])
    data = bytearray(out.frame)
    for start, end in DRAWN.get(proto, ()):
        data[l4 + start : l4 + end] = bytes(len(data[l4 + start : l4 + end]))
    return out._replace(frame=bytes(data))


def is_reset(frame: bytes) -> bool:
    """Whether it is a TCP segment with RST."""
    at, _, kind = layout(frame)
    if len(frame) < at + {ETH_IP: 20, ETH_IPV6: 40}.get(kind, len(frame)):
        return False
    l4, proto = (at + (frame[at] & 15) * 4, frame[at + 9]) if kind == ETH_IP else (at + 40, frame[at + 6])
    return proto == craft.TCP and len(frame) > l4 + 13 and frame[l4 + 13] & 4 > 0


def served_before(decisions: np.ndarray, number: int) -> bool:
    """Whether the flow table of our pipeline had the connection of this packet earlier."""
    same = decisions["conn"][:number] == decisions["conn"][number]
    return bool(decisions["conn"][number] >= 0 and decisions["offload"][:number][same].any())


def compared(case: Case, kernel: Kernel, ruleset: Ruleset | None = None) -> Compared:
    """ruleset: for our pipeline, where it is to have others than the kernel."""
    ours = in_ours(case, kernel.sent, ruleset)
    for number, (theirs, mine) in enumerate(zip(map(together, kernel.out), map(together, ours.out), strict=True)):
        if theirs == mine:
            continue
        hits = int(ours.results["n_hits"][:number].sum())
        if sorted(map(undrawn, theirs)) == sorted(map(undrawn, mine)):
            return Compared(number, "drawn", hits, None)
        if served_before(ours.decisions, number) and is_reset(kernel.sent[number].frame):
            return Compared(number, "reset", hits, None)
        return Compared(number, "", hits, Difference(number, told(case, kernel.sent, number, theirs, mine, ours)))
    hits = int(ours.results["n_hits"].sum())
    lines = [
        f"matched {mine:,} packets here and {theirs:,} in the kernel: {rule_line(rule)}"
        for rule, theirs, mine, drops in zip(case.ruleset.rules, kernel.packets, ours.packets, ours.drops, strict=True)
        if theirs != mine and not uncounted(rule, mine - theirs, drops)
    ]
    return Compared(len(kernel.sent), "", hits, Difference(None, "\n".join(lines)) if lines else None)


def uncounted(rule: Rule, more: int, drops: int) -> bool:
    """Whether so many more matches are packets that had been sent on too often: mirred drops these before it counts them."""
    return isinstance(rule.actions[0] if rule.actions else None, Mirred) and 0 < more <= drops


def told(case: Case, sent: Sequence[Sent], number: int, theirs: Sequence[Out], mine: Sequence[Out], ours: Ours) -> str:
    """A packet that came out otherwise."""
    each, result, decision = sent[number], ours.results[number], ours.decisions[number]
    twin = together(interpreted(case, sent[: number + 1]))
    lines = [f"packet {number} at {each.hook.device} {each.hook.direction}: {each.frame.hex()}"]
    lines += [f"  kernel:   {_shown(out)}" for out in theirs if out not in mine] or ["  kernel:   nothing more"]
    lines += [f"  pipeline: {_shown(out)}" for out in mine if out not in theirs] or ["  pipeline: nothing more"]
    lines += [f"  interpreter: as the {'pipeline' if twin == mine else 'kernel' if twin == theirs else 'one nor the other'}"]
    lines += [f"  {Verdict(result['verdict']).name} {NAMES[result['reason']]}, tracked as {decision['state']} {NAMES[decision['reason']]}"]
    return "\n".join(lines + [f"  matched {rule_line(case.ruleset.rules[hit])}" for hit in result["hit"][: result["n_hits"]]])


def _shown(out: Out) -> str:
    return f"{out.device} {'egress' if out.egress else f'to the host, mark {out.mark}'} {out.frame.hex()}"


def steps_told(case: Case, sent: Sequence[Sent]) -> str:
    """The first packet that other rules matched."""
    kernel = in_kernel(case, sent=sent, steps=True)
    ours, before = in_ours(case, kernel.sent), [0] * len(case.ruleset.rules)
    for number, now in enumerate(kernel.steps):
        hits = Counter(ours.results["hit"][number][: ours.results["n_hits"][number]].tolist())
        wrong = [(rule, now[i] - before[i], hits[i]) for i, rule in enumerate(case.ruleset.rules) if now[i] - before[i] != hits[i]]
        if wrong:
            each = sent[number]
            lines = [f"packet {number} at {each.hook.device} {each.hook.direction}: {each.frame.hex()}"]
            return "\n".join(lines + [f"  kernel {theirs}, pipeline {mine} times: {rule_line(rule)}" for rule, theirs, mine in wrong])
        before = now
    return "no packet by itself"


# --- shrinking ------------------------------------------------------------------------------------------------------------------------------


def shrunk(case: Case, kernel: Kernel, difference: Difference) -> str:
    """The case with as few rules and packets as still differ, in words."""
    sent = kernel.sent if difference.number is None else kernel.sent[: difference.number + 1]
    found, tries = difference, TRIES

    def differs(trial: Case, some: Sequence[Sent]) -> Difference | None:
        nonlocal tries
        tries -= 1
        return compared(trial, in_kernel(trial, sent=some)).difference if tries >= 0 and some else None

    size = max(len(sent) // 2, 1)
    while size:
        for start in range(max(len(sent) - 1 - size, 0), -1, -size):
            less = [*sent[:start], *sent[start + size :]]
            if (other := differs(case, less)) is not None:
                sent, found = less, other
        size //= 2
    for rule in reversed(case.ruleset.rules):
        less_rules = replace(case, rules=_without(case, rule))
        if (other := differs(less_rules, sent)) is not None:
            case, found = less_rules, other
    more = steps_told(case, sent) if found.number is None else ""
    frames = "\n".join(f"  {each.hook.device} {each.hook.direction} {each.frame.hex()}" for each in sent)
    return f"seed {case.seed}, {case.settings}\n{case.rules}{found.what}\n{more}\npackets\n{frames}"


def _without(case: Case, rule: Rule) -> str:
    gone = rule.place.line
    return "".join(line for number, line in enumerate(case.rules.splitlines(keepends=True), 1) if number != gone)

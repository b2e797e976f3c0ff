"""Benchmarks of rules: the two chains of a stateful firewall, with few rules and with many.

Theory of operation: chain 0 tracks what is untracked and goes to chain 1. There the last rule but one commits and redirects what is new, the last one
redirects what is established; those before match addresses, networks and ports of new connections, in four combinations. No packet of ours matches
one of these, so that all of them are in question whenever a packet goes through the chain. Pipelines with different numbers of rules get the same
frames by turns, round by round, so that their ratio holds on a noisy machine, too.
Not here: frames, and the engine without rules (benchmark), the command line (commands.bench).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

import numpy as np

from ctcore.config import Config
from ctcore.errors import CtmirrorError
from datapath.benchmark import (
    MIN_PACKETS,
    ROUNDS,
    Turn,
    acknowledgements,
    apart,
    by_turns,
    check_accepted,
    established,
    handshakes,
    machine,
    openings,
    run,
    timed,
)
from datapath.pipeline import rules_file
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import ETH_IP, FIELD_ORDER, Action, Ct, Gact, Hook, Match, Mirred, Rule, Ruleset, goto
from datapath.pipeline.tc_print import print_ruleset
from datapath.ruled import RulePipeline

HOOK = Hook("eth0")
TCP = Match("ip_proto", 6, 0xFF)
UNTRACKED, NEW, ESTABLISHED = Match("ct_state", 0, 0x08), Match("ct_state", 0x09, 0x09), Match("ct_state", 0x0A, 0x0A)
ON = Mirred("redirect", "eth1")
LEAST, MOST = 3, 60_000  # rules: those that every packet needs; one a priority, of which there are 65,535
NEW_CONNECTIONS = 100_000  # a round


def firewall(n: int, tracks: bool = True) -> Ruleset:
    """n rules, or without tracking n - 1: no connection is established then, and protocols take the place of states."""
    random = Random(n)
    return Ruleset(rules=tuple(_rules(n, tracks, random)))


def _rules(n: int, tracks: bool, random: Random) -> Iterator[Rule]:
    does: tuple[Action, ...] = (Ct(commit=True), ON) if tracks else (ON,)
    also = (NEW,) if tracks else ()
    yield Rule(HOOK, ETH_IP, (UNTRACKED if tracks else TCP,), (*((Ct(),) if tracks else ()), Gact(goto(1))), 1, 0, 1)
    for i in range(1, n - 2):
        address, port = Match("dst_ip", 0x0A000000 + random.randrange(1 << 16), 0xFFFFFFFF), Match("dst_port", random.randrange(1, 1024), 0xFFFF)
        net = Match("src_ip", 0xC0A80000 + (random.randrange(256) << 8), 0xFFFFFF00)
        keys = ((TCP, address, port), (TCP, address), (address, net), (TCP, net, port))[i % 4]
        yield Rule(HOOK, ETH_IP, tuple(sorted((*keys, *also), key=lambda key: FIELD_ORDER[key.name])), does, i, 1, 1)
    yield Rule(HOOK, ETH_IP, also, does, n - 2, 1, 1)
    if tracks:
        yield Rule(HOOK, ETH_IP, (ESTABLISHED,), (ON,), n - 1, 1, 1)


def _pipeline(rules: int, most: int, tracks: bool = True) -> RulePipeline:
    pipeline = RulePipeline(firewall(rules, tracks), Config(max=most))
    pipeline.arrive([HOOK])
    return pipeline


# --- established connections ------------------------------------------------------------------------------------------------------------


def measure_established(flows: int, *, rules: list[int], seed: int = 1, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Set up `flows` connections, then `rounds` rounds of established traffic, through each number of rules by turns.

    Returns a row for each number of rules: medians of mpps (million packets/s) and ns_per_packet; ratio, the median of the rounds' own ratios to the
    first number's speed; first_mpps, of the first packet of each flow after the handshakes, which is the one that goes through the rules. Raises
    CtmirrorError if not every packet was accepted and redirected, nearly all of the rounds' by the way their flows had gone before.
    """
    packets = max(MIN_PACKETS, flows)
    memory, frames = established(flows, packets * rounds, seed)
    order = np.random.default_rng(seed).permutation(flows).astype(np.int64)
    opening, first = handshakes(order), acknowledgements(order)
    pipelines = [_pipeline(n, flows) for n in rules]
    for pipeline in pipelines:
        run(pipeline, *opening)
    firsts = [timed(partial(run, pipeline, *first)) for pipeline in pipelines]
    spent: list[list[float]] = [[] for _ in rules]
    for i in range(rounds):
        part = frames[i * packets : (i + 1) * packets]
        works: list[Turn] = [(times, partial(run, pipeline, memory, part)) for times, pipeline in zip(spent, pipelines, strict=True)]
        by_turns(works, i)
    for pipeline in pipelines:
        check_accepted(pipeline, flows)
        _check_repeated(pipeline, flows, packets * rounds)
    return [
        {
            "flows": flows,
            "rules": n,
            "mpps": packets / statistics.median(times) / 1e6,
            "ns_per_packet": statistics.median(times) / packets * 1e9,
            "ratio": statistics.median(one / own for one, own in zip(spent[0], times, strict=True)),
            "first_mpps": len(first[1]) / once / 1e6,
        }
        for n, times, once in zip(rules, spent, firsts, strict=True)
    ]


def _check_repeated(pipeline: RulePipeline, flows: int, packets: int) -> None:
    """Raises CtmirrorError unless all were redirected, and the last `packets` as others of their flows, but for the few that have no place."""
    hits, redirected = pipeline.shortcuts()["hits"], int(pipeline.counters()["packets"][-1])
    # Of a handshake the SYN/ACK and the ACK are established, and then there was one packet of each flow.
    if hits < packets * 0.999 or redirected != 4 * flows + packets:
        raise CtmirrorError(f"bench: {redirected} packets redirected, {hits} as those before: expected {4 * flows + packets}, {packets}")


# --- new connections --------------------------------------------------------------------------------------------------------------------


def measure_new(connections: int, *, rules: list[int], seed: int = 1, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Connections opened through each number of rules by turns, into fresh pipelines with room for just these.

    Returns a row for each number of rules, medians: handshakes_per_s, connections by SYN, SYN/ACK and ACK, a few thousand under way at a time; by
    SYNs alone: syns_per_s; untracked_mpps, of the same SYNs through rules without tracking. Raises CtmirrorError as measure_established().
    """
    order = np.random.default_rng(seed).permutation(connections).astype(np.int64)
    kinds = {"handshakes_per_s": (handshakes(order), True), "syns_per_s": (openings(order), True), "untracked_mpps": (openings(order), False)}
    rows: list[dict[str, Any]] = [{"connections": connections, "rules": n} for n in rules]
    for kind, (traffic, tracks) in kinds.items():
        spent: list[list[float]] = [[] for _ in rules]
        for i in range(rounds):
            pipelines = [_pipeline(n, connections, tracks) for n in rules]
            works: list[Turn] = [(times, partial(run, pipeline, *traffic)) for times, pipeline in zip(spent, pipelines, strict=True)]
            by_turns(works, i)
            for pipeline in pipelines:
                check_accepted(pipeline, connections * tracks)
                _check_new(pipeline, connections, tracks)
        for row, times in zip(rows, spent, strict=True):
            row[kind] = connections / statistics.median(times) / (1 if tracks else 1e6)
    return rows


def _check_new(pipeline: RulePipeline, connections: int, tracks: bool) -> None:
    """Raises CtmirrorError unless it was the rule behind all others that each new connection matched."""
    matched = int(pipeline.counters()["packets"][-2 if tracks else -1])
    if matched != connections:
        raise CtmirrorError(f"bench: {matched} of {connections} new connections were redirected: expected all")


# --- start ------------------------------------------------------------------------------------------------------------------------------


def measure_start(rules: int) -> dict[str, Any]:
    """Seconds from the text of so many rules (tc lines) to a pipeline for packets: read_s, reading and checking it; compile_s, the rest."""
    text, found, read = print_ruleset(firewall(rules)), Findings(), []
    read_s = timed(lambda: read.append(rules_file.parse(text, "rules.tc", found)))
    found.check()
    return {"rules": rules, "read_s": read_s, "compile_s": timed(lambda: RulePipeline(read[0]))}


def start(rules: int, rounds: int) -> dict[str, Any]:
    """measure_start() in processes of their own, medians; seconds is the sum."""
    rows = [apart(measure_start, rules) for _ in range(rounds)]
    read_s, compile_s = (statistics.median(row[name] for row in rows) for name in ("read_s", "compile_s"))
    return {"rules": rules, "read_s": read_s, "compile_s": compile_s, "seconds": statistics.median(row["read_s"] + row["compile_s"] for row in rows)}


def rules(flows: list[int], numbers: list[int], *, seed: int = 1, rounds: int = ROUNDS) -> dict[str, Any]:
    """{"machine": ..., "established": rows of measure_established() for each number of flows, "new": rows of measure_new(), "start": of start()}.

    numbers: of rules, from LEAST to MOST; ratios are to the first. Raises CtmirrorError for other numbers.
    """
    wrong = [n for n in numbers if not LEAST <= n <= MOST]
    if wrong:
        raise CtmirrorError(f"bench: {wrong[0]} rules: expected {LEAST} to {MOST}")
    return {
        "machine": machine(),
        "established": [row for n in flows for row in apart(measure_established, n, rules=numbers, seed=seed, rounds=rounds)],
        "new": apart(measure_new, NEW_CONNECTIONS, rules=numbers, seed=seed, rounds=rounds),
        "start": [start(n, rounds) for n in numbers],
    }

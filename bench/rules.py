"""The walk through rules, measured: many rules and few, with connection tracking and without.

    python -m bench.rules [--rules 10,10000] [--packets 100000] [--rounds 5]

SYNs of 60 bytes, each of a connection of its own, come to a hook with two chains: chain 0 tracks them (or looks at the protocol) and goes to chain 1,
whose rules match addresses, networks and ports in four combinations; nearly no packet matches any of them but the last, so that all are in
question. With tracking the rule that matches commits, and each packet opens a connection. One thread; the best of some rounds, outputs gathered.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from random import Random
from time import perf_counter
from typing import Any

from ctcore.config import Config
from ctcore.tracker import Tracker
from datapath import craft
from datapath.frame import frames_of
from datapath.pipeline.program import Program
from datapath.pipeline.rules import ETH_IP, FIELD_ORDER, Action, Ct, Gact, Hook, Match, Mirred, Rule, Ruleset, goto
from datapath.pipeline.walk import Walker

HOOK = Hook("eth0")
TCP = Match("ip_proto", 6, 0xFF)
UNTRACKED, NEW = Match("ct_state", 0, 0x08), Match("ct_state", 0x09, 0x09)
ON = Mirred("redirect", "eth1")


def rules(n: int, tracks: bool, random: Random) -> Iterator[Rule]:
    does: tuple[Action, ...] = (Ct(commit=True), ON) if tracks else (ON,)
    also = (NEW,) if tracks else ()
    yield Rule(HOOK, ETH_IP, (UNTRACKED,) if tracks else (TCP,), (*((Ct(),) if tracks else ()), Gact(goto(1))), 1)
    for i in range(n - 2):
        address, port = Match("dst_ip", 0x0A000000 + random.randrange(1 << 16), 0xFFFFFFFF), Match("dst_port", random.randrange(1, 1024), 0xFFFF)
        net = Match("src_ip", 0xC0A80000 + (random.randrange(256) << 8), 0xFFFFFF00)
        keys = ((TCP, address, port), (TCP, address), (address, net), (TCP, net, port))[i % 4]
        yield Rule(HOOK, ETH_IP, tuple(sorted((*keys, *also), key=lambda key: FIELD_ORDER[key.name])), does, i + 1, 1)
    yield Rule(HOOK, ETH_IP, also, does, n, 1)


def syns(n: int, random: Random) -> list[bytes]:
    numbers = random.sample(range(1 << 32), n)
    return [
        craft.tcp(f"192.168.{i >> 24}.{1 + i % 250}", f"10.0.{i >> 16 & 255}.{i >> 8 & 255}", 1024 + i % 60000, 1 + i % 1023, "S").ljust(60, b"\0")
        for i in numbers
    ]


def measured(n: int, tracks: bool, frames: tuple[Any, Any], rounds: int) -> float:
    """Packets a second."""
    count = len(frames[1])
    program = Program(Ruleset(rules=tuple(rules(n, tracks, Random(n)))), config=Config(max=2 * count, events=frozenset()))
    best = float("inf")
    for _ in range(rounds):
        walker = Walker(program, Tracker(program.config) if tracks else None)
        start = perf_counter()
        results = walker.run(*frames, HOOK)
        best = min(best, perf_counter() - start)
        assert (results["hops"] == 1).all() and (results["tracked"] == tracks).all()
    return count / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", type=lambda text: [int(part) for part in text.split(",")], default=[10, 10_000])
    parser.add_argument("--packets", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    frames = frames_of(syns(options.packets, Random(1)))
    print(f"{'rules':>7} {'Mpps':>7} {'Mpps with new connections':>26}")
    for n in options.rules:
        plain, tracked = (measured(n, tracks, frames, options.rounds) / 1e6 for tracks in (False, True))
        print(f"{n:>7,} {plain:>7.2f} {tracked:>26.2f}", flush=True)


if __name__ == "__main__":
    main()

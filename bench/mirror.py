"""What the mirror costs: microseconds a command on one thread, and bytes a flow, while flows come and go; and what it costs the engine to have one.

    python -m bench.mirror [--flows 1000000] [--rate 100000] [--seconds 5] [--seed 1] [--json FILE]
    python -m bench.mirror --engine [--flows 100000] [--pps 2000000] [--rounds 15] [--backoff 64] [--json FILE]

So many flows are put into hardware that answers everything with 0 at the next turn. Then, in turns of a hundredth of a second of simulated time,
`rate` flows a second leave and as many come into their rows, at random, and of the others each is asked for its counters once in three seconds, as a
flow table does of busy flows. Only what the mirror does is timed: feed, replies, advance, commands, sent, answers; making their arrays is not.
--engine: established connections through a firewall of ten rules, `pps` packets a second of their own time, by turns with and without a mirror whose
NIC refuses everything, so that all flows stay in software; with it, pump() follows every 16,384 packets. Flows are as they are after a minute,
tried once in 64 s; --backoff 1 shows their first seconds, in which all of them ask again.
Not here: what packets in hardware cost (bench.simnic).
"""

from __future__ import annotations

import argparse
import errno
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config
from ctcore.flow_changes import ASK_DTYPE, Asked, FlowFlag
from ctcore.types import Proto
from datapath.benchmark import CHUNK, established, handshakes
from datapath.benchmark_rules import HOOK, firewall
from datapath.ruled import RulePipeline
from offload.mirror import BYTES_PER_FLOW, Mirror
from offload.mirror_settings import MirrorSettings
from offload.pump import pump
from offload.records import COMMAND_DTYPE, REPLY_DTYPE

SECOND = 1_000_000_000
TURN = SECOND // 100
COUNTED_EVERY = 3  # seconds
START = 1_700_000_000 * SECOND


class Bench:
    """A mirror with hardware that does what it is told, and what time the mirror takes."""

    def __init__(self, flows: int, seed: int):
        self.mirror, self.now, self.spent = Mirror(flows, MirrorSettings(window=1 << 24)), START, 0.0
        self.serial = np.zeros(flows, dtype=np.uint32)
        self.random = np.random.default_rng(seed)
        self.commands = 0
        self.rows_resident = resident()

    def timed(self, step: Callable[..., Any], *args: Any) -> Any:
        begun = time.perf_counter()
        result = step(*args)
        self.spent += time.perf_counter() - begun
        return result

    def asks(self, rows: NDArray[Any], what: Asked) -> NDArray[Any]:
        asks = np.zeros(len(rows), dtype=ASK_DTYPE)
        asks["row"], asks["serial"], asks["ask"], asks["conn"], asks["now"] = rows, self.serial[rows], what, rows, self.now
        asks["flags"] = FlowFlag.FLOW_BIDIRECTIONAL | FlowFlag.FLOW_SEEN_REPLY | FlowFlag.FLOW_ASSURED
        key = asks["key"]
        client = (10 << 24 | rows).astype(">u4").view(np.uint8).reshape(len(rows), 4)
        key["src"][:, 0, :4] = key["dst"][:, 1, :4] = client
        key["dst"][:, 0, 3] = key["src"][:, 1, 3] = 1
        key["sport"][:, 0] = key["dport"][:, 1] = 40000
        key["dport"][:, 0] = key["sport"][:, 1] = 443
        key["proto"], key["family"] = Proto.PROTO_TCP, 4
        return asks

    def turn(self, *asks: NDArray[Any]) -> None:
        """Feed, and hardware answers until nothing is left to do."""
        for each in asks:
            self.timed(self.mirror.feed, each, self.now)
        self.timed(self.mirror.advance, self.now)
        while len(commands := self.timed(self.mirror.commands, 65_536)):
            self.timed(self.mirror.sent, len(commands), self.now)
            replies = np.zeros(len(commands), dtype=REPLY_DTYPE)
            replies["cookie"], replies["op"], replies["packets"], replies["bytes"] = commands["cookie"], commands["op"], 3, 3000
            replies["used"] = self.now
            self.commands += len(commands)
            self.timed(self.mirror.replies, replies, self.now)
        self.timed(self.mirror.answers)

    def run(self, rate: int, seconds: float) -> None:
        flows, n = len(self.serial), rate * TURN // SECOND
        for start in range(0, flows, 65_536):
            self.turn(self.asks(np.arange(start, min(start + 65_536, flows)), Asked.INSTALL))
        self.resident = resident() - self.rows_resident
        self.commands, self.spent, self.at_start = 0, 0.0, self.mirror.counters()
        counted = flows * TURN // (SECOND * COUNTED_EVERY)
        for turn in range(round(seconds * SECOND / TURN)):
            self.now += TURN
            going = np.unique(self.random.integers(0, flows, n))
            self.turn(self.asks(np.arange(counted) + turn * counted % max(flows - counted, 1), Asked.COUNTERS), self.asks(going, Asked.REMOVE))
            self.serial[going] += 1
            self.turn(self.asks(going, Asked.INSTALL))


class NoRoom:
    """A NIC without any."""

    resets = 0

    def __init__(self) -> None:
        self.told: NDArray[Any] = np.empty(0, dtype=REPLY_DTYPE)

    def submit(self, commands: NDArray[Any], now: int) -> int:
        self.told = np.zeros(len(commands), dtype=REPLY_DTYPE)
        self.told["cookie"], self.told["op"], self.told["error"] = commands["cookie"], commands["op"], errno.ENOSPC
        return len(commands)

    def replies(self, now: int) -> NDArray[Any]:
        told, self.told = self.told, self.told[:0]
        return told

    def held(self) -> NDArray[Any]:
        return np.empty(0, dtype=COMMAND_DTYPE)


def engine(flows: int, pps: int, rounds: int, backoff: float, seed: int) -> dict[str, Any]:
    """Both pipelines get the same packets in slices by turns; the median of the slices' own ratios. Which of them has the mirror is the seed's last
    bit: two equal ones differ by some percent, by where their memory lies."""
    mirrored = seed & 1
    packets = 20 * CHUNK
    memory, frames = established(flows, packets * (rounds + 1), seed)
    frames["ts"] = START + np.arange(len(frames)) * (SECOND // pps)
    opening_memory, opening = handshakes(np.arange(flows))
    opening["ts"] = START - SECOND + np.arange(len(opening)) * (SECOND // len(opening))
    pipelines = [RulePipeline(firewall(10), Config(max=flows)) for _ in range(2)]
    mirror, nic = Mirror(pipelines[1].flows.rows, MirrorSettings(backoff=backoff)), NoRoom()
    for pipeline in pipelines:
        pipeline.arrive([HOOK])
    flows_of = pipelines[mirrored].flows
    flows_of.mirrored()

    def go(which: int, memory: NDArray[Any], frames: NDArray[Any]) -> float:
        begun = time.perf_counter()
        for start in range(0, len(frames), CHUNK):
            part = frames[start : start + CHUNK]
            pipelines[which].process(memory, part)
            if which == mirrored:
                pump(flows_of, mirror, nic, int(part["ts"][-1]))
        return time.perf_counter() - begun

    for which in range(2):
        go(which, opening_memory, opening)
        go(which, memory, frames[:packets])
    spent = np.array([
        [seconds for _, seconds in sorted((which, go(which, memory, frames[i * packets : (i + 1) * packets])) for which in ((0, 1), (1, 0))[i % 2])]
        for i in range(1, rounds + 1)
    ])  # fmt: skip
    counts = mirror.counters()
    if counts["offloaded"] or not counts["refused_full"]:
        raise SystemExit(f"bench.mirror: all flows should be refused, and the mirror says {counts}")
    without, with_one = spent[:, 1 - mirrored], spent[:, mirrored]
    slower = np.median(with_one / without) - 1
    return {
        "flows": flows, "pps": pps, "packets": packets * rounds, "ns_per_packet_without": float(np.median(without) / packets * 1e9),
        "ns_per_packet_with": float(np.median(with_one) / packets * 1e9), "slower_percent": float(slower * 100),
        "asks": flows_of.counters()["hw_asks"], "commands": counts["commands_add"],
    }  # fmt: skip


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def measured(flows: int, rate: int, seconds: float, seed: int) -> dict[str, Any]:
    bench = Bench(flows, seed)
    bench.run(rate, seconds)
    bench.mirror.check()
    counts = bench.mirror.counters()
    if counts["offloaded"] != flows or counts["strays"] or counts["strange"]:
        raise SystemExit(f"bench.mirror: {flows} flows should be in hardware, and the mirror says {counts}")
    return {
        "flows": flows, "rate": rate, "seconds": seconds, "commands": bench.commands,
        **{name: counts[name] - bench.at_start[name] for name in ("commands_add", "commands_del", "commands_stats")},
        "us_per_command": bench.spent / bench.commands * 1e6, "share_of_a_thread": bench.spent / seconds,
        "bytes_per_flow": BYTES_PER_FLOW, "resident_per_flow": bench.resident / flows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", action="store_true", help="what a mirror costs the engine while all flows are in software")
    parser.add_argument("--flows", type=int, help="1,000,000, or 100,000 with --engine")
    parser.add_argument("--pps", type=int, default=2_000_000, help="with --engine: packets a second of their own time")
    parser.add_argument("--rounds", type=int, default=15, help="with --engine")
    parser.add_argument("--backoff", type=float, default=64.0, help="with --engine: seconds before a refused flow is tried again")
    parser.add_argument("--rate", type=int, default=100_000, help="flows that come, and that leave, a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="of simulated time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="file to write the figures to; - is stdout")
    args = parser.parse_args()
    if args.engine:
        told = engine(args.flows or 100_000, args.pps, args.rounds, args.backoff, args.seed)
    else:
        told = measured(args.flows or 1_000_000, args.rate, args.seconds, args.seed)
    if args.json == "-":
        print(json.dumps(told))
        return
    for name, value in told.items():
        print(f"{name:20} {value:,.3f}" if isinstance(value, float) else f"{name:20} {value:,}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(told, file)


if __name__ == "__main__":
    main()

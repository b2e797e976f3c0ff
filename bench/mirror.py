"""What the mirror costs: microseconds a command on one thread, and bytes a flow, while flows come and go.

    python -m bench.mirror [--flows 1000000] [--rate 100000] [--seconds 5] [--seed 1] [--json FILE]

So many flows are put into hardware that answers everything with 0 at the next turn. Then, in turns of a hundredth of a second of simulated time,
`rate` flows a second leave and as many come into their rows, at random, and of the others each is asked for its counters once in three seconds, as a
flow table does of busy flows. Only what the mirror does is timed: feed, replies, advance, commands, sent, answers; making their arrays is not.
Not here: the flow table, packets.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.flow_changes import ASK_DTYPE, Asked, FlowFlag
from ctcore.types import Proto
from offload.mirror import BYTES_PER_FLOW, Mirror
from offload.mirror_settings import MirrorSettings
from offload.records import REPLY_DTYPE

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
    parser.add_argument("--flows", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=100_000, help="flows that come, and that leave, a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="of simulated time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="file to write the figures to; - is stdout")
    args = parser.parse_args()
    told = measured(args.flows, args.rate, args.seconds, args.seed)
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

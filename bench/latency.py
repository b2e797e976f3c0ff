"""How long a packet is on its way through the datapath at half load, and through the kernel's own forwarding with connection tracking beside it.

    python -m bench.latency [--seconds 5] [--rounds 3] [--load 0.5] [--json]

The topology is that of bench.topology. First the rate that each can do is measured, then `load` of it is sent, evenly, each frame with the time at
which it left; a program in the driver of the sink tells how long ago that was. So the figures have the time in both cables, and no time in user space
but the forwarder's. The median round of each is told, in microseconds, with the rate and how many of the packets sent arrived.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from bench.forwarding import FLOWS, tracking
from bench.topology import S, kernels, ours
from bench.wire_traffic import Clock, Generator, Sink, flows_of, frame_of, stamped
from datapath import bpf
from datapath.oracle.namespace import Namespace

QUANTILES = (0.5, 0.99, 0.999)
UNIT = 1.024  # µs
SETTLE = 0.5
RING = 2048
KINDS = ("ctmirror", "kernel")


@contextmanager
def forwarding(kind: str, sink: type[S]) -> Iterator[tuple[Namespace, S, Callable[[float], object]]]:
    """Where to generate, the sink, and what forwards for so many seconds."""
    if kind == "kernel":
        with kernels(sink) as (there, end):
            yield there, end, time.sleep
    else:
        with ours("xdp-native", RING, sink) as (there, left, right, end):
            yield there, end, tracking(left.ifaces[0], right.ifaces[0]).run


def full_rate(kind: str, seconds: float) -> float:
    """Packets a second that arrive when more is sent than can be."""
    with forwarding(kind, Sink) as (there, sink, forward):
        with there.entered():
            generator = Generator("gen", frame_of(64), flows_of(FLOWS))
        try:
            forward(SETTLE)
            before, start = sink.packets, time.perf_counter()
            forward(seconds)
            return (sink.packets - before) / (time.perf_counter() - start)
        finally:
            generator.stop()


def on_the_way(kind: str, rate: float, seconds: float) -> tuple[list[float], float]:
    """QUANTILES and the longest time (µs, rounded up to whole units) of packets sent at a rate, and what share of them arrived."""
    state = bpf.Map(bpf.ARRAY, 4, 8, 1, "next")
    with forwarding(kind, Clock) as (there, clock, forward):
        with there.entered():
            generator = Generator("gen", frame_of(64), stamped(FLOWS, rate, state), batch=8)
        try:
            forward(SETTLE)
            before, start = np.array(clock.histogram()), time.perf_counter()
            forward(seconds)
            spent = time.perf_counter() - start
            counts = np.array(clock.histogram()) - before
        finally:
            generator.stop()
            state.close()
    total = np.cumsum(counts)
    found = [int(np.searchsorted(total, share * total[-1])) for share in QUANTILES]
    return [(i + 1) * UNIT for i in (*found, int(np.flatnonzero(counts)[-1]))], float(total[-1] / spent / rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", type=float, default=0.5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = []
    for kind in KINDS:
        full = statistics.median(full_rate(kind, options.seconds / 2) for _ in range(options.rounds))
        rounds = [on_the_way(kind, full * options.load, options.seconds) for _ in range(options.rounds)]
        times, arrived = sorted(rounds, key=lambda each: each[0][1])[len(rounds) // 2]
        names = ("p50", "p99", "p99.9", "max")
        rows.append(
            {"kind": kind, "mpps_full": full / 1e6, "mpps": full * options.load / 1e6, "arrived": arrived, **dict(zip(names, times, strict=True))}
        )
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'':<10} {'full Mpps':>10} {'sent Mpps':>10} {'arrived':>8} {'p50 us':>8} {'p99 us':>8} {'p99.9 us':>9} {'max us':>8}")
    for row in rows:
        print(
            f"{row['kind']:<10} {row['mpps_full']:>10.2f} {row['mpps']:>10.2f} {row['arrived']:>8.3f} {row['p50']:>8.1f} {row['p99']:>8.1f} "
            f"{row['p99.9']:>9.1f} {row['max']:>8.1f}"
        )


if __name__ == "__main__":
    main()

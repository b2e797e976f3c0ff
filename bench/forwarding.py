"""Forwarding between two veth pairs: by a plain forwarder, which is what the ring code and the machine can do, and through rules that track.

    python -m bench.forwarding [--seconds 3] [--rounds 3] [--batches 64,256] [--drivers xdp-native,packet] [--size 64]
                               [--kinds 'forward;forward, tracked']

The topology is that of bench.topology; the sink counts and drops. The generator has processor 0 for itself, with it the softirq of `in`; the
forwarder has the other one, with it the softirq of the sink. The rate is what arrives at the sink, over the time of one run; the best of `rounds`.
Receiving only: the forwarder's other side is a Null. `share` is how much of its processor the forwarder got: below 0.95, something else was running,
and the rate says little. Tracked: each of the generator's 1,024 flows is an established connection of UDP, which two chains of rules let pass; rounds
of it and of the plain forwarder (sums completed) go by turns, and `ratio` is the median of their ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass, replace

from bench.topology import kernels, ours
from bench.wire_traffic import FIRST_PORT, Generator, Sink, flows_of, frame_of
from ctcore.config import Config
from ctcore.types import Status
from datapath import craft
from datapath.frame import frames_of
from datapath.live.forwarder import Forwarder
from datapath.live.iface import Iface
from datapath.live.loop import Loop
from datapath.live.null import Null
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import Hook
from datapath.pipeline.rules_file import parse
from datapath.ruled import RulePipeline

SETTLE = 0.3  # s for the generator to come up
ROUND = 256  # frames the loop takes of an iface at a time
FLOWS = 1024
RULES = """
tc filter add dev {0} ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct pipe action goto chain 1
tc filter add dev {0} ingress protocol ip prio 1 chain 1 flower ct_state +trk+new action ct commit pipe action mirred egress redirect dev {1}
tc filter add dev {0} ingress protocol ip prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev {1}
tc filter add dev {1} ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct pipe action goto chain 1
tc filter add dev {1} ingress protocol ip prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev {0}
"""
KINDS: dict[str, dict[str, bool]] = {
    "forward": {},
    "forward, sums completed": {"partial": True},
    "receive only": {"receive_only": True},
    "forward, tracked": {"tracked": True},
    "receive only, tracked": {"tracked": True, "receive_only": True},
    "kernel, tracked": {"kernel": True},
}


@dataclass(frozen=True)
class Run:
    driver: str
    batch: int
    seconds: float
    size: int
    receive_only: bool = False
    partial: bool = False
    ring: int = 2048
    tracked: bool = False
    kernel: bool = False


def measure(run: Run) -> tuple[float, float, dict[str, int]]:
    """Mpps that arrived, the forwarder's share of its processor, and counters of what did not arrive."""
    if run.kernel:
        return measure_kernel(run)
    with ours(run.driver, run.ring, Sink) as (there, left, right, sink):
        source = left.ifaces[0]
        target = Null(source.umem, "out", ordinal=1) if run.receive_only else right.ifaces[0]
        forwarder = tracking(source, target) if run.tracked else Forwarder(source, target, batch=run.batch, partial=run.partial)
        with there.entered():
            generator = Generator("gen", frame_of(run.size), flows_of(FLOWS))
        try:
            forwarder.run(SETTLE)
            before, used, start = arrived(run, target, sink), time.process_time(), time.perf_counter()
            forwarder.run(run.seconds)
            after, used, spent = arrived(run, target, sink), time.process_time() - used, time.perf_counter() - start
        finally:
            generator.stop()
        lost = {name: value for iface in (source, target) for name, value in iface.statistics().items() if value and "bytes" not in name}
        return (after - before) / spent / 1e6, used / spent, lost


def measure_kernel(run: Run) -> tuple[float, float, dict[str, int]]:
    """The same of the kernel's own forwarding with connection tracking, whose share of a processor nobody tells."""
    with kernels(Sink) as (there, sink):
        with there.entered():
            generator = Generator("gen", frame_of(run.size), flows_of(FLOWS))
        try:
            time.sleep(SETTLE)
            before, start = sink.packets, time.perf_counter()
            time.sleep(run.seconds)
            return (sink.packets - before) / (time.perf_counter() - start) / 1e6, 1.0, {}
        finally:
            generator.stop()


def tracking(source: Iface, target: Iface) -> Loop:
    """A loop whose pipeline has the generator's flows as established connections."""
    devices = (source.name, target.name)
    rules = parse(RULES.format(*devices), "rules", Findings())
    pipeline = RulePipeline(rules, Config(max=2 * FLOWS, events=frozenset()), devices=devices)
    pipeline.arrive([Hook(name) for name in devices])
    there = [craft.udp("198.18.0.1", "198.19.0.1", FIRST_PORT + i, 9) for i in range(FLOWS)]
    back = [craft.udp("198.19.0.1", "198.18.0.1", 9, FIRST_PORT + i) for i in range(FLOWS)]
    now = time.time_ns()
    for ago, iface, frames in ((10, 0, there), (9, 1, back), (1, 0, there)):
        memory, rows = frames_of(frames)
        rows["ts"], rows["iface"] = now - ago * 1_000_000_000, iface
        pipeline.process(memory, rows, decisions=False)
    assert int((pipeline.tracker.conns()["status"] & Status.ASSURED > 0).sum()) == FLOWS
    return Loop(pipeline, [source, target])


def by_turns(run: Run, rounds: int) -> tuple[list[tuple[float, float, dict[str, int]]], float]:
    """Rounds of a run, each behind one of the plain forwarder, and the median of the ratios."""
    plain = replace(run, tracked=False, partial=True)
    pairs = [(measure(plain), measure(run)) for _ in range(rounds)]
    return [tracked for _, tracked in pairs], statistics.median(tracked[0] / bare[0] for bare, tracked in pairs)


def arrived(run: Run, target: Iface, sink: Sink) -> int:
    return target.statistics()["tx"] if run.receive_only else sink.packets


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=numbers, default=[64, 256])
    parser.add_argument("--drivers", type=lambda text: text.split(","), default=["xdp-native", "packet"])
    parser.add_argument("--kinds", type=lambda text: text.split(";"), default=list(KINDS), help="of: " + "; ".join(KINDS))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--ring", type=int, default=2048)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"{'driver':<12} {'what':<24} {'batch':>6} {'Mpps':>7} {'share':>6} {'ratio':>6}")
    for driver in options.drivers:
        for what, changes in KINDS.items():
            if what not in options.kinds:
                continue
            for batch in [ROUND] if "tracked" in what else options.batches:
                run = Run(driver, batch, options.seconds, options.size, ring=options.ring, **changes)
                results, ratio = by_turns(run, options.rounds) if run.tracked else ([measure(run) for _ in range(options.rounds)], 1.0)
                best, share, lost = max(results, key=lambda result: result[0])
                last = f"{ratio:>6.2f}" if run.tracked else ""
                print(f"{driver:<12} {what:<24} {batch:>6} {best:>7.2f} {share:>6.2f} {last}", lost if options.verbose else "", flush=True)


if __name__ == "__main__":
    main()

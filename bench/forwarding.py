"""The plain forwarder between two veth pairs: what the ring code and the machine can do, with no datapath in between.

    python -m bench.forwarding [--seconds 3] [--rounds 3] [--batches 64,256] [--drivers xdp-native,packet] [--size 64]

    generator -> gen ==== in -> forwarder -> out ==== sink -> counted, dropped        each pair of names is a veth pair

The generator has processor 0 for itself, with it the softirq of `in`; the forwarder has the other one, with it the softirq of the sink. The rate is
what arrives at the sink, over the time of one run; the best of `rounds`. Receiving only: the forwarder's other side is a Null. `share` is how much of
its processor the forwarder got: below 0.95, something else was running, and the rate says little.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.wire_traffic import Generator, Sink, let_pass
from datapath.live.drivers import Opened, Wanted, open_interface
from datapath.live.forwarder import Forwarder
from datapath.live.iface import Iface
from datapath.live.null import Null
from datapath.live.settings import XskSettings
from datapath.live.umem import Umem
from datapath.live.xdp_filter import EVERYTHING
from datapath.oracle.namespace import Namespace

SETTLE = 0.3  # s for the generator to come up


@dataclass(frozen=True)
class Run:
    driver: str
    batch: int
    seconds: float
    size: int
    receive_only: bool = False
    partial: bool = False
    ring: int = 2048


def pair(here: Namespace, there: Namespace, near: str, far: str) -> None:
    with here.netlink() as netlink:
        netlink.link("add", kind="veth", ifname=near, peer={"ifname": far, "net_ns_fd": there.fd})
    for namespace, name in ((here, near), (there, far)):
        namespace.sysctl(f"ipv6/conf/{name}/disable_ipv6", 1)
        with namespace.netlink() as netlink:
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], state="up")


@contextmanager
def topology(driver: str, ring: int) -> Iterator[tuple[Namespace, Opened, Opened, Sink]]:
    with ExitStack() as stack:
        here, there = Namespace(), Namespace()
        stack.callback(here.close)
        stack.callback(there.close)
        pair(here, there, "in", "gen")
        pair(here, there, "out", "sink")
        umem = Umem(8 * ring)
        wanted = [Wanted(driver=driver, ordinal=i, filter=EVERYTHING, xsk=XskSettings(ring=ring, tx_budget=min(ring, 256))) for i in range(2)]
        with here.entered():
            left = stack.enter_context(open_interface(umem, "in", wanted[0]))
            right = stack.enter_context(open_interface(umem, "out", wanted[1]))
            if driver == "packet":
                stack.callback(os.close, let_pass("in"))
        with there.entered():
            sink = Sink("sink")
            stack.callback(sink.close)
        yield there, left, right, sink


def measure(run: Run) -> tuple[float, float, dict[str, int]]:
    """Mpps that arrived, the forwarder's share of its processor, and counters of what did not arrive."""
    with topology(run.driver, run.ring) as (there, left, right, sink):
        source = left.ifaces[0]
        target = Null(source.umem) if run.receive_only else right.ifaces[0]
        forwarder = Forwarder(source, target, batch=run.batch, partial=run.partial)
        with there.entered():
            generator = Generator("gen", size=run.size)
        try:
            forwarder.run(SETTLE)
            before, used, start = arrived(run, target, sink), time.process_time(), time.perf_counter()
            forwarder.run(run.seconds)
            after, used, spent = arrived(run, target, sink), time.process_time() - used, time.perf_counter() - start
        finally:
            generator.stop()
        lost = {name: value for iface in (source, target) for name, value in iface.statistics().items() if value and "bytes" not in name}
        return (after - before) / spent / 1e6, used / spent, lost


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
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--ring", type=int, default=2048)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"{'driver':<12} {'what':<24} {'batch':>6} {'Mpps':>7} {'share':>6}")
    for driver in options.drivers:
        for what, changes in (("forward", {}), ("forward, sums completed", {"partial": True}), ("receive only", {"receive_only": True})):
            for batch in options.batches:
                run = Run(driver, batch, options.seconds, options.size, ring=options.ring, **changes)
                best, share, lost = max((measure(run) for _ in range(options.rounds)), key=lambda result: result[0])
                print(f"{driver:<12} {what:<24} {batch:>6} {best:>7.2f} {share:>6.2f}", lost if options.verbose else "", flush=True)


if __name__ == "__main__":
    main()

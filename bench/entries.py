"""What it takes to hand connections to the running kernel's conntrack and to take them back: connections a second through a backend's submit().

    sudo python -m bench.entries [--connections 100000] [--rounds 3]

TCP connections in a namespace of its own, both directions of each, in calls of 4,096 commands: made, counted, taken back. Rates are of the thread's
own time, Python and kernel together, since others may have the processor meanwhile; the fastest of the rounds, and the slowest.
Not here: what a mirror costs (bench.mirror).
"""

from __future__ import annotations

import argparse
import gc
import time
from ipaddress import ip_address

import numpy as np
from numpy.typing import NDArray

from datapath.oracle.namespace import Namespace
from offload.conntrack_entries import ConntrackEntries
from offload.records import COMMAND_DTYPE, Ctinfo, Op

SECOND = 1_000_000_000
AT_ONCE = 4096
PORTS = 50_000  # of one address


def commands(connections: int) -> NDArray[np.void]:
    """REPLACE of both directions of each."""
    made = np.zeros(2 * connections, dtype=COMMAND_DTYPE)
    number = np.arange(connections)
    client = np.zeros((connections, 16), dtype=np.uint8)
    client[:, :4] = np.stack([np.full(connections, 10), number // PORTS, np.zeros(connections), np.ones(connections)], axis=1)
    server = np.frombuffer(ip_address("192.0.2.9").packed.ljust(16, b"\0"), dtype=np.uint8)
    port = 1024 + number % PORTS
    for d in range(2):
        rows = made[d::2]
        for half in ("match", "to"):
            key = rows[half]
            key["src"], key["dst"] = (server, client) if d else (client, server)
            key["sport"], key["dport"] = (80, port) if d else (port, 80)
            key["proto"], key["family"] = 6, 4
        rows["cookie"], rows["conn"], rows["dir"], rows["op"] = number << 1 | d, number, d, Op.REPLACE
        rows["ctinfo"] = Ctinfo.ESTABLISHED_REPLY if d else Ctinfo.ESTABLISHED
    return made


def rate(backend: ConntrackEntries, asked: NDArray[np.void], op: Op, now: int) -> float:
    asked["op"] = op
    begun = time.thread_time()
    for at in range(0, len(asked), AT_ONCE):
        some = asked[at : at + AT_ONCE]
        assert backend.submit(some, now) == len(some)
        replies = backend.replies(now)
        assert len(replies) == len(some) and not replies["error"].any()
    return len(asked) / 2 / (time.thread_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asked = commands(given.connections)
    found: dict[Op, list[float]] = {Op.REPLACE: [], Op.STATS: [], Op.DESTROY: []}
    namespace = Namespace()
    with namespace.entered(), ConntrackEntries() as backend:
        gc.collect()
        gc.freeze()
        for turn in range(given.rounds):
            for op, rates in found.items():
                rates.append(rate(backend, asked, op, (turn + 1) * 10 * SECOND))
    namespace.close()
    for op, rates in found.items():
        print(f"{op.name:<8}{max(rates):>10,.0f} connections a second ({min(rates):,.0f} at least)")


if __name__ == "__main__":
    main()

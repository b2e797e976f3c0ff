"""What a scrape of a node's metrics costs: how long it takes, and how long packets would wait for its jobs.

    python -m bench.scrape --conns 1000000 --rounds 7

The connections are those of bench.state, in a node without traffic whose interfaces are nobody's. Not here: the way of the text through Prometheus.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from bench.state import conns
from datapath.live import node as nodes
from datapath.live.config import NodeConfig
from datapath.live.drivers import Opened
from datapath.live.metrics_server import MetricsServer, bound
from datapath.live.node import Node
from datapath.live.null import Null

RULES = "tc qdisc add dev eth0 clsact\ntc filter add dev eth0 ingress prio 1 protocol all flower action ct commit pipe action pass\n"


def quiet_node(most: int) -> Node:
    """With an interface that is nobody's. most: connections."""
    nodes.open_interface = lambda umem, name, wanted: Opened(name, "null", [Null(umem, name, ordinal=wanted.ordinal)])  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rules.tc").write_text(RULES)
        return Node(NodeConfig.model_validate({
            "rules": f"{folder}/rules.tc", "iface": [{"name": "eth0"}], "memory": {"chunks": 4096}, "conntrack": {"max": most},
            "control": {"socket": ""},
        }))  # fmt: skip


class Jobs:
    """Seconds of each job that a node does."""

    def __init__(self, node: Node) -> None:
        self.took: list[float] = []
        ask = node.ask
        node.ask = lambda job: ask(lambda it: self._timed(job, it))  # type: ignore[method-assign, assignment]

    def _timed(self, job: Callable[[Node], Any], node: Node) -> Any:
        start = time.perf_counter()
        try:
            return job(node)
        finally:
            self.took.append(time.perf_counter() - start)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--conns", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--port", type=int, default=29464)
    given = options.parse_args()
    node = quiet_node(max(given.conns, 1024))
    worker = threading.Thread(target=node.work)
    worker.start()
    try:
        adopted: Future[Any] = node.ask(lambda it: it.pipeline.tracker.adopt(conns(given.conns)) if given.conns else None)
        adopted.result()
        jobs = Jobs(node)
        with MetricsServer(node, bound(f"127.0.0.1:{given.port}")) as server:
            for _ in range(given.rounds):
                server._exposition.read_at = float("-inf")
                jobs.took.clear()
                start = time.perf_counter()
                size = len(urllib.request.urlopen(f"http://127.0.0.1:{given.port}/metrics").read())
                took = 1e3 * (time.perf_counter() - start)
                waits, longest = 1e3 * sum(jobs.took), 1e3 * max(jobs.took)
                print(f"{took:6.1f} ms, {size} bytes; {len(jobs.took)} jobs, {waits:.1f} ms in all, the longest {longest:.2f} ms", flush=True)
    finally:
        node.stop()
        worker.join()
        node.close()


if __name__ == "__main__":
    main()

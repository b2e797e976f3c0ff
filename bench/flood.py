"""A flood of SYNs against a node that is a bump in the wire: do others' connections go on, and does the table keep its bounds?

    python -m bench.flood [--seconds 600] [--max 100000] [--reserve 1000]

    flood  -> gen ==== bad  -> ctmirror run -> dead ==== sink         each pair of names is a veth pair
    client -> cli ==== in  <-> ctmirror run <-> out ==== srv <- server

The flood comes from the kernel at its full rate, every frame from another of 2^32 clients and ports, to port 80, which is tracked in zone 2. It has a
cable of its own: what one cable cannot take is lost in it, a client's frames as likely as others, and no node can help that. Eight connections to
an echo service (port 7, zone 1, which has a reserve) were there before; each asks every 50 ms. Every 200 ms a new one is made.
Told: how many questions were answered and how soon, how many new connections succeeded, the largest table, and the node's memory. Exit code 1 if an
established connection broke, if the table went over its limit, or if memory grew by more than a tenth while the flood lasted.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.topology import pair
from bench.wire_traffic import Generator, Sink, flood, flood_frame
from datapath.live.client import Client
from datapath.oracle.namespace import Namespace

CLIENT, SERVER, ECHO = "198.18.0.10", "198.18.0.20", 7
TALKING, EVERY, NEW_EVERY, PATIENCE = 8, 0.05, 0.2, 10.0
GROWTH = 1.1
ROOT = Path(__file__).parents[1]
TRACKED = """
tc filter add dev {0} ingress protocol ip prio 2 chain 0 flower action ct zone {zone} pipe action goto chain {zone}
tc filter add dev {0} ingress protocol ip prio 1 chain {zone} flower ct_state +trk+new action ct commit zone {zone} pipe \\
    action mirred egress redirect dev {1}
tc filter add dev {0} ingress protocol ip prio 2 chain {zone} flower ct_state +trk+est action mirred egress redirect dev {1}
tc filter add dev {0} ingress protocol arp prio 9 chain 0 flower action mirred egress redirect dev {1}
"""
RULES = TRACKED.format("in", "out", zone=1) + TRACKED.format("out", "in", zone=1) + TRACKED.format("bad", "dead", zone=2)
CONFIG = """
rules = "{folder}/node.tc"
cpu = {cpu}
{ifaces}
[conntrack]
max = {max}
zone_reserves = {{ 1 = {reserve} }}
[control]
socket = "{folder}/socket"
events = false
[log]
level = "warning"
"""
IFACE = """
[[iface]]
name = "{}"
filter = {{ all = true }}
"""
CABLES = (("bad", "gen"), ("in", "cli"), ("dead", "sink"), ("out", "srv"))  # the node's end, and that of the client (two), of the server (two)


@dataclass
class Seen:
    """What happened while the flood lasted. Times in seconds."""

    answers: list[float] = field(default_factory=list)
    broken: int = 0
    made: list[float] = field(default_factory=list)
    refused: int = 0
    connections: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


class Scene:
    """Node, client and server, as long as the stack lasts."""

    def __init__(self, stack: ExitStack, most: int, reserve: int) -> None:
        self.node, self.client, self.server = (self._namespace(stack) for _ in range(3))
        for (near, far), host in zip(CABLES, (self.client, self.client, self.server, self.server), strict=True):
            pair(self.node, host, near, far)
        for host, name, address in ((self.client, "cli", CLIENT), (self.server, "srv", SERVER)):
            with host.netlink() as netlink:
                netlink.addr("add", index=netlink.link_lookup(ifname=name)[0], address=address, prefixlen=15)
        with self.server.entered():
            self.sink = Sink("sink")
        stack.callback(self.sink.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        Path(folder, "node.tc").write_text(RULES)
        ifaces = "".join(IFACE.format(near) for near, _ in CABLES)
        cpu = max(os.sched_getaffinity(0))
        Path(folder, "node.toml").write_text(CONFIG.format(folder=folder, cpu=cpu, max=most, reserve=reserve, ifaces=ifaces))
        with self.node.entered():
            command = [sys.executable, "-m", "datapath", "run", "--config", f"{folder}/node.toml"]
            self.process = subprocess.Popen(command, cwd=ROOT)
        stack.callback(self._end)
        self.socket = f"{folder}/socket"
        self._wait()

    @staticmethod
    def _namespace(stack: ExitStack) -> Namespace:
        namespace = Namespace()
        stack.callback(namespace.close)
        return namespace

    def _end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while not os.path.exists(self.socket):
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit("flood: the node did not start")
            time.sleep(0.05)

    def connection(self) -> socket.socket:
        with self.client.entered():
            sock = socket.socket()
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect((SERVER, ECHO))
        except OSError:
            sock.close()
            raise
        return sock

    @property
    def memory(self) -> int:
        """Bytes of the node that are in memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def echoing(scene: Scene) -> Iterator[None]:
    """A server that answers each connection with what it says."""
    with scene.server.entered():
        listener = socket.create_server((SERVER, ECHO), backlog=128)
    ended = threading.Event()

    def answer(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            while data := sock.recv(4096):
                sock.sendall(data)

    def serve() -> None:
        listener.settimeout(0.1)
        while not ended.is_set():
            with suppress(TimeoutError):
                sock, _ = listener.accept()
                sock.setblocking(True)
                threading.Thread(target=answer, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        listener.close()


def asked(sock: socket.socket) -> float:
    """A question and its answer: how long it took. OSError if the connection broke."""
    start = time.perf_counter()
    sock.sendall(b"question")
    if sock.recv(100) != b"question":
        raise OSError("another answer")
    return time.perf_counter() - start


def watch(scene: Scene, seen: Seen, until: float) -> None:
    """Once a second: how many connections, how much memory."""
    client = Client(scene.socket)
    while time.monotonic() < until:
        seen.connections.append(int(client.ask("stats")["table"]["connections"]))
        seen.memory.append(scene.memory)
        time.sleep(1)


def talk(sock: socket.socket, seen: Seen, until: float) -> None:
    try:
        while time.monotonic() < until:
            seen.answers.append(asked(sock))
            time.sleep(EVERY)
    except OSError:
        seen.broken += 1


def make_new(scene: Scene, seen: Seen, until: float) -> None:
    while time.monotonic() < until:
        start = time.perf_counter()
        try:
            with scene.connection() as sock:
                asked(sock)
            seen.made.append(time.perf_counter() - start)
        except OSError:
            seen.refused += 1
        time.sleep(NEW_EVERY)


def measured(most: int, reserve: int, seconds: float) -> tuple[Seen, dict[str, Any]]:
    """What was seen, and the node's own figures afterwards."""
    seen = Seen()
    with ExitStack() as stack:
        scene = Scene(stack, most, reserve)
        stack.enter_context(echoing(scene))
        socks = [stack.enter_context(scene.connection()) for _ in range(TALKING)]
        for sock in socks:
            asked(sock)
        with scene.client.entered():
            generator = Generator("gen", flood_frame(), flood)
        stack.callback(generator.stop)
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=talk, args=(sock, seen, until)) for sock in socks]
        threads += [threading.Thread(target=work, args=(scene, seen, until)) for work in (watch, make_new)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seen, Client(scene.socket).ask("stats")


def told(seen: Seen, stats: dict[str, Any], most: int) -> dict[str, Any]:
    """As JSON."""
    incoming = next(iface for iface in stats["ifaces"] if iface["name"] == "bad")
    return {
        "flood_mpps": round(incoming["rx"] / stats["uptime"] / 1e6, 2),
        "not_received": {name: value for name, value in incoming.items() if isinstance(value, int) and value and name.startswith("rx_")},
        "answers": len(seen.answers),
        "broken": seen.broken,
        "answer_ms": dict(zip(("p50", "p99", "p99.9", "max"), _quantiles(seen.answers), strict=True)),
        "new": len(seen.made),
        "new_failed": seen.refused,
        "new_ms": dict(zip(("p50", "p99", "p99.9", "max"), _quantiles(seen.made), strict=True)),
        "most_connections": max(seen.connections),
        "limit": most,
        "memory_mb": [round(min(seen.memory[1:]) / 1e6, 1), round(max(seen.memory) / 1e6, 1)],
        "tracker": stats["tracker"],
    }


def _quantiles(times: list[float]) -> list[float]:
    return [round(1e3 * float(value), 2) for value in np.quantile(times or [0.0], (0.5, 0.99, 0.999, 1))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--max", type=int, default=100_000)
    parser.add_argument("--reserve", type=int, default=1000)
    options = parser.parse_args()
    seen, stats = measured(options.max, options.reserve, options.seconds)
    figures = told(seen, stats, options.max)
    print(json.dumps(figures, indent=1))
    low, high = figures["memory_mb"]
    return int(seen.broken > 0 or figures["most_connections"] > options.max or high > GROWTH * low)


if __name__ == "__main__":
    sys.exit(main())

"""A network with a node as its router: client -- node -- server, each in a namespace, real stacks at both ends.

    client 192.0.2.10 ------ lan 192.0.2.1  [node]  wan 198.51.100.1 ------ server 198.51.100.10        and the same with IPv6

Invariants: everything ends with the block, whatever happens in it; chunks, ifaces and tables are sound then. The node's namespace forwards nothing by
itself. Not here: what is sent (test_router_traffic).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from datapath.live.config import parse
from datapath.live.node import Node
from datapath.oracle.namespace import cable
from pcap_tests.netns import CLIENT, PREFIX_LENGTH, ROUTER, SERVER, V4, V6, Host

FAMILIES = (V4, V6)
MACS = {"client": "02:00:00:00:cc:01", "lan": "02:00:00:00:aa:01", "wan": "02:00:00:00:aa:02", "server": "02:00:00:00:dd:01"}
PASS = "tc filter add dev lan ingress protocol arp prio 1 flower action drop\n"
PATIENCE = 10.0


class Network:
    """The three namespaces, and the node at work in the middle one."""

    def __init__(self, stack: ExitStack, folder: Path, driver: str, rules: str, sections: str, top: str, offload: Any = None) -> None:
        self.client, self.middle, self.server = (self._host(stack) for _ in range(3))
        cable(self.client, self.middle, ("eth0", "lan"), (MACS["client"], MACS["lan"]))
        cable(self.middle, self.server, ("wan", "eth0"), (MACS["wan"], MACS["server"]))
        for host, name, addresses in (
            (self.client, "eth0", CLIENT), (self.middle, "lan", ROUTER[0]), (self.middle, "wan", ROUTER[1]), (self.server, "eth0", SERVER),
        ):  # fmt: skip
            with host.netlink() as netlink:
                index = netlink.link_lookup(ifname=name)[0]
                for family in FAMILIES:
                    netlink.addr("add", index=index, address=addresses[family], prefixlen=PREFIX_LENGTH[family], family=family)
        self.client.default_route(ROUTER[0])
        self.server.default_route(ROUTER[1])
        (folder / "rules.tc").write_text(rules)
        ifaces = "".join(f'[[iface]]\nname = "{name}"\ndriver = "{driver}"\nrouted = true\nring = 512\n' for name in ("lan", "wan"))
        config = parse(f'rules = "{folder}/rules.tc"\n{top}{ifaces}{sections}', "node.toml")
        with self.middle.entered():
            self.node = Node(config, offload=offload)
            stack.callback(self._close)
            self.thread = threading.Thread(target=self.node.work, name="worker")
            self.thread.start()

    @staticmethod
    def _host(stack: ExitStack) -> Host:
        host = Host()
        stack.callback(host.close)
        host.prepare()
        return host

    def _close(self) -> None:
        listened = self.node.neighbours.thread.is_alive()  # a node that stops ends it, if it has just asked for something
        self.node.stop()
        self.thread.join()
        try:
            self.node.umem.check()
            assert "held" not in self.node.umem.places()
            self.node.router.neighbours.check()
            self.node.pipeline.tracker.check()
            assert listened
        finally:
            self.node.close()
        assert not self.node.neighbours.thread.is_alive()
        assert self.node.umem.places() == {"free": self.node.umem.chunks}

    def counters(self) -> dict[str, int]:
        return self.node.ask(lambda node: {**node.router.counters(), **node.router.neighbours.counters()}).result(PATIENCE)

    def neighbour(self, name: str, address: str) -> Any:
        ordinal = self.node.router.names.index(name)
        return self.node.ask(lambda node: node.router.neighbours.find(ordinal, ip_address(address))).result(PATIENCE)

    def set(self, host: Host, name: str, **what: object) -> None:
        with host.netlink() as netlink:
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], **what)

    @contextmanager
    def echo(self, kind: int, family: int) -> Iterator[list[str]]:
        """The server returns what it gets at port 7, until the end of the block; whom it has got something from."""
        seen: list[str] = []
        ended = threading.Event()
        with self.server.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", 7))
            listener.settimeout(0.1)
            if kind == socket.SOCK_STREAM:
                listener.listen()
            thread = threading.Thread(target=serve, args=(listener, kind, seen, ended))
            thread.start()
            try:
                yield seen
            finally:
                ended.set()
                thread.join()


def serve(listener: socket.socket, kind: int, seen: list[str], ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            if kind == socket.SOCK_DGRAM:
                data, peer = listener.recvfrom(1 << 16)
                seen.append(peer[0])
                listener.sendto(data, peer)
                continue
            conn, peer = listener.accept()
        except TimeoutError:
            continue
        seen.append(peer[0])
        with conn:
            conn.settimeout(PATIENCE)
            while data := conn.recv(1 << 16):
                conn.sendall(data)


def ask_udp(net: Network, family: int, data: bytes = b"question", to: str = "") -> list[str]:
    """Asked until it is answered: the first packet makes the router ask for its neighbour. Whom the server has seen."""
    with net.echo(socket.SOCK_DGRAM, family) as seen, net.client.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        for _ in range(20):
            sock.sendto(data, (to or SERVER[family], 7))
            try:
                assert sock.recv(1 << 16) == data
            except TimeoutError:
                continue
            return sorted(set(seen))
    raise AssertionError("no answer")


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.02)


@contextmanager
def network(folder: Path, driver: str, rules: str = PASS, sections: str = "", top: str = "", offload: Any = None) -> Iterator[Network]:
    """sections, top: more of the configuration, behind the interfaces and before them; offload: what the node has in hardware."""
    with ExitStack() as stack:
        yield Network(stack, folder, driver, rules, sections, top, offload)

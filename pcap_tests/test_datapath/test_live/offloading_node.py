"""A node with hardware between two real stacks, which may be asked, for tests of offloading in a node. Not here: what is sent, what is expected."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from datapath.commands.nic_option import nic_profile
from datapath.commands.offload_live import simulated
from datapath.live.client import Client
from datapath.live.config import load
from datapath.live.control import Control
from datapath.live.exposition import PLAIN, Exposition
from datapath.live.node import Node
from offload.simnic.faults import Fault
from pcap_tests.test_datapath.test_live.test_node import CLIENT, IPV4, PUBLIC, SERVER, _mac, address
from pcap_tests.test_datapath.test_live.test_workers import Working, at_work, written
from pcap_tests.test_datapath.test_live.wires import until

BODY = bytes(range(256)) * 4000
# Of an audit that finds nothing, but for the numbers of rules.
NOTHING = {"differ": 0, "pending": 0, "differences": [], "drift": 0, "findings": [], "entries": None}
DIGEST = hashlib.sha256(BODY).hexdigest()


class Offloading(Working):
    """Two stacks, and a node with a NIC between them, which may be asked."""

    client: Client
    socket: str

    def status(self) -> dict:
        return self.client.ask("offload")

    def why(self, **which) -> list[dict]:
        return list(self.client.conns("offload_why", which=which))

    def audit(self) -> dict:
        return self.client.ask("offload_audit")

    def metric(self, name: str) -> float:
        """A sample of a scrape."""
        lines = asyncio.run(Exposition(self.node).text(PLAIN)).decode().splitlines()
        (value,) = (float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)
        return value


@pytest.fixture
def offloading(wires, tmp_path):
    """offloading(rules, "tiny"): a node with such a NIC."""

    @contextmanager
    def run(
        rules: str = IPV4, profile: str = "connectx-7-hw", *, workers: int = 1, faults: tuple[Fault, ...] = (), more=None
    ) -> Iterator[Offloading]:
        left, right = wires("left", queues=workers), wires("right", queues=workers)
        address(left, CLIENT)
        address(right, SERVER)
        kind = nic_profile(profile)
        kind = kind if more is None else kind.model_copy(update=more)
        with left.here.entered():
            node = Node(load(written(tmp_path, rules, "xdp-native", workers)), offload=simulated(kind, "first-come", faults))
        path = str(tmp_path / "socket")
        try:
            with at_work(node), Control(node, path), Client(path) as client:
                net = Offloading(node, left, right, tmp_path / "rules.tc")
                net.client, net.socket = client, path
                with right.there.netlink() as netlink:  # nobody answers for the public address
                    netlink.neigh("add", dst=PUBLIC, lladdr=_mac(left), ifindex=netlink.link_lookup(ifname=right.far)[0])
                yield net
                node.ask(lambda node: [worker.offload.mirror.check() for worker in node.workers]).result(10)
            node.umem.check()
        finally:
            node.close()

    return run


@contextmanager
def talking(net: Offloading, port: int) -> Iterator[socket.socket]:
    """A connection to an echo server through the node, which is in hardware."""
    with net.left.there.entered():
        talker = socket.create_connection((SERVER, port), timeout=5)
    with talker:
        talker.settimeout(5)
        said(talker)
        until(lambda: net.status()["flows"]["installed"] == 1, "the connection is in hardware")
        yield talker


def said(talker: socket.socket, times: int = 1) -> None:
    for _ in range(times):
        talker.sendall(b"question")
        assert talker.recv(100) == b"question"

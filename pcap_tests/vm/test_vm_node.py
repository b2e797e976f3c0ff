"""A node on AF_XDP that gives its connections to the kernel's TC: real TCP between two stacks, which XDP lets by as soon as the kernel has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from datapath.commands.offload_tc import TcFactory
from datapath.live.client import Client
from datapath.live.config import load
from datapath.live.control import Control
from datapath.live.node import Node
from datapath.oracle.namespace import Namespace
from pcap_tests.test_datapath.test_live.offloading_node import Offloading
from pcap_tests.test_datapath.test_live.test_node import CLIENT, IPV4, SERVER, TRANSLATING, PUBLIC, _mac, address, fetch, serving
from pcap_tests.test_datapath.test_live.test_workers import at_work, echoing_tcp, written
from pcap_tests.test_datapath.test_live.wires import Wire, until
from pcap_tests.test_datapath.test_live.offloading_node import said, talking

SIDES = '[[offload.side]]\ndevice = "left"\nnetworks = ["10.9.0.1/32"]\n[[offload.side]]\ndevice = "right"\n'


@contextmanager
def offloaded(folder, section: str, rules: str = IPV4, workers: int = 1) -> Iterator[Offloading]:
    """A node with this section between two stacks."""
    here, inside, outside = Namespace(), Namespace(), Namespace()
    try:
        left, right = Wire(here, inside, "left", queues=workers), Wire(here, outside, "right", queues=workers)
        address(left, CLIENT)
        address(right, SERVER)
        with right.there.netlink() as netlink:  # nobody answers for the public address
            netlink.neigh("add", dst=PUBLIC, lladdr=_mac(left), ifindex=netlink.link_lookup(ifname=right.far)[0])
        name = written(folder, rules, "xdp-native", workers)
        with open(name, "a") as file:
            file.write(f'[offload]\nbackend = "tc"\n{section}')
        config = load(name)
        with here.entered():
            node = Node(config, offload=TcFactory(config))
        path = str(folder / "socket")
        try:
            with at_work(node), Control(node, path), Client(path) as client:
                net = Offloading(node, left, right, folder / "rules.tc")
                net.client, net.socket = client, path
                yield net
                node.ask(lambda node: [worker.offload.mirror.check() for worker in node.workers]).result(10)
            node.umem.check()
        finally:
            node.close()
    finally:
        for namespace in (here, inside, outside):
            namespace.close()


@pytest.mark.parametrize("rules", [IPV4, TRANSLATING], ids=["plain", "snat"])
def test_exact_filters_in_the_kernel(tmp_path, rules):
    with offloaded(tmp_path, f'way = "exact"\nhardware = "no"\n{SIDES}', rules) as net, echoing_tcp(net.right) as port:
        print(net.status())
        with talking(net, port) as talker:
            before = net.status()["packets"]
            said(talker, 50)
            after = net.status()["packets"]
            print(net.why(dport=port), net.audit(), before, after)
            assert after["software"] - before["software"] <= 5

"""A node between two stacks that offloads to the kernel's TC, in the guest. Not here: what is sent, what is expected."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from datapath.commands.offload_tc import TcFactory
from datapath.live.client import Client
from datapath.live.config import load
from datapath.live.control import Control
from datapath.live.node import Node
from datapath.oracle.namespace import Namespace
from offload.netlink.channel import NETFILTER, Channel
from offload.netlink.filters import ACK, message
from pcap_tests.test_datapath.test_live.offloading_node import Offloading
from pcap_tests.test_datapath.test_live.test_node import CLIENT, IPV4, PUBLIC, SERVER, _mac, address
from pcap_tests.test_datapath.test_live.test_workers import at_work
from pcap_tests.test_datapath.test_live.wires import Wire

SIDES = f'[[offload.side]]\ndevice = "left"\nnetworks = ["{CLIENT}/32"]\n[[offload.side]]\ndevice = "right"\n'
EXACT = f'way = "exact"\nhardware = "no"\n{SIDES}'
PIPELINE = 'way = "pipeline"\nhardware = "no"\n'
PATIENCE = 15.0  # s: an emulated machine
CT_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE: without a tuple, all


class InKernel(Offloading):
    """Two stacks, and a node that offloads between them. left_over: the filters and qdiscs that tc listed when it had gone."""

    left_over = ""

    @property
    def devices(self) -> tuple[str, str]:
        return self.left.near, self.right.near

    @staticmethod
    def flush() -> None:
        """As conntrack -F, in this thread's namespace."""
        with Channel(NETFILTER) as channel:
            (answer,) = channel.ask([message(CT_DELETE, ACK, bytes(4))])
            assert not answer.error, answer.told()


class Conn:
    """UDP to an echo server."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(5)
        self.socket.connect((host, port))

    def say(self, times: int) -> None:
        for _ in range(times):
            self.socket.send(b"question")
            assert self.socket.recv(100) == b"question"

    def __enter__(self) -> Conn:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


class Ends(NamedTuple):
    """The node's devices, and the addresses behind them. public: one that nobody has, and what is behind the first device is translated to."""

    devices: tuple[str, str] = ("left", "right")
    addresses: tuple[str, str] = (CLIENT, SERVER)
    public: str = PUBLIC


USUAL = Ends()


@contextmanager
def offloaded(folder: Path, section: str, rules: str = IPV4, workers: int = 1, ends: Ends = USUAL, nic: bool = False) -> Iterator[InKernel]:
    """A node with this section [offload]. nic: devices are NICs, where the module is loaded that makes them so."""
    with configured(folder, _written(folder, section, rules, workers, ends), ends, nic) as net:
        yield net


@contextmanager
def configured(folder: Path, config_file: str, ends: Ends = USUAL, nic: bool = False) -> Iterator[InKernel]:
    """A node with this configuration, whose control socket is in that folder."""
    config = load(config_file)
    here, inside, outside = Namespace(), Namespace(), Namespace()
    try:
        left, right = (Wire(here, there, name, queues=config.workers) for there, name in zip((inside, outside), ends.devices, strict=True))
        for wire, own in zip((left, right), ends.addresses, strict=True):
            address(wire, own)
        with right.there.netlink() as netlink:
            netlink.neigh("add", dst=ends.public, lladdr=_mac(left), ifindex=netlink.link_lookup(ifname=right.far)[0])
        with here.entered():
            for name in ends.devices if not nic else ():
                subprocess.run(["ethtool", "-K", name, "hw-tc-offload", "off"], capture_output=True)  # it may not even have it
            node = Node(config, offload=TcFactory(config))
        net = InKernel(node, left, right, folder / "rules.tc")
        net.socket = str(folder / "socket")
        try:
            with at_work(node), Control(node, net.socket), Client(net.socket) as net.client:
                try:
                    yield net
                except BaseException:
                    _tell(net)
                    raise
                node.ask(lambda node: [worker.offload.mirror.check() for worker in node.workers]).result(10)
            node.umem.check()
        finally:
            node.close()
        net.left_over = filters(net) + qdiscs(net)
    finally:
        for namespace in (here, inside, outside):
            namespace.close()


def _written(folder: Path, section: str, rules: str, workers: int, ends: Ends) -> str:
    """A configuration; its name."""
    (folder / "rules.tc").write_text(rules)
    ifaces = "".join(f'[[iface]]\nname = "{name}"\ndriver = "xdp-native"\nring = 256\nfilter = {{ all = true }}\n' for name in ends.devices)
    (folder / "node.toml").write_text(
        f'rules = "rules.tc"\nworkers = {workers}\n{ifaces}[conntrack]\nmax = 4000\n[control]\nsocket = "{folder}/socket"\n'
        f'[offload]\nbackend = "tc"\n{section}'
    )
    return str(folder / "node.toml")


def _tell(net: InKernel) -> None:
    """How it was when a test failed."""
    try:
        mirrors = net.of_each(lambda worker: worker.offload.mirror.counters())
        for each in (net.status(), net.why(), kernel_conns(net), filters(net), *mirrors):
            print(each)
    except Exception as error:
        print(f"and the node says nothing any more: {error!r}")


def kernel_conns(net: InKernel) -> list[str]:
    """What the kernel tracks where the node is."""
    with net.left.here.entered():
        return Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines()


def filters(net: InKernel) -> str:
    """What tc lists at both devices."""
    with net.left.here.entered():
        listed = [subprocess.run(["tc", "filter", "show", "dev", name, "ingress"], capture_output=True, text=True) for name in net.devices]
    return "".join(each.stdout for each in listed)


def qdiscs(net: InKernel) -> str:
    """Those that filters hang at, at both devices."""
    with net.left.here.entered():
        listed = subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True).stdout
    return "".join(line for line in listed.splitlines(keepends=True) if line.split()[1] in ("clsact", "ingress"))


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that others do in their own time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.02)

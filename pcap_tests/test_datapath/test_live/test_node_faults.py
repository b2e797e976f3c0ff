"""`ctmirror run` between two stacks, and what can go wrong around it: kill -9 at any moment, cables that go, clients that send garbage meanwhile."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from datapath.live.client import Client
from datapath.live.interfaces import mac_of
from pcap_tests.test_datapath.test_live.test_xdp_filter import attached
from pcap_tests.test_datapath.test_live.wires import Wire, until

ROOT = Path(__file__).parents[3]
LEFT, RIGHT, PORT = "10.9.0.1", "10.9.0.2", 7
RULES = "".join(
    f"tc filter add dev {here} ingress protocol ip prio 1 flower action ct commit pipe action mirred egress redirect dev {there}\n"
    f"tc filter add dev {here} ingress protocol arp prio 2 flower action mirred egress redirect dev {there}\n"
    for here, there in (("left", "right"), ("right", "left"))
)
CONFIG = """rules = "node.tc"
[[iface]]
name = "left"
ring = 256
filter = { all = true }
[[iface]]
name = "right"
ring = 256
filter = { all = true }
[conntrack]
max = 10000
[control]
socket = "%s"
[state]
file = "node.state"
"""


class Street:
    """Two stacks with a node's interfaces between them, and the node's folder."""

    def __init__(self, left: Wire, right: Wire, folder: Path) -> None:
        self.left, self.right, self.folder = left, right, folder
        self.socket = str(folder / "socket")
        (folder / "node.tc").write_text(RULES)
        (folder / "node.toml").write_text(CONFIG % self.socket)

    @contextmanager
    def node(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "datapath", "run", "--config", str(self.folder / "node.toml"), *options]
        with self.left.here.entered():
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        assert process.stderr is not None
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            process.stderr.close()

    def listens(self) -> bool:
        with suppress(Exception):
            return bool(Client(self.socket).ask("stats")["ifaces"])
        return False

    def asks(self) -> bool:
        """Whether a datagram from the left is answered at the right."""
        with self.left.there.entered():
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with self.right.there.entered():
            answering = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with asking, answering:
            answering.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            answering.bind((RIGHT, PORT))
            for sock in (asking, answering):
                sock.settimeout(0.2)
            try:
                asking.sendto(b"question", (RIGHT, PORT))
                data, peer = answering.recvfrom(100)
                answering.sendto(data, peer)
                return asking.recv(100) == b"question"
            except OSError:
                return False


@pytest.fixture
def street(wires, tmp_path) -> Street:
    left, right = wires("left"), wires("right")
    for wire, address in ((left, LEFT), (right, RIGHT)):
        with wire.there.netlink() as netlink:
            netlink.addr("add", index=netlink.link_lookup(ifname=wire.far)[0], address=address, prefixlen=24)
    return Street(left, right, tmp_path)


def test_kill_9_at_any_moment_leaves_nothing_and_the_next_one_works(street):
    """Some of them while they start, some at work, some while they end and save."""
    chance = random.Random(6)
    for _ in range(12):
        with street.node("--restore") as process:
            time.sleep(chance.uniform(0, 1.2))
            if chance.random() < 0.3:
                process.send_signal(signal.SIGTERM)
                time.sleep(chance.uniform(0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        until(lambda: not attached(street.left) and not attached(street.right), "no program any more")
    with street.node("--restore") as process:
        until(street.asks, "an answer through the next one")
        assert attached(street.left) and attached(street.right)
        process.terminate()
        assert process.wait(10) == 0
    assert not os.path.exists(street.socket)
    left = sorted(path.name for path in street.folder.iterdir())
    assert [name for name in left if name not in ("node.tc", "node.toml", "node.state")] == [], "no lock, no half of a file"


def test_a_cable_that_is_down_for_a_while(street):
    with street.node():
        until(street.asks, "an answer")
        street.right.set(street.right.here, "right", state="down")
        until(lambda: not street.asks(), "no answer")
        street.right.set(street.right.here, "right", state="up")
        until(street.asks, "an answer again")


def test_a_cable_that_is_removed_and_another_one_of_its_name(street, wires):
    """A pod that goes, and one that comes: its device has the name that the configuration says."""
    with street.node():
        until(street.asks, "an answer")
        with street.right.there.entered():
            mac = ":".join(f"{byte:02x}" for byte in mac_of(street.right.far))
        street.right.remove()
        until(lambda: condition(street, "right") == "gone", "an interface that is gone")
        assert street.listens() and condition(street, "left") == "up"
        other = Wire(street.left.here, street.right.there, "right", street.right.far)
        with other.there.netlink() as netlink:
            index = netlink.link_lookup(ifname=other.far)[0]
            netlink.link("set", index=index, address=mac)  # the left has it in its ARP table
            netlink.addr("add", index=index, address=RIGHT, prefixlen=24)
        until(lambda: condition(street, "right") == "up", "the interface to be there again")
        until(street.asks, "an answer through it")


def condition(street: Street, name: str) -> str:
    found = Client(street.socket).ask("stats")["ifaces"]
    return next(str(iface["condition"]) for iface in found if iface["name"] == name)


def test_clients_that_send_garbage_and_never_read_hold_up_no_packet(street):
    with street.node():
        until(street.asks, "an answer")
        chance = random.Random(7)
        rude = []
        for _ in range(20):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(street.socket)
            sock.setblocking(False)
            with suppress(OSError):
                sock.send(chance.randbytes(chance.randrange(1, 4000)))
            rude.append(sock)
        for _ in range(50):
            assert street.asks()
        assert street.listens()
        for sock in rude:
            sock.close()

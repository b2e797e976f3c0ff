"""Wires to try ifaces on: veth pairs between namespaces of the test's own, as containers have them, with all offloads on.

Invariants: everything ends with the test, also one that fails: namespaces are file descriptors, and devices go with them.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datapath.live.iface import Iface
from datapath.live.umem import Umem
from datapath.oracle.namespace import Namespace

PATIENCE = 5.0
ETH_P_ALL = 3


class Wire:
    """A veth pair, up: `near` in a namespace where ifaces are opened, `far` in one with a stack."""

    def __init__(self, here: Namespace, there: Namespace, near: str = "near", far: str = "far", *, queues: int = 1, address: str = "") -> None:
        self.here, self.there, self.near, self.far = here, there, near, far
        many = {"num_tx_queues": queues, "num_rx_queues": queues}
        with here.netlink() as netlink:
            netlink.link("add", kind="veth", ifname=near, peer={"ifname": far, "net_ns_fd": there.fd, **many}, **many)
        for namespace, name in self.ends:
            # Without neighbour discovery of its own: a test counts what it has sent.
            namespace.sysctl(f"ipv6/conf/{name}/disable_ipv6", 1)
            self.set(namespace, name, state="up")
        if address:
            with there.netlink() as netlink:
                netlink.link("set", index=1, state="up")
                netlink.addr("add", index=netlink.link_lookup(ifname=far)[0], address=address, prefixlen=24)

    @property
    def ends(self) -> tuple[tuple[Namespace, str], tuple[Namespace, str]]:
        return (self.here, self.near), (self.there, self.far)

    def set(self, namespace: Namespace, name: str, **what: object) -> None:
        with namespace.netlink() as netlink:
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], **what)

    def remove(self) -> None:
        with self.here.netlink() as netlink:
            netlink.link("del", index=netlink.link_lookup(ifname=self.near)[0])

    @contextmanager
    def end(self) -> Iterator[socket.socket]:
        """A packet socket at the far end: frames to be sent, and those that arrive."""
        with self.there.entered():
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        try:
            end.bind((self.far, ETH_P_ALL))
            end.settimeout(PATIENCE)
            yield end
        finally:
            end.close()


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that the kernel does in its own time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.001)


def received(iface: Iface, n: int) -> list[bytes]:
    """The next n frames, whose chunks are given back."""
    found: list[bytes] = []

    def look() -> bool:
        frames = iface.receive_batch(64)
        for frame in frames:
            found.append(iface.umem.memory[int(frame["offset"]) :][: int(frame["caplen"])].tobytes())
        iface.umem.give(frames["offset"], worker=iface.worker)
        iface.tidy_up()
        return len(found) >= n

    until(look, f"{n} frames at {iface.name}")
    assert len(found) == n
    return found


def sent(iface: Iface, frames: list[bytes]) -> int:
    """Hand over frames; those not taken are given back. How many were taken."""
    rows = iface.umem.put(frames, worker=iface.worker)
    taken = iface.send_batch(rows)
    iface.umem.give(rows["offset"][taken:], worker=iface.worker)
    iface.tidy_up()
    return taken


def sound(umem: Umem, *ifaces: Iface) -> None:
    """The ledger, the stacks and the ifaces agree."""
    umem.check()
    for iface in ifaces:
        iface.check()

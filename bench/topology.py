"""What packets are sent through to measure forwarding: two veth pairs with a forwarder between them, ours or the kernel's.

    generator -> gen ==== in -> forwarder -> out ==== sink        each pair of names is a veth pair

Not here: the forwarder itself (forwarding), packets (wire_traffic).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from bench import kernel_router
from bench.wire_traffic import Sink, let_pass
from datapath.live.drivers import Opened, Wanted, open_interface
from datapath.live.settings import XskSettings
from datapath.live.umem import Umem
from datapath.live.xdp_filter import EVERYTHING
from datapath.oracle.namespace import Namespace

S = TypeVar("S", bound=Sink)


def pair(here: Namespace, there: Namespace, near: str, far: str) -> None:
    with here.netlink() as netlink:
        netlink.link("add", kind="veth", ifname=near, peer={"ifname": far, "net_ns_fd": there.fd})
    for namespace, name in ((here, near), (there, far)):
        namespace.sysctl(f"ipv6/conf/{name}/disable_ipv6", 1)
        with namespace.netlink() as netlink:
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], state="up")


def open_side(umem: Umem, name: str, driver: str, ring: int, ordinal: int) -> Opened:
    settings = XskSettings(ring=ring, tx_budget=min(ring, 256))
    return open_interface(umem, name, Wanted(driver=driver, ordinal=ordinal, filter=EVERYTHING, xsk=settings))


@contextmanager
def ours(driver: str, ring: int, sink: type[S]) -> Iterator[tuple[Namespace, Opened, Opened, S]]:
    """Where to generate, both sides opened, and the sink."""
    with ExitStack() as stack:
        here, there = _two(stack)
        umem = Umem(8 * ring)
        with here.entered():
            left, right = (stack.enter_context(open_side(umem, name, driver, ring, i)) for i, name in enumerate(("in", "out")))
            if driver == "packet":
                stack.callback(os.close, let_pass("in"))
        yield there, left, right, _sink(stack, there, sink)


@contextmanager
def kernels(sink: type[S]) -> Iterator[tuple[Namespace, S]]:
    """Where to generate, and the sink; between them the kernel tracks and routes."""
    with ExitStack() as stack:
        here, there = _two(stack)
        with here.entered():
            stack.callback(os.close, let_pass("in"))
        kernel_router.set_up(here)
        yield there, _sink(stack, there, sink)


def _two(stack: ExitStack) -> tuple[Namespace, Namespace]:
    """Namespaces of the forwarder and of both ends, with the cables between them."""
    here, there = Namespace(), Namespace()
    stack.callback(here.close)
    stack.callback(there.close)
    pair(here, there, "in", "gen")
    pair(here, there, "out", "sink")
    return here, there


def _sink(stack: ExitStack, there: Namespace, kind: type[S]) -> S:
    with there.entered():
        sink = kind("sink")
    stack.callback(sink.close)
    return sink

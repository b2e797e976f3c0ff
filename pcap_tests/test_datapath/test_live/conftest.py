"""Fixtures for ifaces: namespaces with a wire between them, where the machine lets us make such."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from datapath.errors import KernelError
from datapath.live.umem import Umem
from datapath.live.xdp_filter import Steering
from datapath.live.xsk import Xsk
from datapath.oracle.namespace import Namespace
from pcap_tests.required import cannot
from pcap_tests.test_datapath.test_live.wires import Wire


@pytest.fixture(scope="session")
def interfaces() -> None:
    """Namespaces, veth, XDP and AF_XDP are there for us; otherwise tests of ifaces are skipped, or fail (CTMIRROR_REQUIRE_KERNEL=1)."""
    with ExitStack() as stack:
        try:
            here, there = Namespace(), Namespace()
            stack.callback(here.close)
            stack.callback(there.close)
            Wire(here, there)
            with here.entered():
                xsk = Xsk(Umem(64), "near")
                stack.callback(xsk.close)
                steering = Steering()
                stack.callback(steering.close)
                steering.attach("near")
        except (OSError, KernelError) as error:
            cannot(f"no ifaces can be tried: {error}")


@pytest.fixture
def wires(interfaces: None) -> Iterator[Callable[..., Wire]]:
    """wires("a"): a wire whose near end is in the namespace that all of a test's have in common, and is called so."""
    with ExitStack() as stack:
        here = Namespace()
        stack.callback(here.close)

        def make(near: str = "near", **options: object) -> Wire:
            there = Namespace()
            stack.callback(there.close)
            return Wire(here, there, near, **options)

        yield make


@pytest.fixture
def wire(wires: Callable[..., Wire]) -> Wire:
    return wires()


@pytest.fixture
def own_log() -> Iterator[None]:
    """A service starts the log in its own way; afterwards it is as it was."""
    log = logging.getLogger("ctmirror")
    handlers, propagate, level = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)

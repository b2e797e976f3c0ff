"""A namespace of its own for each test, with a backend there, somebody else who looks on, and traffic that conntrack sees. Needs root and
nf_conntrack_netlink; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ctcore.config import Config
from datapath.oracle import ruleset
from datapath.oracle.namespace import Namespace
from offload.conntrack_entries import ConntrackEntries
from offload.netlink.conntrack import KernelConntrack
from pcap_tests.test_offload.commanded import UDP, Flow
from pcap_tests.test_offload.entering import (
    FakeBypass,
    ours,
)


@pytest.fixture
def place(running_kernel) -> Iterator[Namespace]:
    namespace = Namespace()
    with namespace.entered():
        yield namespace
    namespace.close()


@pytest.fixture
def kernel(place) -> Iterator[KernelConntrack]:
    """Somebody else."""
    with KernelConntrack() as other:
        yield other


@pytest.fixture
def bypass() -> FakeBypass:
    return FakeBypass()


@pytest.fixture
def backend(place, bypass) -> Iterator[ConntrackEntries]:
    with ConntrackEntries(bypass=bypass) as backend:
        yield backend
    assert bypass.keys == set()
    with KernelConntrack() as after:
        assert ours(after) == 0


@pytest.fixture
def talk(place) -> Iterator[tuple[socket.socket, socket.socket, Flow]]:
    """Two sockets of the namespace that talk by an address of its own; conntrack looks on, for a rule asks for it."""
    with place.netlink() as netlink:
        netlink.link("set", index=1, state="up")
    ruleset.load(place, Config())
    near, far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    near.bind(("127.0.0.1", 5000))
    far.bind(("127.0.0.2", 53))
    near.connect(("127.0.0.2", 53))
    far.connect(("127.0.0.1", 5000))
    with near, far:
        yield near, far, Flow(21, UDP, "127.0.0.1", "127.0.0.2", 5000, 53)


@pytest.fixture
def tcp(place) -> Iterator[tuple[socket.socket, Flow]]:
    """The near end of a connection through conntrack."""
    with place.netlink() as netlink:
        netlink.link("set", index=1, state="up")
    ruleset.load(place, Config())
    with socket.create_server(("127.0.0.2", 80)) as server, socket.create_connection(("127.0.0.2", 80), source_address=("127.0.0.1", 5000)) as near:
        far, _ = server.accept()
        with far:
            yield near, Flow(22, src="127.0.0.1", dst="127.0.0.2", sport=5000)

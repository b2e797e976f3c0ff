"""What the running kernel lists of TC while interfaces of others come and go. With filters: pcap_tests/vm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datapath.commands.tc.ask import KernelTc, Listed
from datapath.oracle.namespace import Namespace
from datapath.pipeline.rules import Hook, Qdisc
from offload.netlink.links import links

OURS, HOOKS = Qdisc("eth0"), [Hook("eth0"), Hook("eth0", "egress")]


@pytest.fixture
def namespace(running_kernel) -> Iterator[Namespace]:
    """With eth0; this thread is in it."""
    made = Namespace()
    pair(made, "eth0", "eth1")
    with made.entered():
        yield made
    made.close()


def pair(namespace: Namespace, name: str, peer: str) -> None:
    with namespace.netlink() as netlink:
        netlink.link("add", ifname=name, kind="veth", peer={"ifname": peer})


def with_qdisc(name: str) -> None:
    with KernelTc() as others:
        assert others.each([Qdisc(name)]) == []


def test_a_qdisc_of_an_interface_that_has_come_since_is_no_matter(namespace):
    """A pod's, whose CNI is as fast as we are."""
    with KernelTc() as kernel:
        assert kernel.each([OURS]) == []
        pair(namespace, "pod", "pod1")
        with_qdisc("pod")
        assert kernel.listed(HOOKS) == Listed((OURS,), (), (), ()) and kernel.hooks() == HOOKS
        kernel.look_again()
        assert kernel.hooks() == [*HOOKS, Hook("pod"), Hook("pod", "egress")]


def test_an_interface_that_has_gone_since_is_no_matter(namespace):
    pair(namespace, "pod", "pod1")
    with KernelTc() as kernel:
        assert kernel.each([OURS, Qdisc("pod")]) == []
        hooks = kernel.hooks()
        with namespace.netlink() as netlink:
            netlink.link("del", index=links(kernel.channel)["pod"])
        assert kernel.listed(hooks) == Listed((OURS,), (), (), ())

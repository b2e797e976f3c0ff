"""A switch that has the address itself which a rule translates to, as a router has: answers that come to its own stack would be answered with a RST.

So of a connection that goes over to the kernel and back, again and again while packets come, none does: no key is in the bypass without its filter or
entry in TC.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from datapath.oracle.namespace import Namespace
from pcap_tests.test_datapath.test_live.services import attended
from pcap_tests.test_datapath.test_live.test_node import PUBLIC, SERVER, TRANSLATING, _mac
from pcap_tests.vm.offloaded_node import EXACT, PIPELINE, InKernel, offloaded, until
from pcap_tests.vm.pages import Server, Steady
from pcap_tests.vm.test_vm_handover import Download

TIMES = 4
PERIOD = 0.1  # s with the kernel, and with the node


class Endless(Steady):
    PIECES, SIZE, PAUSE = 100_000, 1400, 0.0005


def own(net: InKernel) -> None:
    """The switch has the public address, and takes frames to the client's MAC address for its own."""
    with net.left.here.netlink() as netlink:
        (index,) = netlink.link_lookup(ifname=net.right.near)
        netlink.link("set", index=index, address=_mac(net.left))
        netlink.addr("add", index=index, address=PUBLIC, prefixlen=24)


def segments(namespace: Namespace) -> int:
    """Of TCP, that have come to this stack."""
    with namespace.entered():
        names, values = (line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("InSegs")])


@pytest.mark.parametrize("section", [EXACT, PIPELINE], ids=["exact", "pipeline"])
def test_nothing_of_a_connection_that_goes_over_and_back_comes_to_the_switch_s_own_stack(tmp_path, section):
    with offloaded(tmp_path, section, TRANSLATING) as net, attended(net.right.there, lambda: Server((SERVER, 8000), Endless)):
        own(net)
        (thread,) = [worker.offload.threaded for worker in net.node.workers]
        download = Download(net)
        download.start()
        for _ in range(TIMES):
            until(lambda: net.status()["flows"]["installed"] == 1, "it is the kernel's")
            time.sleep(PERIOD)
            thread.suspend("it is the node's again")
            until(lambda: net.status()["entries"] == 0, "it is the node's again")
            time.sleep(PERIOD)
            thread.resume()
        size = download.size
        until(lambda: download.size > size, "it goes on")
        assert download.error is None and segments(net.left.here) == 0
        download.asking.sock.shutdown(2)
        download.join(20)
        assert not download.is_alive()

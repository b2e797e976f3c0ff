"""iperf3 through a node that routes, tracks and translates: TCP and UDP, both ways, both families.

It has to be installed (apt install iperf3; .ci/run does). test_services has the same traffic from sockets of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pcap_tests.netns import ROUTER, SERVER, Host
from pcap_tests.required import cannot
from pcap_tests.test_datapath.test_live.routed_network import FAMILIES, Network, ask_udp, network
from pcap_tests.test_datapath.test_live.services import home

IPERF3 = shutil.which("iperf3")
SECONDS = 60
UDP = ("-u", "-b", "80M", "-l", "1200")

pytestmark = pytest.mark.usefixtures("interfaces")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Network]:
    if IPERF3 is None:
        cannot("iperf3 is not installed")
    with network(tmp_path, "xdp-native", home(ROUTER[1])) as net:
        for family in FAMILIES:
            ask_udp(net, family)
        yield net


def begun(host: Host, *options: str) -> subprocess.Popen[str]:
    with host.entered():
        return subprocess.Popen([str(IPERF3), *options, "--json"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def measured(net: Network, family: int, *options: str) -> dict[str, Any]:
    """What the client has found at the end. The server takes one test and ends."""
    server = begun(net.server, "-s", "-1", "-B", SERVER[family])
    try:
        for _ in range(50):  # until the server listens
            client = begun(net.client, "-c", SERVER[family], "-t", "1", *options)
            found: dict[str, Any] = json.loads(client.communicate(timeout=SECONDS)[0])
            if "Connection refused" not in found.get("error", ""):
                break
    finally:
        server.terminate()
        server.communicate(timeout=SECONDS)
    assert "error" not in found, found["error"]
    end: dict[str, Any] = found["end"]
    return end


@pytest.mark.parametrize("direction", [(), ("-R",)], ids=["up", "down"])
@pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6"])
def test_tcp(house, family, direction):
    end = measured(house, family, "-P", "4", *direction)
    assert end["sum_received"]["bytes"] > 10 << 20


@pytest.mark.parametrize("direction", [(), ("-R",)], ids=["up", "down"])
@pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6"])
def test_udp(house, family, direction):
    """8,000 datagrams of 1,200 bytes in a second: 95 of 100 arrive on a machine that has other work as well."""
    end = measured(house, family, *UDP, *direction)
    assert end["sum"]["packets"] > 4000
    assert end["sum"]["lost_percent"] < 5

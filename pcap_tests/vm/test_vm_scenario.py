"""A web server behind a switch with the rules of examples/vm-behind-vf, which stand in the kernel's TC as well: it is reached, and reaches nobody.
And with examples/offload-tc as it stands: it is reached, and reaches others.

    client (outside) - eth0 [switch: a node, and TC] eth0_0 - VM with a web server

Real TCP in a real kernel: what the node has let in is the kernel's until it ends; with a NIC that is none (module/), the NIC's.
"""

from __future__ import annotations

import http.client
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pcap_tests.test_datapath.command import in_process
from pcap_tests.test_datapath.test_live.offloading_node import said
from pcap_tests.test_datapath.test_live.services import attended
from pcap_tests.test_datapath.test_live.test_workers import echoing_tcp
from pcap_tests.vm.offloaded_node import PIPELINE, Ends, InKernel, configured, filters, kernel_conns, offloaded, until
from pcap_tests.vm.pages import Page, Server

EXAMPLES = Path(__file__).parents[2] / "examples"
RULES = (EXAMPLES / "vm-behind-vf" / "rules.tc").read_text()
OUTSIDE, VM = "198.51.100.1", "198.51.100.10"
ENDS = Ends(("eth0", "eth0_0"), (OUTSIDE, VM), "198.51.100.77")
IN_NIC = PIPELINE.replace('"no"', '"only"')


@contextmanager
def visiting(net: InKernel) -> Iterator[http.client.HTTPConnection]:
    """A client that asks for pages by one connection."""
    with attended(net.right.there, lambda: Server((VM, 80), Page)):
        visitor = http.client.HTTPConnection(VM, 80, timeout=10)
        with net.left.there.entered():
            visitor.connect()
        try:
            yield visitor
        finally:
            visitor.close()


def asked(visitor: http.client.HTTPConnection, times: int = 1) -> None:
    for _ in range(times):
        visitor.request("GET", "/")
        answer = visitor.getresponse()
        assert (answer.status, answer.read(), answer.getheader("X-From")) == (200, Page.BODY, OUTSIDE)


def packets(net: InKernel) -> list[int]:
    """Of each direction of the one connection to the web server, as `ctmirror conntrack -L` lists it."""
    listed = in_process("conntrack", "-L", "-p", "tcp", "--dport", 80, "--socket", net.socket)
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith("tcp")]
    return [int(n) for n in re.findall(r"packets=(\d+)", line)]


@pytest.mark.parametrize("section", [PIPELINE, IN_NIC], ids=["kernel", "nic"])
def test_http_comes_in_and_is_the_kernel_s_and_nothing_goes_out(request, tmp_path, section):
    nic = request.getfixturevalue("nic") if section is IN_NIC else None
    with offloaded(tmp_path, section, RULES, ends=ENDS, nic=nic is not None) as net, visiting(net) as visitor:
        asked(visitor)
        until(lambda: net.status()["flows"]["installed"] == 1, "it is the kernel's")
        before = net.status()["packets"]["software"]
        asked(visitor, 20)
        assert net.status()["packets"]["software"] - before <= 2

        word = "[OFFLOAD]" if nic is None else "[HW_OFFLOAD]"
        until(lambda: word in kernel_conns(net)[0], word)
        (line,) = kernel_conns(net)
        assert f"src={OUTSIDE} dst={VM}" in line and "zone=5" in line
        listed = filters(net)
        rules = sum(line.startswith("tc filter") for line in RULES.splitlines())
        assert listed.count("\tcookie 63746d6972726f722f72756c6573") >= rules and listed.count(" in_hw_count 1") == rules * (nic is not None)

        _nothing_goes_out(net)
        asked(visitor)
        if nic is None:
            until(lambda: min(packets(net)) >= 22, "the kernel was asked")
        else:
            _counted(net, nic, visitor)

        visitor.close()
        until(lambda: net.status()["entries"] == 0 and kernel_conns(net) == [], "its FIN has taken it out")
        if nic is not None:
            until(lambda: nic.lines("conns") == [], "out of the NIC as well")
        (conn,) = net.why(dport=80)
        assert conn["offload"]["code"] == "teardown_fin"
    assert "flower" not in net.left_over


def _nothing_goes_out(net: InKernel) -> None:
    """The VM's own connections are refused by silence, by the node's rules, and nobody outside hears of them."""
    with net.left.there.entered(), socket.create_server((OUTSIDE, 8080)) as listening:
        listening.settimeout(0.1)
        with net.right.there.entered(), socket.socket() as attempt:
            attempt.settimeout(1)
            with pytest.raises(TimeoutError):
                attempt.connect((OUTSIDE, 8080))
        with pytest.raises(TimeoutError):
            listening.accept()
    assert [line for line in kernel_conns(net) if "8080" in line] == [] and net.client.ask("count")["count"] == 1


def _counted(net: InKernel, nic, visitor: http.client.HTTPConnection) -> None:
    """What the NIC has counted is in the node's list of connections."""
    there, before = "dst_port 80 tcp_flags", packets(net)
    with net.left.here.entered():
        Path("/proc/sys/net/netfilter/nf_flowtable_tcp_timeout").write_text("5")  # so that the NIC is asked soon, from the next packet on
    until(lambda: [asked(visitor), any(there in line for line in nic.lines("conns"))][1], "it is in the NIC")
    nic.hit("conns", there, 100_000, 6_400_000)
    until(lambda: next(net.client.conns("list", which={"dport": 80}))["original"]["packets"] >= before[0] + 100_000, "the NIC was asked")
    assert packets(net)[0] >= before[0] + 100_000


def test_a_reset_takes_it_out(tmp_path):
    with offloaded(tmp_path, PIPELINE, RULES, ends=ENDS) as net, visiting(net) as visitor:
        asked(visitor)
        until(lambda: net.status()["flows"]["installed"] == 1, "it is the kernel's")
        visitor.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        visitor.close()
        until(lambda: net.status()["entries"] == 0 and kernel_conns(net) == [], "its RST has taken it out")
        assert net.why(dport=80)[0]["offload"]["code"] == "teardown_rst"


@pytest.mark.parametrize("where", ["the kernel", "a NIC"])
@pytest.mark.parametrize("way", ["auto", "exact"])
def test_the_example_of_offloading_does_what_its_page_says(request, tmp_path, where, way):
    """Both sides open a connection; each is offloaded. What is changed of its files is the control socket's place, and which way."""
    nic = request.getfixturevalue("nic") if where == "a NIC" else None
    example = shutil.copytree(EXAMPLES / "offload-tc", tmp_path / "example")
    written = (example / "node.toml").read_text().replace("/run/ctmirror/control.sock", f"{tmp_path}/socket").replace('"auto"', f'"{way}"', 1)
    (example / "node.toml").write_text(written)
    with configured(tmp_path, str(example / "node.toml"), ENDS, nic=nic is not None) as net, visiting(net) as visitor:
        assert (net.status()["tc"]["way"], net.status()["tc"]["where"]) == ("pipeline" if way == "auto" else "exact", where)
        asked(visitor)
        with echoing_tcp(net.left, OUTSIDE) as port, net.right.there.entered(), socket.create_connection((OUTSIDE, port), timeout=5) as talker:
            said(talker)
            until(lambda: net.status()["flows"]["installed"] == 2, "both are offloaded")
            before = net.status()["packets"]["software"]
            asked(visitor, 20)
            said(talker, 20)
            if (way, where) != ("exact", "a NIC"):  # this one takes filters by which it forwards nothing; what it has not taken out is software's
                assert net.status()["packets"]["software"] - before <= 4
            in_hw = 0 if nic is None else 4 if way == "exact" else len(re.findall("^tc filter", (example / "rules.tc").read_text(), re.M))
            assert filters(net).count(" in_hw_count 1") == in_hw and net.audit()["differ"] == 0
        visitor.close()
        until(lambda: net.status()["entries"] == 0, "their FINs have taken them out")
    assert "flower" not in net.left_over

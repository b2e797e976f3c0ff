"""A node with a simulated NIC between two real stacks: what passes is what does without, most of it in hardware; what is said of it is right."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest

from ctcore.errors import ConfigError
from datapath import craft
from datapath.commands.nic_option import nic_profile
from datapath.commands.offload_backend import checked, factory
from datapath.commands.offload_live import Live, simulated
from datapath.live.client import Client
from datapath.live.config import OffloadSection, load
from datapath.live.control import Control
from datapath.live.exposition import PLAIN, Exposition
from datapath.live.message import RequestError
from datapath.live.node import Node
from offload.mirror import Mirror
from offload.mirror_settings import POLICIES
from offload.records import Op
from offload.simnic.faults import Fault
from offload.simnic.profile import FaultsSection, TableSection
from pcap_tests.test_datapath.command import in_process
from pcap_tests.test_datapath.test_live.noded import running
from pcap_tests.test_datapath.test_live.processes import process
from pcap_tests.test_datapath.test_live.test_loop import TRACKED, ruled
from pcap_tests.test_datapath.test_live.test_node import CLIENT, IPV4, PUBLIC, REST, SERVER, TRANSLATING, _mac, address, fetch, serving
from pcap_tests.test_datapath.test_live.test_workers import Working, at_work, echoing, echoing_tcp, written
from pcap_tests.test_datapath.test_live.wires import until
from pcap_tests.test_offload.fake_nic import FakeNic

BODY = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Offloading(Working):
    """Two stacks, and a node with a NIC between them, which may be asked."""

    client: Client
    socket: str

    def status(self) -> dict:
        return self.client.ask("offload")

    def why(self, **which) -> list[dict]:
        return list(self.client.conns("offload_why", which=which))

    def audit(self) -> dict:
        return self.client.ask("offload_audit")

    def metric(self, name: str) -> float:
        """A sample of a scrape."""
        lines = asyncio.run(Exposition(self.node).text(PLAIN)).decode().splitlines()
        (value,) = (float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)
        return value


@pytest.fixture
def offloading(wires, tmp_path):
    """offloading(rules, "tiny"): a node with such a NIC."""

    @contextmanager
    def run(
        rules: str = IPV4, profile: str = "connectx-7-hw", *, workers: int = 1, faults: tuple[Fault, ...] = (), more=None
    ) -> Iterator[Offloading]:
        left, right = wires("left", queues=workers), wires("right", queues=workers)
        address(left, CLIENT)
        address(right, SERVER)
        kind = nic_profile(profile)
        kind = kind if more is None else kind.model_copy(update=more)
        with left.here.entered():
            node = Node(load(written(tmp_path, rules, "xdp-native", workers)), offload=simulated(kind, "first-come", faults))
        path = str(tmp_path / "socket")
        try:
            with at_work(node), Control(node, path), Client(path) as client:
                net = Offloading(node, left, right, tmp_path / "rules.tc")
                net.client, net.socket = client, path
                with right.there.netlink() as netlink:  # nobody answers for the public address
                    netlink.neigh("add", dst=PUBLIC, lladdr=_mac(left), ifindex=netlink.link_lookup(ifname=right.far)[0])
                yield net
                node.ask(lambda node: [worker.offload.mirror.check() for worker in node.workers]).result(10)
            node.umem.check()
        finally:
            node.close()

    return run


def test_a_download_is_in_hardware_until_its_fin(offloading):
    with offloading() as net, serving(net.right, SERVER, BODY) as port:
        assert fetch(net.left, SERVER, port) == (DIGEST, CLIENT)
        told = net.status()
        assert told["packets"]["hardware"] > 0.8 * sum(told["packets"].values()) and told["bytes"]["hardware"] > len(BODY)
        assert told["software_packets"]["tcp_state"] >= 2 and not any(told["refused"].values())
        until(lambda: net.status()["entries"] == 0, "the connection's rules are gone")
        assert net.status()["commands"]["destroy"]["done"] == 2
        (conn,) = net.why(proto=6)
        assert (conn["offload"]["code"], conn["offload"]["item"], conn["offload"]["hardware"]) == ("teardown_fin", "A5.40", [])
        assert net.audit() == {"held": 0, "wanted": 0, "differ": 0, "pending": 0, "differences": []}


@contextmanager
def talking(net: Offloading, port: int) -> Iterator[socket.socket]:
    """A connection to an echo server through the node, which is in hardware."""
    with net.left.there.entered():
        talker = socket.create_connection((SERVER, port), timeout=5)
    with talker:
        talker.settimeout(5)
        said(talker)
        until(lambda: net.status()["flows"]["installed"] == 1, "the connection is in hardware")
        yield talker


def said(talker: socket.socket, times: int = 1) -> None:
    for _ in range(times):
        talker.sendall(b"question")
        assert talker.recv(100) == b"question"


@pytest.mark.parametrize("rules", [IPV4, TRANSLATING], ids=["plain", "snat"])
def test_a_connection_that_lives_is_told_of(offloading, rules, capfd):
    with offloading(rules) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        before = net.status()["packets"]
        said(talker, 50)
        after = net.status()["packets"]
        assert after["hardware"] - before["hardware"] >= 100 and after["software"] - before["software"] <= 5
        (conn,) = net.why(dport=port)
        assert conn["offload"]["hardware"] == ["original", "reply"] and conn["offload"]["code"] is None
        assert conn["offload"]["counted"] == {"original": None, "reply": None, "both": None}, "hardware has not been asked yet"
        assert "hw-offload" in conn["status"] and ("snat" in conn["status"]) == (rules is TRANSLATING)
        assert net.audit() == {"held": 2, "wanted": 2, "differ": 0, "pending": 0, "differences": []}


def test_udp_both_ways(offloading):
    """One direction from its first packet on; both once it is assured, which takes two seconds."""
    with offloading() as net, echoing(net.right) as port, net.left.there.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talker:
        talker.settimeout(5)
        talker.connect((SERVER, port))
        said_udp(talker)
        until(lambda: net.status()["flows"]["installed"] == 1, "it is in hardware")
        (conn,) = net.why(proto=17)
        assert conn["offload"]["hardware"] == ["original"]
        time.sleep(2.1)
        until(lambda: [said_udp(talker), net.why(proto=17)[0]["offload"]["hardware"]][1] == ["original", "reply"], "its answers are in hardware, too")
        before = net.status()["packets"]
        for _ in range(20):
            said_udp(talker)
        assert net.status()["packets"]["hardware"] - before["hardware"] == 40


def said_udp(talker: socket.socket) -> None:
    talker.send(b"question")
    assert talker.recv(100) == b"question"


# --- what changes while it is there -----------------------------------------------------------------------------------------------------------


def test_other_rules_while_a_connection_is_in_hardware(offloading):
    """It stays there and goes on, until the rules forbid it: as without a NIC."""
    with offloading() as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        for _ in range(3):
            net.reload()
            said(talker, 5)
        assert net.status()["flows"]["installed"] == 1 and net.status()["commands"]["replace"]["done"] == 2
        net.rules.write_text(IPV4.replace("flower ct_state +trk+est action mirred egress redirect dev right", "flower ct_state +trk+est action drop"))
        net.reload()
        before = net.status()["packets"]["hardware"]
        talker.sendall(b"question")
        talker.settimeout(0.3)
        with pytest.raises(TimeoutError):
            talker.recv(100)
        assert net.status()["packets"]["hardware"] > before, "dropped by the new rules, in hardware"
        net.rules.write_text(IPV4)
        net.reload()
        talker.settimeout(5)
        assert talker.recv(100) == b"question", "sent again by the client's stack"


def test_rules_without_tracking_take_everything_out(offloading):
    plain = "".join(
        f"tc filter add dev {a} ingress protocol all prio 1 flower action mirred egress redirect dev {b}\n"
        for a, b in (("left", "right"), ("right", "left"))
    )
    with offloading() as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        net.rules.write_text(plain)
        net.reload()
        until(lambda: net.status()["entries"] == 0, "nothing is in hardware")
        said(talker)


@pytest.mark.parametrize("how", ["flush", "delete"])
def test_what_is_deleted_leaves_hardware(offloading, how):
    with offloading() as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        net.client.ask(how)
        until(lambda: net.status()["entries"] == 0, "its rules are gone")
        said(talker)  # picked up again
        until(lambda: net.status()["flows"]["installed"] == 1, "and offloaded again")


def test_a_syn_in_hardware_is_counted_and_flagged(offloading):
    """Contract A4.27: a SYN of the same tuple passes in hardware as if established."""
    with offloading() as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        here = talker.getsockname()
        with net.left.there.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((net.left.far, 0))
            frame = craft.tcp(CLIENT, SERVER, here[1], port, "S", seq=1)
            raw.send(bytes.fromhex((_mac(net.left) + _mac(net.right)).replace(":", ""))[:12] + frame[12:])
        until(lambda: net.status()["syns"] == 1, "the SYN")
        (conn,) = net.why(dport=port)
        assert conn["offload"]["syns"] == 1
        done = in_process("offload", "why", "--dport", port, "--socket", net.socket)
        assert "1 SYN forwarded in hardware as if of the established connection" in done.stdout
        assert net.metric("ctmirror_offload_syns_total") == 1
        said(talker)


# --- NICs that are small, or break ------------------------------------------------------------------------------------------------------------


def test_nothing_is_lost_by_a_nic_that_refuses(offloading):
    with offloading(more={"faults": FaultsSection(refuse=0.7)}) as net, serving(net.right, SERVER, b"short") as port:
        assert {fetch(net.left, SERVER, port)[0] for _ in range(30)} == {hashlib.sha256(b"short").hexdigest()}
        told = net.status()
        assert told["refused"]["hw_full"] == told["commands"]["replace"]["full"] > 0


def test_nothing_is_lost_by_a_nic_that_begins_anew(offloading):
    resets = tuple(Fault("reset", at=time.time_ns() + ms * 10**6) for ms in range(500, 1500, 100))
    with offloading(faults=resets) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        until(lambda: [said(talker), net.status()["resets"]][1] == len(resets), "all resets")
        until(lambda: net.status()["flows"]["installed"] == 1, "the connection is put back")
        assert net.audit()["differ"] == 0


def test_two_workers_share_the_limits_and_are_told_as_one(offloading):
    with offloading(workers=2, more={"table": TableSection(capacity=63)}) as net, serving(net.right, SERVER, BODY) as port:
        found: list[tuple[str, str]] = []
        downloads = [threading.Thread(target=lambda: found.append(fetch(net.left, SERVER, port))) for _ in range(8)]
        for download in downloads:
            download.start()
        for download in downloads:
            download.join(20)
        told = net.status()
        assert found == [(DIGEST, CLIENT)] * 8
        assert (told["capacity"], told["workers"]) == (64, 2), "rounded up for each"
        assert told["packets"]["hardware"] > 0.5 * sum(told["packets"].values())
        hard = net.of_each(lambda worker: worker.offload.figures()["packets"]["hardware"])
        assert sum(hard) == told["packets"]["hardware"] and all(hard)


def test_an_audit_finds_what_hardware_has_lost(offloading, capfd):
    with offloading() as net, echoing_tcp(net.right) as port, talking(net, port):
        net.of_each(lambda worker: worker.offload.nic.submit(destroying(worker.offload.nic.held()[:1]), time.time_ns()))
        until(lambda: net.audit()["held"] == 1, "a rule is gone that nobody knows of")
        done = in_process("offload", "audit", "--socket", net.socket)
        assert done.returncode == 1
        assert done.stdout.splitlines()[0].endswith(": hardware lacks a rule that it should have")
        assert done.stdout.splitlines()[1] == "1 rules in hardware, 2 that should be: 1 differ"
        assert in_process("offload", "audit", "-q", "--socket", net.socket).stdout == ""


def destroying(rules):
    rules["op"] = Op.DESTROY
    return rules


# --- a backend beside the packets -----------------------------------------------------------------------------------------------------------------


def test_a_backend_that_no_packet_meets_has_turns_only(wires, tmp_path):
    """Rules go to hardware and come out again, and are told of, with all packets in software; what it has counted is added to the connection."""
    nic = FakeNic(latency=3_000_000)

    def beside(pipeline, worker, workers):
        pipeline.flows.mirrored()
        return Live(pipeline, Mirror(pipeline.tracker.config.capacity), nic, "fake")

    left, right = wires("left"), wires("right")
    address(left, CLIENT)
    address(right, SERVER)
    with left.here.entered():
        config = load(written(tmp_path, IPV4, "xdp-native", 1))
        node = Node(config.model_copy(update={"conntrack": {"max": 1000, "flowtable_tcp_timeout": 3}}), offload=beside)
    path = str(tmp_path / "socket")
    with node, at_work(node), Control(node, path), Client(path) as client, echoing_tcp(right) as port:
        net = Offloading(node, left, right, tmp_path / "rules.tc")
        net.client = client
        with talking(net, port) as talker:
            assert len(nic.rules) == 2 and not any(nic.pending)
            for cookie in nic.rules:
                nic.seen[cookie] = [7, 700, time.time_ns(), 0, 0]
            until(
                lambda: net.why(dport=port)[0]["offload"]["counted"]["both"] == {"packets": 14, "bytes": 1400},
                "it is asked, after a tenth of its time",
            )
            assert net.status()["packets"]["hardware"] == 14 and net.status()["syns"] is None and net.status()["software_packets"]["tcp_state"] >= 2
            assert "SYNs         unknown: this hardware does not tell" in in_process("offload", "status", "--socket", path).stdout
            said(talker)
        until(lambda: not nic.rules, "its rules are gone")


# --- as people see it -------------------------------------------------------------------------------------------------------------------------


def test_commands_and_metrics_say_the_same(offloading):
    with offloading() as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        said(talker, 20)
        status = in_process("offload", "status", "--socket", net.socket)
        assert (status.returncode, status.stderr) == (0, "")
        assert "sim, profile connectx-7-hw, policy first-come" in status.stdout and "2 of 4,194,304" in status.stdout
        assert "tcp_state: its TCP connection is not ESTABLISHED (A2.7)" in status.stdout
        told = json.loads(in_process("offload", "status", "--json", "--socket", net.socket).stdout)
        assert told["entries"] == net.metric("ctmirror_offload_entries") == 2
        assert net.metric('ctmirror_offload_commands_total{op="replace",outcome="done"}') == 2
        assert net.metric('ctmirror_offload_software_packets_total{reason="tcp_state"}') == told["software_packets"]["tcp_state"]
        hard = told["packets"]["hardware"]
        assert net.metric('ctmirror_offload_packets_total{where="hardware"}') == hard
        assert net.client.ask("stats")["packets"] == sum(told["packets"].values())
        assert "hardware (sim): " in in_process("stats", "--socket", net.socket).stdout
        assert "hardware (sim): " in in_process("top", "--once", "-i", "0.1", "--socket", net.socket).stdout
        (number,) = (conn["conn"] for conn in net.client.conns("list", which={"dport": port}))
        why = in_process("offload", "why", "--conn", number, "--socket", net.socket)
        assert "state       in hardware: original and reply directions" in why.stdout
        assert "counted     unknown: hardware has told of no packet" in why.stdout
        none = in_process("offload", "why", "--conn", 4711, "--socket", net.socket)
        assert (none.returncode, none.stderr) == (2, "ctmirror: connection 4711: there is none, or it has ended\n")


# --- as it is started ---------------------------------------------------------------------------------------------------------------------------


NODE = """rules = "rules.tc"
[[iface]]
name = "left"
[control]
socket = ""
[offload]
backend = "sim"
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            'profile = "none-such"',
            ":8: offload.profile: none-such: no such NIC: expected one of connectx-6dx-sw, connectx-7-hw, none, perfect",
        ),
        ('profile = "mine.toml"', ":8: offload.profile: {}/mine.toml:2: table.capacity: "),
        ('profile = "there.toml"', ":8: offload.profile: {}/there.toml: cannot be read: No such file or directory"),
    ],
)
def test_profiles_that_cannot_be_are_told_before_anything_is_opened(tmp_path, more, said):
    (tmp_path / "rules.tc").write_text(REST)
    (tmp_path / "mine.toml").write_text("[table]\ncapacity = -1\n")
    (tmp_path / "node.toml").write_text(NODE + more + "\n")
    for options in ((), ("--check",)):
        done = in_process("run", "--config", tmp_path / "node.toml", *options)
        assert done.returncode == 2 and f"node.toml{said.format(tmp_path)}" in done.stderr and done.stderr.count("\n") == 1


def test_without_the_libraries_it_is_said_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr("datapath.commands.nic_option.find_spec", lambda name: None if name == "numba" else object())
    (tmp_path / "rules.tc").write_text(REST)
    (tmp_path / "node.toml").write_text(NODE)
    with pytest.raises(ConfigError, match=r"node\.toml:6: offload\.profile: NICs are simulated by numba: .* -m pip install 'ctmirror\[nic\]'"):
        load(str(tmp_path / "node.toml"), checked)


def test_run_makes_what_the_section_says(tmp_path):
    (tmp_path / "node.toml").write_text(NODE + 'profile = "tiny"\npolicy = "by-bytes"\n')
    section = load(str(tmp_path / "node.toml"), checked).offload
    make = factory(section)
    assert make is not None and factory(OffloadSection()) is None
    made = make(ruled(TRACKED), 0, 1).figures()
    assert (made["backend"], made["profile"], made["policy"], made["capacity"]) == ("sim", "tiny", "by-bytes", 64)
    assert OffloadSection.model_fields["policy"].annotation == Literal[POLICIES], "the mirror's"


def test_a_node_as_it_is_started(wires, tmp_path):
    """From its file, as a process, asked by commands."""
    left = wires("left")
    (tmp_path / "rules.tc").write_text("tc filter add dev left ingress protocol ip prio 1 flower action ct commit pipe action pass\n")
    (tmp_path / "node.toml").write_text(NODE.replace('""', f'"{tmp_path}/s"') + '[log]\nformat = "json"\n')
    with left.here.entered(), process(tmp_path):
        done = in_process("offload", "status", "--socket", tmp_path / "s")
        assert "sim, profile connectx-7-hw, policy first-come" in done.stdout, done.stderr
        assert in_process("offload", "audit", "--socket", tmp_path / "s").returncode == 0


def test_a_node_without_hardware_says_so(tmp_path):
    with running(tmp_path) as rig, rig.client() as client:
        for do in ("offload", "offload_why", "offload_audit"):
            with pytest.raises(RequestError, match=r"this node has nothing in hardware: expected `backend` in the section \[offload\]"):
                client.ask(do)
        assert client.ask("stats")["offload"] is None


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("why", "x.pcap", "--conn", "1", "-p", "tcp"), "-p: expected no CAPTURE with it"),
        (("why", "x.pcap"), "--conn: expected it with a CAPTURE"),
        (("why", "--nic", "tiny"), "--nic: expected a CAPTURE with it: a running node has settings of its own"),
        (("audit", "--rules", "x.tc"), "--rules: expected a CAPTURE with it"),
        (("audit", "x.pcap", "--socket", "/s"), "--socket: expected no CAPTURE with it"),
    ],
)
def test_options_of_the_other_form_are_refused(argv, said):
    done = in_process("offload", *argv)
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize(("name", "value"), [("most", 0), ("most", 1001), ("conn", "7"), ("conn", True), ("which", 3)])
def test_nonsense_is_refused(offloading, name, value):
    with offloading() as net, pytest.raises(RequestError, match=f"^{name}: expected"):
        net.client.ask("offload_why", **{name: value})

"""A node with a simulated NIC between two real stacks: what passes is what does without, most of it in hardware; what is said of it is right."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from functools import partial

import pytest

from datapath import craft
from datapath.commands.nic_option import nic_profile
from datapath.commands.offload_live import Live, simulated
from datapath.live import state_file
from datapath.live.client import Client
from datapath.live.config import load
from datapath.live.control import Control
from datapath.live.node import Node
from offload.mirror import Mirror
from offload.records import Op
from offload.simnic.faults import Fault
from offload.simnic.profile import FaultsSection, TableSection
from pcap_tests.netns import ROUTER, V4, V6
from pcap_tests.test_datapath.command import in_process
from pcap_tests.test_datapath.test_live.offloading_node import BODY, DIGEST, NOTHING, Offloading, offloading, said, talking
from pcap_tests.test_datapath.test_live.routed_network import FAMILIES, network
from pcap_tests.test_datapath.test_live.test_node import CLIENT, IPV4, SERVER, TRANSLATING, _mac, address, fetch, serving
from pcap_tests.test_datapath.test_live.test_router_traffic import MASQUERADE, talk_tcp
from pcap_tests.test_datapath.test_live.test_workers import at_work, echoing, echoing_tcp, written
from pcap_tests.test_datapath.test_live.wires import until
from pcap_tests.test_offload.fake_nic import FakeNic

__all__ = ["offloading"]


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
        assert net.audit() == {**NOTHING, "held": 0, "wanted": 0}


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
        assert net.audit() == {**NOTHING, "held": 2, "wanted": 2}


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


def test_rules_that_are_to_be_reevaluated_take_connections_out(offloading):
    """What the new rules would not let begin is deleted and leaves hardware; what they would is offloaded again by its next packet."""
    with offloading() as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        net.client.load_rules(IPV4, name="same", established="reevaluate")
        until(lambda: net.status()["commands"]["destroy"]["done"] == 2, "it leaves")
        until(lambda: [said(talker), net.status()["flows"]["installed"]][1] == 1, "and is back")
        assert net.client.load_rules(IPV4.replace("+trk+new", "+trk+new ip_proto udp"), name="other", established="reevaluate")["deleted"] == 1
        until(lambda: net.status()["entries"] == 0, "it is gone")
        talker.settimeout(0.3)
        talker.sendall(b"question")
        with pytest.raises(TimeoutError):
            talker.recv(100)


def offloaded_by(client: Client, talker: socket.socket) -> bool:
    """Something is said, and the connection is in hardware."""
    said(talker)
    return client.ask("offload")["flows"]["installed"] == 1


def test_over_a_restart_connections_come_back_to_hardware(wires, tmp_path):
    left, right = wires("left"), wires("right")
    address(left, CLIENT)
    address(right, SERVER)
    talker, state, path = None, str(tmp_path / "state"), str(tmp_path / "socket")
    with echoing_tcp(right) as port:
        for _ in range(2):
            with left.here.entered():
                node = Node(load(written(tmp_path, IPV4, "xdp-native", 1)), offload=simulated(nic_profile("connectx-7-hw"), "first-come"))
            with node:
                found = state_file.restore_node(node, state, 60)
                with at_work(node), Control(node, path), Client(path) as client:
                    assert client.ask("offload")["entries"] == 0, "nothing of hardware is kept"
                    if talker is None:
                        with left.there.entered():
                            talker = socket.create_connection((SERVER, port), timeout=5)
                    until(partial(offloaded_by, client, talker), "it is in hardware")
                    state_file.save_node(node, state)
        assert found is not None and found.conns == 1
        talker.close()


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
        assert sum(hard) >= told["packets"]["hardware"] and all(hard)


def test_an_audit_finds_what_hardware_has_lost(offloading, capfd):
    with offloading() as net, echoing_tcp(net.right) as port, talking(net, port):
        net.of_each(lambda worker: worker.offload.nic.submit(destroying(worker.offload.nic.held()[:1]), time.time_ns()))
        until(lambda: net.audit()["held"] == 1, "a rule is gone that nobody knows of")
        done = in_process("offload", "audit", "--socket", net.socket)
        assert done.returncode == 1
        assert done.stdout.splitlines()[0].endswith(": hardware lacks a rule that it should have")
        assert done.stdout.splitlines()[1] == "1 rule in hardware, 2 that should be: 1 differ"
        assert in_process("offload", "audit", "-q", "--socket", net.socket).stdout == ""


def destroying(rules):
    rules["op"] = Op.DESTROY
    return rules


@pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6"])
def test_a_router_with_a_nic(interfaces, tmp_path, family):
    """Answers are translated in hardware where they come in, and routed in software; questions meet rules at the egress, behind the NIC."""
    rules = MASQUERADE.format(v4=ROUTER[1][V4], v6=ROUTER[1][V6])
    with network(tmp_path, "xdp-native", rules, offload=simulated(nic_profile("connectx-7-hw"), "first-come")) as net:
        assert talk_tcp(net, family) == [ROUTER[1][family]]
        told = net.node.ask(lambda node: node.workers[0].offload.figures()).result(10)
    assert told["commands"]["replace"]["done"] == 2 and told["packets"]["hardware"] > 50
    assert told["software_packets"]["egress"] > 50


# --- a backend beside the packets -----------------------------------------------------------------------------------------------------------------


def test_a_backend_that_no_packet_meets_has_turns_only(wires, tmp_path):
    """Rules go to hardware and come out again, and are told of, with all packets in software; what it has counted is added to the connection."""
    nic = FakeNic(latency=3_000_000)

    def beside(pipeline, worker, workers):
        pipeline.flows.mirrored()
        return Live(pipeline, Mirror(pipeline.flows.rows), nic, "fake")

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

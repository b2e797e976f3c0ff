"""A node on AF_XDP that gives its connections to the kernel's TC: real TCP between two stacks, which XDP lets by as soon as the kernel has it."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from ctcore.errors import ConfigError
from datapath.commands.tc.ask import KernelTc
from datapath.live.reopening import Reopening
from datapath.pipeline.rules import DROP, Gact, Hook
from datapath.pipeline.tc_print import rule_line
from pcap_tests.test_datapath.test_live.offloading_node import NOTHING, said, talking
from pcap_tests.test_datapath.test_live.test_node import CLIENT, IPV4, SERVER, TRANSLATING, address
from pcap_tests.test_datapath.test_live.test_workers import echoing, echoing_tcp
from pcap_tests.test_datapath.test_live.wires import Wire
from pcap_tests.vm.offloaded_node import EXACT, PIPELINE, Conn, InKernel, filters, kernel_conns, offloaded, until

WAYS = pytest.mark.parametrize("section", [EXACT, PIPELINE], ids=["exact", "pipeline"])
LEFT = "tc filter del dev left ingress"


def in_kernel(net, talker: socket.socket, times: int = 20) -> bool:
    """Whether what is said now passes the node by."""
    before = net.status()["packets"]["software"]
    said(talker, times)
    return net.status()["packets"]["software"] - before <= 2


@pytest.mark.parametrize("rules", [IPV4, TRANSLATING], ids=["plain", "snat"])
@WAYS
def test_a_connection_is_the_kernel_s_until_its_fin(tmp_path, section, rules):
    with offloaded(tmp_path, section, rules) as net, echoing_tcp(net.right) as port:
        told = net.status()["tc"]
        assert section.startswith(f'way = "{told["way"]}"') and (told["where"], told["why"], told["threads"]["working"]) == ("the kernel", [], 1)
        with talking(net, port) as talker:
            assert in_kernel(net, talker, 50)
            (conn,) = net.why(dport=port)
            assert conn["offload"]["hardware"] == ["original", "reply"] and "hw-offload" in conn["status"]
            entries = None if section is EXACT else {"entries": 1, "offloaded": 1, "in_hardware": 0}
            assert net.audit() == {**NOTHING, "held": 2, "wanted": 2, "entries": entries}
            assert (net.status()["tc"]["rules"] or {"heard": 0})["heard"] == 0, "what a node does itself is no news"
            if section is PIPELINE:
                (line,) = kernel_conns(net)
                assert "[OFFLOAD]" in line and f"dport={port}" in line and min(map(int, re.findall(r"packets=(\d+)", line))) >= 50
        until(lambda: net.status()["entries"] == 0, "its FIN has taken it out")
        assert kernel_conns(net) == [] and (section is PIPELINE or "flower" not in filters(net))
        assert net.why(dport=port)[0]["offload"]["code"] == "teardown_fin"
    assert net.left_over == ""


@WAYS
def test_what_the_kernel_has_counted_is_the_connection_s(tmp_path, section):
    with offloaded(tmp_path, section) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        said(talker, 100)

        def packets() -> list[int]:
            (conn,) = net.client.conns("list", which={"dport": port})
            return [conn[way]["packets"] for way in ("original", "reply")]

        until(lambda: packets()[0] >= 102 and packets()[1] >= 101, "the kernel was asked")
        (conn,) = net.why(dport=port)
        counted = conn["offload"]["counted"]
        assert counted["original"]["packets"] >= 98 and counted["reply"]["packets"] >= 98, conn


@WAYS
def test_a_reset_takes_it_out(tmp_path, section):
    with offloaded(tmp_path, section) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        said(talker, 3)
        talker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        talker.close()
        until(lambda: net.status()["entries"] == 0, "its RST has taken it out")
        assert net.why(dport=port)[0]["offload"]["code"] == "teardown_rst"


def test_udp_is_the_kernel_s_too(tmp_path):
    with offloaded(tmp_path, PIPELINE) as net, echoing(net.right) as port, net.left.there.entered(), Conn(SERVER, port) as talker:
        talker.say(1)
        until(lambda: net.status()["flows"]["installed"] == 1, "it is there")
        time.sleep(2.1)  # until it is assured
        until(lambda: [talker.say(1), net.why(proto=17)[0]["offload"]["hardware"]][1] == ["original", "reply"], "both ways")
        before = net.status()["packets"]["software"]
        talker.say(20)
        assert net.status()["packets"]["software"] == before and any("udp" in line and "[OFFLOAD]" in line for line in kernel_conns(net))


@WAYS
def test_two_workers_have_their_own(tmp_path, section):
    with offloaded(tmp_path, section, workers=2) as net, echoing_tcp(net.right) as port:
        with net.left.there.entered():
            talkers = [socket.create_connection((SERVER, port), timeout=5) for _ in range(16)]  # of 6, all are one worker's every 32nd time
        for talker in talkers:
            said(talker)
        until(lambda: net.status()["flows"]["installed"] == 16, "all are there")
        assert net.status()["tc"]["threads"]["working"] == 2
        assert all(net.of_each(lambda worker: worker.offload.mirror.flows)), "each has some"
        before = net.status()["packets"]["software"]
        for talker in talkers:
            said(talker, 5)
        assert net.status()["packets"]["software"] - before <= 16 and net.audit()["held"] == 32 and net.audit()["differ"] == 0
        if section is EXACT:
            backends = [net.node.workers[at].offload.threaded.ask(lambda backend: backend.backend) for at in range(2)]
            assert [(backend.missed, backend.resets) for backend in backends] == [(0, 0)] * 2, "what the other one does is no news"
        for talker in talkers:
            talker.close()
        until(lambda: net.status()["entries"] == 0, "all are gone")


@contextmanager
def reopening(net: InKernel) -> Iterator[None]:
    """Devices that come back are opened, as in a service."""
    with net.left.here.entered():
        thread = Reopening(net.node)
        thread.__enter__()
    try:
        yield
    finally:
        thread.__exit__()


def marked(net, talker: socket.socket, mark: int) -> None:
    """Somebody changes the mark of its entry in the kernel."""
    (source, sport), (destination, dport) = talker.getsockname(), talker.getpeername()
    with net.left.here.entered(), NFCTSocket() as netlink:
        netlink.entry("set", mark=mark, tuple_orig=NFCTAttrTuple(saddr=source, daddr=destination, proto=6, sport=sport, dport=dport))


# --- what others do -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [LEFT, "tc qdisc del dev right clsact", f"{LEFT} chain 1"], ids=["filters", "qdisc", "chain"])
def test_rules_that_others_delete_are_put_back_and_connections_go_on(tmp_path, line, caplog):
    with offloaded(tmp_path, PIPELINE) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        assert in_kernel(net, talker)
        with net.left.here.entered():
            subprocess.run(line.split(), check=True)
        said(talker, 20)
        until(lambda: net.status()["tc"]["rules"]["repairs"] == 1, "they are back")
        until(lambda: [said(talker), net.status()["flows"]["installed"] == 1][1], "so is the connection")
        assert in_kernel(net, talker) and net.status()["tc"]["rules"]["whole"] == 1 and net.audit()["differ"] == 0
        assert net.metric("ctmirror_offload_tc_repairs_total") == 1 and net.metric('ctmirror_offload_threads{state="working"}') == 1
    assert any("rules in TC were changed by others" in record.getMessage() for record in caplog.records)


def test_what_others_do_to_rules_devices_and_entries_is_heard_repaired_and_told(tmp_path, caplog):
    """One after the other, at the same node."""
    caplog.set_level("INFO")
    with offloaded(tmp_path, PIPELINE) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:

        def others(*lines: str) -> None:
            with net.left.here.entered():
                for line in lines:
                    subprocess.run(line.split(), check=True, capture_output=True)

        def said_in_audit() -> list[str]:
            return [each["what"] for each in net.audit()["findings"] if each["drift"]]

        assert in_kernel(net, talker)
        # A rule is replaced in its place.
        rule = next(rule for rule in net.node.workers[0].pipeline.program.ruleset.rules if (rule.hook.device, rule.chain) == ("left", 0))
        others(rule_line(replace(rule, actions=(Gact(DROP),)), b"", "replace"))
        until(lambda: net.status()["tc"]["rules"]["repairs"] == 1, "it is put back")
        until(lambda: [said(talker), net.status()["flows"]["installed"] == 1][1], "it is the kernel's again")
        assert in_kernel(net, talker) and said_in_audit() == []
        # A filter of somebody's before ours.
        theirs = f"dev left ingress protocol ip prio {rule.prio} chain 0 handle 0x77 flower"
        others(f"tc filter add {theirs} ip_proto sctp action drop")
        until(lambda: net.status()["tc"]["rules"]["ahead"] == 1, "it is told")
        assert (net.metric("ctmirror_offload_tc_ahead"), net.metric("ctmirror_offload_tc_idle")) == (1, 0)
        assert in_kernel(net, talker) and said_in_audit() == ["filter_foreign"] and net.status()["tc"]["rules"]["repairs"] == 1
        others(f"tc filter del {theirs}")
        until(lambda: net.status()["tc"]["rules"]["ahead"] == 0, "it is gone")
        # An entry's mark.
        marked(net, talker, 9)
        audit = net.audit()
        assert [each["what"] for each in audit["findings"]] == ["mark_changed"] and audit["differ"] == 0 and audit["drift"] == 1
        marked(net, talker, 0)
        # A link that is down.
        with net.left.there.entered():
            subprocess.run(["ip", "link", "set", net.left.far, "down"], check=True)
        until(lambda: net.status()["tc"]["idle"] == {"left": "device down"}, "it is down")
        assert said_in_audit() == ["device_down"] and net.status()["tc"]["rules"]["whole"] == 1
        with net.left.there.entered():
            subprocess.run(["ip", "link", "set", net.left.far, "up"], check=True)
        until(lambda: net.status()["tc"]["idle"] == {}, "it is up")
        said(talker, 3)
        # A device that is gone, with its rules.
        with net.left.there.entered():
            subprocess.run(["ip", "link", "del", net.left.far], check=True)
        until(lambda: net.status()["tc"]["idle"] == {"left": "device missing"}, "it is gone")
        until(lambda: net.status()["tc"]["rules"]["whole"] == 0 and net.status()["entries"] == 0, "nothing is the kernel's any more")
        assert said_in_audit()[0] == "device_missing" and kernel_conns(net) == [] and "no interface left" in net.status()["tc"]["said"][0]
        # Another one of its name: the rules that send packets to it still stood at the other device, and went nowhere.
        with reopening(net):
            net.left = Wire(net.left.here, net.left.there, "left")
            address(net.left, CLIENT)
            until(lambda: net.status()["tc"]["rules"]["whole"] == 1, "all rules are there again")
            assert [filters(net).count(f" device {name})") for name in ("right", "left", "*")] == [4, 3, 0]
            until(lambda: net.status()["tc"]["idle"] == {} and "the interface is there again" in caplog.messages, "it is open again")
            until(lambda: [said(talker), net.status()["flows"]["installed"] == 1][1], "the connection is the kernel's again")
            with net.left.there.entered(), socket.create_connection((SERVER, port), timeout=5) as other:
                until(lambda: [said(other), net.status()["flows"]["installed"] == 2][1], "so is a new one")
                assert in_kernel(net, talker) and in_kernel(net, other) and said_in_audit() == [] and net.audit()["differ"] == 0
            assert (net.status()["tc"]["rules"]["repairs"], net.status()["tc"]["said"]) == (2, [])
    assert net.left_over == ""
    said_all = [record.getMessage() for record in caplog.records]
    for line, times in (("left is down: no packet comes through it", 1), ("left is not there", 1), ("left is up again", 2)):
        assert said_all.count(f"offload: {line}") == times
    assert any(line.startswith("rules in TC: tc filter add dev left") and "ip_proto sctp" in line for line in said_all)


def test_filters_that_others_replace_or_delete_one_by_one_are_not_relied_on(tmp_path):
    with offloaded(tmp_path, EXACT) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        assert in_kernel(net, talker)
        listed = next(line for line in filters(net).splitlines() if "handle" in line and "protocol ip " in line)
        prio, handle = re.search(r"pref (\d+)", listed).group(1), re.search(r"handle (\w+)", listed).group(1)
        with net.left.here.entered():
            (rule,) = (each.rule for each in KernelTc().listed([Hook("left")]).rules if each.rule.handle == int(handle, 16))
            subprocess.run(rule_line(replace(rule, actions=(Gact(DROP),)), b"", "replace").split(), check=True)
        said(talker, 5)
        until(lambda: [said(talker), net.why(dport=port)[0]["offload"]["kernel"]][1], "it was let go, and its place is somebody else's")
        said(talker, 5)
        assert "action order 1: gact action drop" in filters(net) and net.status()["resets"] == 0
        with net.left.here.entered():
            subprocess.run(f"tc filter del dev left ingress protocol ip prio {prio} handle {handle} flower".split(), check=True)
        until(lambda: [said(talker), in_kernel(net, talker)][1], "it is the kernel's again")
        assert net.audit()["differ"] == 0


def test_filters_that_others_delete_are_put_back(tmp_path):
    with offloaded(tmp_path, EXACT) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        assert in_kernel(net, talker)
        with net.left.here.entered():
            subprocess.run(LEFT.split(), check=True)
        said(talker, 5)
        until(lambda: net.status()["resets"] == 1, "it was heard of")
        until(lambda: [said(talker), net.status()["flows"]["installed"] == 1][1], "it is back")
        assert in_kernel(net, talker)


def test_entries_that_others_delete_are_made_anew(tmp_path):
    with offloaded(tmp_path, PIPELINE) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        assert in_kernel(net, talker)
        with net.left.here.entered():
            net.flush()
        said(talker, 5)
        until(lambda: in_kernel(net, talker) and kernel_conns(net) and net.status()["flows"]["installed"] == 1, "it is back")


# --- other rules ----------------------------------------------------------------------------------------------------------------------------------


def test_other_rules_stand_in_the_kernel_as_well(tmp_path):
    with offloaded(tmp_path, PIPELINE) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        for changes, word in ((1, "tcp"), (2, "6")):
            net.rules.write_text(IPV4.replace("+trk+est action mirred", f"+trk+est ip_proto {word} dst_ip 10.9.0.0/{23 + changes} action mirred"))
            net.reload()
            until(partial(lambda changes: net.status()["tc"]["rules"]["changes"] == changes, changes), "they are there")
            until(lambda: in_kernel(net, talker), "it is the kernel's again")
            assert f"dst_ip 10.9.0.0/{23 + changes}" in filters(net)
        net.rules.write_text(IPV4.replace("flower ct_state +trk+est action mirred egress redirect dev right", "flower ct_state +trk+est action drop"))
        net.reload()
        until(lambda: net.status()["tc"]["rules"]["changes"] == 3, "they are there")
        talker.sendall(b"question")
        talker.settimeout(0.5)
        with pytest.raises(TimeoutError):
            talker.recv(100)


def test_rules_that_the_kernel_refuses_make_connections_software_s(tmp_path, caplog):
    with offloaded(tmp_path, PIPELINE) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        assert in_kernel(net, talker)
        net.rules.write_text(IPV4 + "tc filter add dev left ingress protocol ip prio 7 chain 3 flower skip_sw ip_proto sctp action drop\n")
        net.reload()
        until(lambda: net.status()["tc"]["threads"]["suspended"] == 1, "it is software's")
        until(lambda: net.status()["entries"] == 0, "it is out")
        assert not in_kernel(net, talker) and kernel_conns(net) == []
        told = net.status()["tc"]
        assert told["rules"]["whole"] == 0 and told["rules"]["refused"] == 1 and "prio 7" in told["said"][0] and "sctp" in told["said"][0]
        net.rules.write_text(IPV4)
        net.reload()
        until(lambda: [said(talker), net.status()["flows"]["installed"] == 1][1], "it is the kernel's again")
        assert in_kernel(net, talker)
    assert any("rules.tc" in record.getMessage() and "sctp" in record.getMessage() for record in caplog.records)


def test_rules_that_stay_go_on_without_the_node(tmp_path):
    with offloaded(tmp_path, PIPELINE + 'rules = "keep"\n') as net:
        assert "ct_state +trk+est" in filters(net)
    assert "ct_state +trk+est" in net.left_over


# --- in a NIC ---------------------------------------------------------------------------------------------------------------------------------------


def test_exact_filters_are_the_NIC_s_alone(nic, tmp_path):
    """A NIC that is none forwards nothing: packets go on in software, and it counts what a test says."""
    with offloaded(tmp_path, EXACT.replace('"no"', '"only"'), nic=True) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        assert net.status()["tc"]["where"] == "a NIC" and len(nic.lines("rules")) == 2
        listed = filters(net)
        assert listed.count("skip_sw") == listed.count(" in_hw_count 1") == 2 and not in_kernel(net, talker)
        (conn,) = net.client.conns("list", which={"dport": port})
        nic.hit("rules", "left chain", 1000, 64_000)
        until(lambda: next(net.client.conns("list", which={"dport": port}))["original"]["packets"] >= conn["original"]["packets"] + 1000, "counted")
    assert nic.lines("rules") == []


def test_what_the_kernel_refused_is_told_with_its_sentence(nic, tmp_path):
    nic.set(rule_room=0)
    refused = pytest.raises(ConfigError, match=r"not exact in a NIC: left: flower .*feigned_nic: no room in hardware")
    with refused, offloaded(tmp_path, EXACT.replace('"no"', '"only"'), nic=True):
        pass
    nic.set(rule_room=1 << 20)
    with offloaded(tmp_path, EXACT.replace('"no"', '"only"'), nic=True) as net, echoing_tcp(net.right) as port:
        nic.set(rule_room=0)
        with net.left.there.entered(), socket.create_connection((SERVER, port), timeout=5) as talker:
            said(talker, 3)
            until(lambda: net.why(dport=port)[0]["offload"]["code"] == "hw_full", "both directions were refused")
            told = net.why(dport=port)[0]["offload"]
            assert told["hardware"] == [] and "feigned_nic: no room in hardware" in told["kernel"]


def test_without_ct_in_the_NIC_the_log_says_why_it_is_exact(nic, tmp_path, caplog):
    caplog.set_level("INFO")
    nic.set(takes_ct=0)
    section = EXACT.replace('way = "exact"\nhardware = "no"', 'way = "auto"')
    with offloaded(tmp_path, section, nic=True) as net:
        assert (net.status()["tc"]["way"], net.status()["tc"]["where"]) == ("exact", "a NIC")
        (why,) = net.status()["tc"]["why"]
    assert why.startswith("not pipeline in a NIC: left: ct (action ct, and on in a chain): ") and "feigned_nic: this NIC" in why
    said_all = [record.getMessage() for record in caplog.records]
    assert f"offload: {why}" in said_all and "offload: exact in a NIC (left, right)" in said_all

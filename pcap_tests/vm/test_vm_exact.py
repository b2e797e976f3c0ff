"""Flows as exact filters in a real kernel: made, counted, listed, deleted; forwarded and translated by TC; refused by a NIC, flushed by others."""

from __future__ import annotations

import errno
import os
import socket
import subprocess

import numpy as np
import pytest

from ctcore.errors import ConfigError
from datapath.commands.tc.ask import KernelTc
from datapath.oracle.namespace import Namespace, cable
from datapath.pipeline.rules import Hook
from offload.exact_rules import ExactRules
from offload.mirror import Mirror
from offload.netlink.exact import Prios
from offload.netlink.extack import LOST
from offload.records import Ctinfo, Op
from offload.sides import Sides, side
from pcap_tests.test_offload.commanded import ALL, GRE, ICMP, UDP, Flow, S, asked, commands, through_a_small_buffer

SIDES = Sides([side("eth0", ["10.1.0.0/16", "2001:db8:1::/48"]), side("vf0")])


def tc(line: str) -> None:
    subprocess.run(["tc", *line.split()], check=True)


def of_end(rows: np.ndarray) -> set[int]:
    """Cookies of filters that are told to have gone."""
    return {int(row["cookie"]) for row in rows if row["op"] == Op.GONE}


# --- one after the other --------------------------------------------------------------------------------------------------------------------


def test_filters_are_made_listed_and_deleted(nic, switch):
    with ExactRules(SIDES, skip_sw=True) as backend:
        # Of a masqueraded flow the reply comes to an address that is behind the other side.
        flows = (*ALL[:1], *ALL[2:])
        assert asked(backend, Op.REPLACE, *flows) == [0] * 8
        assert len(nic.lines("rules")) == 8
        held = backend.held()
        wanted = commands(Op.REPLACE, *flows)
        assert sorted(map(bytes, held)) == sorted(map(bytes, wanted))
        assert asked(backend, Op.DESTROY, *flows) == [0] * 8
        assert asked(backend, Op.DESTROY, *flows) == [errno.ENOENT] * 8
        assert nic.lines("rules") == [] and len(backend.held()) == 0


def test_a_nic_is_told_what_the_contract_says(nic, switch):
    """A4.26-32: exact keys, neither FIN nor RST, addresses before ports; behind it the checksums, and a device."""
    with ExactRules(SIDES, Prios(0, 7), skip_sw=True) as backend:
        translated = Flow(9, to=("10.1.0.7", 41_000, "203.0.113.5", 8080))
        assert asked(backend, Op.REPLACE, translated) == [0, 0]
        first, second = (line.partition(" ")[2] for line in sorted(nic.lines("rules"), key=lambda line: "vf0 chain" in line))
        first = first.replace("0x0/", "0/")
        assert first == (
            "packets 0 bytes 0 eth0 chain 0 prio 7 protocol 0x0800 flags 0/0x1 src_ip 10.1.0.7 dst_ip 192.0.2.9 src_port 40000 dst_port 80 "
            "tcp_flags 0/0x5 "
            "mangle(2 16 057100cb/00000000) mangle(4 0 000028a0/ffff0000) mangle(4 0 901f0000/0000ffff) csum(0x9) redirect(vf0)"
        )
        assert "vf0 chain 0 prio 7" in second and "src_ip 203.0.113.5 dst_ip 10.1.0.7 src_port 8080 dst_port 41000" in second
        assert second.endswith("csum(0x9) redirect(eth0)")


def test_a_rule_may_go_on_in_a_chain(nic, switch):
    """A4.33: what else is to be done with the packet say rules behind it."""
    with ExactRules(Sides([side("eth0", ["10.1.0.0/16"], chain=8), side("vf0", chain=9)]), skip_sw=True) as backend:
        assert asked(backend, Op.REPLACE, Flow(1)) == [0, 0]
        assert sorted(line.rpartition(" ")[2] for line in nic.lines("rules")) == ["goto(8)", "goto(9)"]
        assert sorted(map(bytes, backend.held())) == sorted(map(bytes, commands(Op.REPLACE, Flow(1))))


def test_counters_are_told_as_what_came_since_the_last_time(nic, switch):
    with ExactRules(SIDES, skip_sw=True) as backend:
        asked(backend, Op.REPLACE, Flow(1))

        def counted(now: int) -> list[tuple[int, int, int]]:
            backend.submit(commands(Op.STATS, Flow(1)), now)
            return [(int(row["packets"]), int(row["bytes"]), int(row["used"])) for row in backend.replies(now)]

        assert counted(10 * S) == [(0, 0, 0), (0, 0, 0)]
        nic.hit("rules", "eth0 chain", 7, 700)
        (packets, octets, used), reply = counted(20 * S)
        assert (packets, octets) == (7, 700) and 19 * S < used <= 20 * S and reply == (0, 0, 0)
        assert counted(30 * S)[0][:2] == (0, 0)
        nic.hit("rules", "eth0 chain", 1, 60)
        nic.hit("rules", "vf0 chain", 2, 120)
        assert [each[:2] for each in counted(40 * S)] == [(1, 60), (2, 120)]
        assert asked(backend, Op.STATS, Flow(77)) == [errno.ENOENT] * 2


def test_a_side_without_a_nic_is_the_kernels(nic, switch):
    """skip_sw is said of each device."""
    subprocess.run(["ethtool", "-K", "vf0", "hw-tc-offload", "off"], check=True)
    with ExactRules(SIDES, skip_sw=True) as backend:
        assert asked(backend, Op.REPLACE, Flow(1)) == [0, errno.EOPNOTSUPP]
    with ExactRules(SIDES, skip_sw=("eth0",)) as backend:
        assert asked(backend, Op.REPLACE, Flow(1)) == [0, 0]
        assert len(nic.lines("rules")) == 1 and len(backend.held()) == 2


def test_the_same_once_more_exists_and_news_of_the_connection_are_taken(nic, switch):
    """A4.36."""
    with ExactRules(SIDES, skip_sw=True) as backend:
        assert asked(backend, Op.REPLACE, Flow(1), ctinfo=Ctinfo.NEW, replies=False) == [0]
        assert asked(backend, Op.REPLACE, Flow(1), ctinfo=Ctinfo.NEW, replies=False) == [errno.EEXIST]
        assert asked(backend, Op.REPLACE, Flow(1), ctinfo=Ctinfo.ESTABLISHED, replies=False) == [0]
        assert [int(row["ctinfo"]) for row in backend.held()] == [Ctinfo.ESTABLISHED]


# --- what goes wrong ------------------------------------------------------------------------------------------------------------------------


def test_a_full_nic_says_so(nic, switch):
    nic.set(rule_room=3)
    with ExactRules(SIDES, skip_sw=True) as backend:
        assert asked(backend, Op.REPLACE, Flow(1), Flow(2, dport=81)) == [0, 0, 0, errno.ENOSPC]
        assert backend.refusal(102) == "No space left on device: feigned_nic: no room in hardware"
        asked(backend, Op.DESTROY, Flow(1))
        assert asked(backend, Op.REPLACE, Flow(2, dport=81)) == [errno.EEXIST, 0] and backend.refusal(102) == ""


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOMEM, errno.EIO])
def test_a_refusal_is_told_by_its_number_and_sentence(nic, switch, number):
    with ExactRules(SIDES, skip_sw=True) as backend:
        nic.set(fail_next=1, fail_errno=number)
        assert asked(backend, Op.REPLACE, Flow(1)) == [number, 0]
        assert asked(backend, Op.REPLACE, Flow(1)) == [0, errno.EEXIST]
        nic.set(fail_next=2)
        assert asked(backend, Op.REPLACE, Flow(2, dport=81)) == [number] * 2
        assert backend.refusal(102) == f"{os.strerror(number)}: feigned_nic: told to fail"


def test_what_no_rule_can_do_is_not_asked_of_the_kernel(switch):
    with ExactRules(SIDES, most=4) as backend:
        assert (
            asked(backend, Op.REPLACE, Flow(1, ICMP), Flow(2, GRE, to=("10.1.0.7", 0, "203.0.113.5", 0)), Flow(3, zone=4)) == [errno.EOPNOTSUPP] * 6
        )
        assert [backend.refusal(conn) for conn in (101, 102, 103)] == [
            "Operation not supported: protocol 1: expected TCP, UDP or GRE",
            "Operation not supported: only TCP and UDP are translated in hardware (A4.32)",
            "Operation not supported: no side of zone 4 has 192.0.2.9",
        ]
        assert asked(backend, Op.REPLACE, Flow(4), Flow(5, dport=81), Flow(6, dport=82)) == [0, 0, 0, 0, errno.ENOSPC, errno.ENOSPC]


def test_another_filter_of_the_same_packets_is_in_the_way(switch):
    """EEXIST would mean that it is there; it is, and not ours."""
    with ExactRules(SIDES) as backend:
        asked(backend, Op.REPLACE, Flow(1))
        assert asked(backend, Op.REPLACE, Flow(2)) == [errno.EBUSY] * 2
        assert asked(backend, Op.REPLACE, Flow(1, serial=2, dport=81)) == [errno.EBUSY] * 2


def test_an_answer_that_was_lost_is_looked_up(switch):
    with ExactRules(SIDES) as backend:
        ask = backend.channel.ask
        lost: list[str] = []

        def forgetful(requests, *, sparing=False):
            answers = ask(requests, sparing=sparing)
            return [LOST] * len(answers) if sparing and not lost else answers

        backend.channel.ask = forgetful
        assert asked(backend, Op.REPLACE, Flow(1)) == [0, 0]  # done all the same
        assert asked(backend, Op.STATS, Flow(1)) == [errno.ENOBUFS] * 2
        assert asked(backend, Op.DESTROY, Flow(1)) == [0, 0]
        backend.channel.ask = lambda requests, *, sparing=False: [LOST] * len(requests) if sparing else ask(requests)
        assert asked(backend, Op.REPLACE, Flow(1)) == [errno.ENOBUFS] * 2  # never arrived


def test_a_buffer_that_is_too_small_loses_no_command(switch):
    with ExactRules(SIDES) as backend:
        assert len(through_a_small_buffer(backend, backend.channel.socket)) == 128
        assert len(backend.held()) == 0


def test_an_interface_that_is_not_there_is_an_error_at_the_start(switch):
    with pytest.raises(ConfigError, match="no interface eth9"):
        ExactRules(Sides([side("eth9")]))


@pytest.mark.parametrize("prios", [Prios(0, 0), Prios(0, 65_535), Prios(-1, 1), Prios(1 << 28, 1)])
def test_priorities_that_there_are_not_are_an_error(switch, prios):
    with pytest.raises(ConfigError, match="expected 0 to 268435455, and 1 to 65534"):
        ExactRules(SIDES, prios)


def test_priorities_of_others_are_refused(switch):
    tc("qdisc add dev vf0 clsact")
    tc("filter add dev vf0 ingress protocol ip prio 1 flower ip_proto udp action pass")
    with pytest.raises(ConfigError, match="vf0 has filters of others in chain 0, priority 1"):
        ExactRules(SIDES)
    with ExactRules(SIDES, Prios(0, 5)) as backend:
        assert asked(backend, Op.REPLACE, Flow(1)) == [0, 0]
    with KernelTc() as kernel:  # and theirs is still there
        assert [each.rule.prio for each in kernel.listed([Hook("vf0")]).rules] == [1]


# --- what others do -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "filter del dev eth0 ingress",
        "filter del dev eth0 ingress protocol ip prio 1",
        "filter del dev eth0 ingress chain 0",
        "qdisc del dev eth0 clsact",
    ],
)
def test_a_flush_by_somebody_is_a_reset(switch, words):
    with ExactRules(SIDES) as backend:
        asked(backend, Op.REPLACE, Flow(1), Flow(2, dport=81))
        tc(words)
        assert of_end(backend.replies(S)) == {flow.cookie(d) for flow in (Flow(1), Flow(2, dport=81)) for d in range(2)} and backend.resets == 0
        assert backend.submit(commands(Op.STATS, Flow(1)), S) == 0  # nothing is taken until it is told as a reset
        assert len(backend.replies(S)) == 0 and backend.resets == 1
        assert len(backend.held()) == 0
        assert asked(backend, Op.REPLACE, Flow(1), Flow(2, dport=81)) == [0] * 4
        assert len(backend.held()) == 4 and backend.resets == 1


def test_what_others_do_elsewhere_is_no_reset(switch):
    with ExactRules(SIDES) as backend:
        asked(backend, Op.REPLACE, Flow(1))
        tc("filter add dev eth0 ingress protocol ip prio 9 flower ip_proto udp action pass")
        tc("filter del dev eth0 ingress protocol ip prio 9")
        tc("qdisc add dev vf1 clsact")
        tc("qdisc del dev vf1 clsact")
        tc("qdisc add dev eth0 root pfifo")
        tc("qdisc del dev eth0 root")
        assert len(backend.replies(S)) == 0 and backend.resets == 0
        assert asked(backend, Op.STATS, Flow(1)) == [0, 0]


def test_one_filter_that_somebody_deletes_is_missing_when_it_is_asked_for(switch):
    with ExactRules(SIDES) as backend:
        asked(backend, Op.REPLACE, Flow(1))
        tc(f"filter del dev eth0 ingress protocol ip prio 1 handle {(Flow(1).cookie() & 0xFFFFFFFF) + 1:#x} flower")
        assert asked(backend, Op.STATS, Flow(1)) == [errno.ENOENT, 0] and (backend.missed, backend.resets) == (1, 0)
        assert asked(backend, Op.REPLACE, Flow(1)) == [0, errno.EEXIST]


def test_with_its_end_a_filter_tells_what_it_has_counted_last(nic, switch):
    with ExactRules(SIDES, skip_sw=True) as backend:
        asked(backend, Op.REPLACE, Flow(1))
        nic.hit("rules", "eth0 chain", 7, 700)
        backend.submit(commands(Op.STATS, Flow(1)), 10 * S)
        backend.replies(10 * S)
        nic.hit("rules", "eth0 chain", 2, 120)
        nic.hit("rules", "vf0 chain", 3, 180)
        for _ in backend.empty(20 * S):
            assert backend.left == 0
        told = {int(row["cookie"]): (int(row["op"]), int(row["packets"]), int(row["bytes"])) for row in backend.replies(20 * S)}
        assert told == {Flow(1).cookie(0): (Op.GONE, 2, 120), Flow(1).cookie(1): (Op.GONE, 3, 180)} and nic.lines("rules") == []


def test_filters_of_others_in_our_priorities_stay_at_the_end(switch):
    """Also one that somebody has made of ours, and the qdisc, which they use."""
    with ExactRules(SIDES) as backend:
        asked(backend, Op.REPLACE, Flow(1))
        handle = (Flow(1).cookie() & 0xFFFFFFFF) + 1
        tc("filter add dev eth0 ingress protocol ip prio 1 handle 0x700 flower ip_proto udp action pass")
        tc(f"filter del dev eth0 ingress protocol ip prio 1 handle {handle:#x} flower")
        tc(f"filter add dev eth0 ingress protocol ip prio 1 handle {handle:#x} flower ip_proto icmp action pass")
    with KernelTc() as kernel:
        listed = kernel.listed([Hook("eth0"), Hook("vf0")])
        assert sorted(each.rule.handle for each in listed.rules) == sorted((handle, 0x700)) and [qdisc.device for qdisc in listed.qdiscs] == ["eth0"]


def test_an_interface_that_goes_and_comes_again(switch):
    with ExactRules(SIDES) as backend:
        asked(backend, Op.REPLACE, Flow(1))
        with switch.netlink() as netlink:
            netlink.link("del", index=netlink.link_lookup(ifname="vf0")[0])
            assert of_end(backend.replies(S)) == {Flow(1).cookie(0), Flow(1).cookie(1)}
            assert len(backend.replies(S)) == 0 and backend.resets == 1
            assert asked(backend, Op.REPLACE, Flow(1)) == [errno.ENODEV] * 2
            assert backend.refusal(101) == "No such device: no interface vf0"
            netlink.link("add", ifname="vf0", kind="veth", peer={"ifname": "vf1"})
            assert len(backend.replies(S)) == 0
            assert asked(backend, Op.REPLACE, Flow(1)) == [0, 0] and backend.resets == 1


def test_nothing_is_left_behind(switch):
    tc("qdisc add dev eth0 clsact")
    with ExactRules(SIDES) as backend:
        asked(backend, Op.REPLACE, *ALL[:1])
    with KernelTc() as kernel:
        listed = kernel.listed([Hook("eth0"), Hook("vf0")])
        assert listed.rules == () and [qdisc.device for qdisc in listed.qdiscs] == ["eth0"]  # which was not ours


# --- with a mirror ----------------------------------------------------------------------------------------------------------------------------


def test_an_audit_says_what_somebody_has_changed(switch):
    with ExactRules(SIDES) as backend:
        asked(backend, Op.REPLACE, Flow(1))
        handle = (Flow(1).cookie() & 0xFFFFFFFF) + 1
        cookie = (b"ctm/flow" + Flow(1).cookie().to_bytes(8, "little")).hex()
        name = f"dev eth0 ingress protocol ip prio 1 handle {handle:#x} flower"
        tc(f"filter del {name}")
        tc(f"filter add {name} ip_proto udp action pass cookie {cookie}")
        rows = {int(row["cookie"]): row for row in backend.held()}
        assert rows[Flow(1).cookie()]["match"]["family"] == 0 and rows[Flow(1).cookie(1)]["match"]["family"] == 4
        mirror = Mirror(16)
        assert len(mirror.audit(backend.held())) == 2  # which a mirror that knows of no flow should not have


# --- with packets -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "port"), [("10.1.0.9", 7000), ("10.1.0.77", 7777)])
def test_tc_carries_a_flow_across_and_translates_it(target, port):
    """client - switch - server, whose only rules are ours: UDP answered through both, with and without translation of the destination."""
    client, middle, server = Namespace(), Namespace(), Namespace()
    try:
        cable(client, middle, ("eth1", "eth0"), ("02:00:00:00:00:01", "02:00:00:00:00:10"))
        cable(middle, server, ("vf0", "vf1"), ("02:00:00:00:00:20", "02:00:00:00:00:02"))
        for namespace, device, own, other, mac in (
            (client, "eth1", "10.1.0.7", target, "02:00:00:00:00:02"), (server, "vf1", "10.1.0.9", "10.1.0.7", "02:00:00:00:00:01"),
        ):  # fmt: skip
            with namespace.netlink() as netlink:
                index = netlink.link_lookup(ifname=device)[0]
                netlink.addr("add", index=index, address=own, prefixlen=24)
                netlink.neigh("replace", ifindex=index, dst=other, lladdr=mac, state=0x80)
        sides = Sides([side("eth0", ["10.1.0.7/32"]), side("vf0", ["10.1.0.9/32", "10.1.0.77/32"])])
        with middle.entered(), ExactRules(sides) as backend:
            flow = Flow(1, UDP, "10.1.0.7", target, 5000, port, to=("10.1.0.7", 5000, "10.1.0.9", 7000))
            assert asked(backend, Op.REPLACE, flow) == [0, 0]
            with server.entered():
                far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                far.bind(("10.1.0.9", 7000))
            with client.entered():
                near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                near.bind(("10.1.0.7", 5000))
            far.settimeout(10)
            near.settimeout(10)
            with far, near:
                for word in (b"one", b"two", b"three"):
                    near.sendto(word, (target, port))
                    said, sender = far.recvfrom(100)
                    assert (said, sender) == (word, ("10.1.0.7", 5000))
                    far.sendto(word.upper(), sender)
                    assert near.recvfrom(100) == (word.upper(), (target, port))
            backend.submit(commands(Op.STATS, flow), S)
            assert [int(row["packets"]) for row in backend.replies(S)] == [3, 3]
    finally:
        for namespace in (client, middle, server):
            namespace.close()

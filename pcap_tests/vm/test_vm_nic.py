"""Rules that a NIC takes, as far as TC can tell: skip_sw, in_hw, counters of hardware, refusals; by the module that makes a veth look like one."""

from __future__ import annotations

import errno
import subprocess

from datapath.commands.tc.ask import KernelTc
from datapath.pipeline.rules import Hook, Ruleset
from pcap_tests.vm.test_vm_refusals import parsed

HOOK = Hook("eth0")
QDISC = "tc qdisc add dev eth0 clsact"
HEAD = "tc filter add dev eth0 ingress protocol ip"


def rules(*tails: str) -> Ruleset:
    return parsed("\n".join([QDISC, *(f"{HEAD} prio {number} chain 0 handle {number} flower {tail}" for number, tail in enumerate(tails, 1))]))


def test_rules_are_in_hardware_and_say_so(nic, switch):
    with KernelTc() as kernel:
        assert kernel.make(rules("skip_sw ip_proto udp action drop", "ip_proto tcp action drop", "skip_hw action drop")) == []
        listed = kernel.listed([HOOK]).rules
        assert [(each.rule.skip_sw, each.rule.skip_hw, each.in_hw, each.in_hw_count) for each in listed] == [
            (True, False, True, 1), (False, False, True, 1), (False, True, False, 0),
        ]  # fmt: skip
        assert len(nic.lines("rules")) == 2


def test_what_hardware_counts_is_told_apart(nic, switch):
    with KernelTc() as kernel:
        kernel.make(rules("skip_sw ip_proto udp dst_port 53 action drop"))
        nic.hit("rules", "dst_port 53", 7, 700)
        (one,) = kernel.listed([HOOK]).rules
        counted = one.counted[0]
        assert (counted.packets, counted.octets, counted.hw_packets, counted.hw_octets) == (7, 700, 7, 700)


def test_a_full_nic_refuses_what_software_may_not_do(nic, switch):
    nic.set(rule_room=2)
    with KernelTc() as kernel:
        refused = kernel.make(rules(*(f"skip_sw ip_proto udp dst_port {port} action drop" for port in range(1, 5))))
        assert [(each.part.prio, each.answer.error, each.answer.text) for each in refused] == [
            (prio, errno.ENOSPC, "feigned_nic: no room in hardware") for prio in (3, 4)
        ]
        assert len(kernel.listed([HOOK]).rules) == 2


def test_a_full_nic_leaves_the_others_to_software(nic, switch):
    nic.set(rule_room=1)
    with KernelTc() as kernel:
        assert kernel.make(rules("ip_proto udp action drop", "ip_proto tcp action drop")) == []
        assert [each.in_hw for each in kernel.listed([HOOK]).rules] == [True, False]


def test_a_nic_without_conntrack_says_which_rules_it_does_not_take(nic, switch):
    nic.set(takes_ct=0)
    with KernelTc() as kernel:
        refused = kernel.make(rules("skip_sw ip_proto tcp action drop", "skip_sw ct_state +trk+est action drop"))
        assert [(each.part.prio, each.answer.text) for each in refused] == [(2, "feigned_nic: this NIC matches no conntrack")]


def test_failures_are_told_with_their_number(nic, switch):
    nic.set(fail_next=1, fail_errno=errno.EOPNOTSUPP)
    with KernelTc() as kernel:
        refused = kernel.make(rules("skip_sw ip_proto tcp action drop", "skip_sw ip_proto udp action drop"))
        (one,) = refused
        assert one.told() == (
            "rules.tc:2:1: tc filter add dev eth0 ingress protocol ip prio 1 chain 0 handle 0x1 flower ip_proto tcp skip_sw action drop: "
            "Operation not supported: feigned_nic: told to fail"
        )


def test_hw_tc_offload_switched_off_leaves_all_to_software(nic, switch):
    subprocess.run(["ethtool", "-K", "eth0", "hw-tc-offload", "off"], check=True)
    with KernelTc() as kernel:
        (refused,) = kernel.make(rules("skip_sw ip_proto tcp action drop", "ip_proto udp action drop"))
        assert (refused.part.prio, refused.answer.error) == (1, errno.EOPNOTSUPP)
        assert [each.in_hw for each in kernel.listed([HOOK]).rules] == [False]


def test_rules_leave_hardware_when_they_are_removed(nic, switch):
    with KernelTc() as kernel:
        meant = rules("ip_proto udp action drop", "ip_proto tcp action ct zone 4 pipe action goto chain 1")
        kernel.make(meant)
        assert "ct(0 zone 4) goto(1)" in nic.lines("rules")[1].replace("0x0", "0")
        assert kernel.remove(meant.rules) == []
        assert nic.lines("rules") == []

"""What can be asked of the kernel's TC beside making rules: one told, changed in place, told back as it was made; counters alone; a chain emptied."""

from __future__ import annotations

import errno
from dataclasses import replace

from datapath.commands.tc.ask import KernelTc
from datapath.commands.tc.decode import kept
from datapath.commands.tc.encode import Encoder, name_of
from datapath.pipeline.rules import Hook, Match, Qdisc, Ruleset
from offload.netlink.filters import Name, delete_chain, delete_filter, delete_qdisc, get_filter, new_chain
from pcap_tests.vm.test_vm_nic import rules

HOOK = Hook("eth0")


def test_a_rule_is_told_back_as_the_kernel_made_it(switch):
    with KernelTc() as kernel:
        kernel.make(Ruleset((Qdisc("eth0"),)))
        (rule,) = rules("ip_proto tcp dst_port 80 action drop").rules
        anonymous = replace(rule, handle=0, prio=0)
        assert [answer.error for answer in kernel.channel.ask([kernel.encoder.rule(anonymous, echo=True)])] == [0]
        (made,) = [found.rule for data in kernel.channel.echoed if (found := kernel.decoder.rule(data))]
        assert (made.prio, made.handle, made.matches) == (0xC000, 1, rule.matches)


def test_one_rule_is_told_by_its_name(switch):
    with KernelTc() as kernel:
        meant = rules("ip_proto tcp action drop", "ip_proto udp action pass")
        kernel.make(meant)
        where = kernel.encoder.where(HOOK)
        missing = Name(0, 2, 0x0800, 99)
        answers = kernel.channel.ask([get_filter(where, name_of(meant.rules[1])), get_filter(where, missing)])
        assert [answer.error for answer in answers] == [0, errno.ENOENT]
        assert [kernel.decoder.rule(data).rule for data in kernel.channel.echoed] == [kept(meant.rules[1])]


def test_a_rule_is_changed_in_place(switch):
    with KernelTc() as kernel:
        meant = rules("ip_proto tcp action drop")
        kernel.make(meant)
        other = replace(meant.rules[0], matches=(Match("ip_proto", 17, 0xFF),))
        assert [answer.error for answer in kernel.channel.ask([kernel.encoder.rule(other), kernel.encoder.rule(other, replace=True)])] == [
            errno.EEXIST,
            0,
        ]
        assert [each.rule for each in kernel.listed([HOOK]).rules] == [kept(other)]


def test_counters_are_told_alone(nic, switch):
    with KernelTc(b"mine") as kernel:
        kernel.make(rules("ip_proto udp dst_port 53 action drop", "skip_hw ip_proto tcp action csum ip pipe action pass"))
        nic.hit("rules", "dst_port 53", 3, 300)
        first, second = kernel.tallied([HOOK])
        assert (first.prio, first.in_hw) == (1, True)
        assert (first.counted[0].hw_packets, first.counted[0].hw_octets, first.counted[0].cookie) == (3, 300, b"mine")
        assert (second.hook, second.chain, second.handle, second.in_hw, len(second.counted)) == (HOOK, 0, 2, False, 2)


def test_a_priority_a_chain_and_a_qdisc_go_with_all_that_is_in_them(switch):
    with KernelTc() as kernel:
        meant = rules("ip_proto tcp action drop", "ip_proto udp action drop", "action pass")
        moved = tuple(replace(rule, chain=7 if rule.prio == 2 else 0) for rule in meant.rules)
        kernel.make(replace(meant, rules=moved))
        where = kernel.encoder.where(HOOK)

        def left() -> list[int]:
            return [each.rule.prio for each in kernel.listed([HOOK]).rules]

        assert kernel.channel.ask([delete_filter(where, Name(0, 1, 0x0800))])[0].error == 0 and left() == [3, 2]
        assert kernel.channel.ask([delete_chain(where, 7)])[0].error == 0 and left() == [3]
        assert [answer.error for answer in kernel.channel.ask([new_chain(where, 8), new_chain(where, 8)])] == [0, errno.EEXIST]
        assert kernel.channel.ask([delete_qdisc(where.ifindex)])[0].error == 0 and kernel.listed([HOOK]).qdiscs == ()


def test_how_hardware_counts_can_be_said(nic, switch):
    """At once (1) or now and then (2): the kernel passes it on, and the NIC here takes either."""
    with KernelTc() as kernel:
        kernel.make(Ruleset((Qdisc("eth0"),)))
        (rule,) = rules("skip_sw ip_proto tcp action drop").rules
        for stats in (1, 2):
            assert kernel.channel.ask([Encoder(kernel.numbers.__getitem__, hw_stats=stats).rule(replace(rule, prio=stats))])[0].error == 0
        assert len(kernel.listed([HOOK]).rules) == 2

"""pyroute2's sockets, with the classes made from our tables, see what our own reader sees: lists, events, templates and errors."""

from __future__ import annotations

import pytest
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError

from datapath.commands.tc.ask import KernelTc
from datapath.pipeline.rules import Hook
from offload.netlink import classes, filters
from offload.netlink.flower import NUMBERS
from pcap_tests.vm.test_vm_nic import rules
from pcap_tests.vm.test_vm_refusals import parsed

RTNLGRP_TC = 1 << 3


def asked(ipr, request: int, flags: int, ifindex: int, info: int = 0, **attributes: object):
    message = classes.tcmsg()
    message["index"], message["parent"], message["info"] = ifindex, filters.INGRESS_PARENT, info
    message["attrs"] = [[f"TCA_{name.upper()}", value] for name, value in attributes.items()]
    return list(ipr.nlm_request(message, request, NLM_F_REQUEST | flags))


def test_a_list_is_the_same_by_either(switch):
    meant = rules(
        "ct_state -trk ip_proto tcp action ct zone 5 pipe action goto chain 1",
        "ct_state +trk+est ct_zone 5 ct_mark 0x42/0xff ct_label 01ff action pedit ex munge ip ttl decrement pipe action csum ip pipe action pass",
    )
    with KernelTc(b"ours") as kernel, classes.iproute() as ipr:
        assert kernel.make(meant) == []
        first, second = [each for each in asked(ipr, filters.GET_FILTER, NLM_F_DUMP, kernel.numbers["eth0"]) if each["handle"]]
        options = first.get_attr("TCA_OPTIONS")
        assert options.get_attr("TCA_FLOWER_KEY_CT_STATE_MASK") == 8
        ct, goto = [each for _, each in options.get_attr("TCA_FLOWER_ACT")["attrs"]]
        assert (ct.get_attr("TCA_ACT_KIND"), ct.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_CT_ZONE")) == ("ct", 5)
        assert goto.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_GACT_PARMS")["action"] == filters_goto(1)
        assert bytes(ct.get_attr("TCA_ACT_COOKIE")) == b"ours"
        options = second.get_attr("TCA_OPTIONS")
        assert bytes(options.get_attr("TCA_FLOWER_KEY_CT_LABELS"))[:2] == b"\x01\xff"
        pedit = options.get_attr("TCA_FLOWER_ACT")["attrs"][0][1].get_attr("TCA_ACT_OPTIONS")
        (key,) = pedit.get_attr("TCA_PEDIT_KEYS_EX")["attrs"]
        assert (key[1].get_attr("TCA_PEDIT_KEY_EX_HTYPE"), key[1].get_attr("TCA_PEDIT_KEY_EX_CMD")) == (2, 1)
        assert [each.rule.prio for each in kernel.listed([Hook("eth0")]).rules] == [1, 2]


def filters_goto(chain: int) -> int:
    return 0x20000000 | chain


def test_a_template_made_by_classes_is_the_one_that_is_listed(switch):
    with KernelTc() as kernel, classes.iproute() as ipr:
        kernel.make(parsed("tc qdisc add dev eth0 clsact"))
        keys = {"attrs": [["TCA_FLOWER_KEY_IP_PROTO", 255], ["TCA_FLOWER_KEY_ETH_TYPE", 0x0800]]}
        flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
        info = 0x0008  # ETH_P_IP in the order of the wire
        asked(ipr, filters.NEW_CHAIN, flags, kernel.numbers["eth0"], info, chain=5, kind="flower", options=keys)
        (template,) = kernel.listed([Hook("eth0")]).templates
        assert (template.chain, [(match.name, match.mask) for match in template.matches]) == (5, [("ip_proto", 0xFF)])


def test_events_tell_of_rules_that_come_and_go(switch):
    with KernelTc() as kernel, classes.iproute() as ipr:
        ipr.bind(groups=RTNLGRP_TC)
        meant = rules("ip_proto tcp action drop")
        kernel.make(meant)
        kernel.remove(meant.rules)
        seen = []
        while not seen or seen[-1] != (filters.DELETE_FILTER, 1):
            seen += [(each["header"]["type"], each["info"] >> 16) for each in ipr.get() if each["header"]["type"] in classes.POLICY]
        assert (filters.NEW_FILTER, 1) in seen


def test_an_error_has_the_kernels_sentence(switch):
    with KernelTc() as kernel, classes.iproute() as ipr:
        kernel.make(parsed("tc qdisc add dev eth0 clsact"))
        keys = {"attrs": [["TCA_FLOWER_KEY_CT_STATE", 2], ["TCA_FLOWER_KEY_CT_STATE_MASK", 2], ["TCA_FLOWER_KEY_ETH_TYPE", 0x0800]]}
        with pytest.raises(NetlinkError, match="no trk, so no other flag can be set"):
            asked(ipr, filters.NEW_FILTER, NLM_F_ACK | NLM_F_CREATE, kernel.numbers["eth0"], 1 << 16 | 8, kind="flower", options=keys, chain=0)
        assert NUMBERS["KEY_CT_STATE"] == 91

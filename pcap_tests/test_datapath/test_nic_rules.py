"""Rules of tc as a NIC is told of them: what is made of each match and action, in which order, and at which ifaces."""

from __future__ import annotations

import pytest

from datapath.commands.nic_rules import nic_rules
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import parse
from offload.simnic import rules as nic
from offload.simnic.kept import Kept
from offload.simnic.nic import Nic
from offload.simnic.profile import load

NUMBER = {"eth0": 1, "eth1": 2, "eth2": 3}
SETUP = "tc qdisc add dev eth0 clsact\ntc qdisc add dev eth1 clsact\n"


def translated(text: str, setup: str = SETUP) -> nic.NicRules:
    """tc lines without `tc filter add`."""
    lines = "".join(f"tc filter add {line.strip()}\n" for line in text.strip().splitlines())
    found = Findings()
    ruleset = parse(setup + lines, "rules.tc", found)
    assert not found.errors
    return nic_rules(ruleset, NUMBER.__getitem__)


def one(match: str, actions: str = "action pass", protocol: str = "ip") -> nic.NicRule:
    (rule,) = translated(f"dev eth0 ingress protocol {protocol} prio 1 flower {match} {actions}").rules
    return rule


def matches(match: str, protocol: str = "ip") -> dict[str, tuple[int, int, int | None]]:
    return {each.name: (each.value, each.mask, each.high) for each in one(match, protocol=protocol).matches}


def test_the_protocol_says_which_ip_it_is():
    assert matches("") == {"eth_type": (0x0800, 0xFFFF, None), "family": (4, 0xFF, None)}
    assert matches("", "ipv6") == {"eth_type": (0x86DD, 0xFFFF, None), "family": (6, 0xFF, None)}
    assert matches("", "all") == {} and matches("", "arp") == {"eth_type": (0x0806, 0xFFFF, None)}


def test_addresses_of_ipv4_are_the_upper_bits():
    assert matches("dst_ip 10.1.0.0/16")["dst_ip"] == (0x0A010000 << 96, 0xFFFF0000 << 96, None)
    assert matches("src_ip 2001:db8::/32", "ipv6")["src_ip"] == (0x20010DB8 << 96, 0xFFFFFFFF << 96, None)


def test_tags_are_parts_of_one_field():
    found = one("vlan_id 5 vlan_prio 3 vlan_ethtype ip", protocol="802.1q").matches
    assert [tuple(each)[:3] for each in found if each.name == "vlan_tci"] == [("vlan_tci", 5, 0xFFF), ("vlan_tci", 0x6000, 0xE000)]
    assert ("family", 4, 0xFF) in [tuple(each)[:3] for each in found]


def test_ports_ranges_states_and_marks():
    found = matches("ip_proto tcp dst_port 80-90 ct_state +trk+est ct_mark 5/0xff ct_zone 7")
    assert found["dst_port"] == (80, 0xFFFF, 90) and found["ip_proto"] == (6, 0xFF, None)
    assert (found["ct_state"], found["ct_mark"], found["ct_zone"]) == ((0x0A, 0x0A, None), (5, 0xFF, None), (7, 0xFFFF, None))


def test_rules_come_in_the_order_in_which_they_are_tried_with_their_own_numbers():
    found = translated("""
        dev eth0 ingress protocol ip prio 2 flower ip_proto tcp action pass
        dev eth0 ingress protocol ip prio 1 flower dst_ip 10.0.0.1 action drop
        dev eth0 ingress protocol ip prio 1 chain 4 flower action pass
        """)
    assert [(rule.number, rule.chain) for rule in found.rules] == [(1, 0), (0, 0), (2, 4)]


@pytest.mark.parametrize(("text", "action"), [
    ("action ct zone 3 nat pipe action pass", nic.Ct(3, nat=True)),
    ("action ct zone 3 commit mark 1 pipe action pass", nic.Ct(3, commit=True, sets=True)),
    ("action ct zone 3 commit force nat src addr 192.0.2.1 pipe action pass", nic.Ct(3, nat=True, commit=True, force=True)),
    ("action ct clear pipe action pass", nic.Ct(clear=True)),
    ("action mirred egress redirect dev eth2", nic.Send(3)),
    ("action mirred egress mirror dev eth2 pipe action drop", nic.Send(3, copy=True)),
    ("action vlan push id 5 priority 3 pipe action pass", nic.Tag("push", 0x6005, 0)),
    ("action vlan modify id 5 pipe action pass", nic.Tag("modify", 5, 0xF000)),
    ("action csum ip4h and tcp pipe action pass", nic.Sum(frozenset(("ip4h", "tcp")))),
    ("action skbedit mark 5/0xf pipe action pass", nic.Mark((5, 0xF))),
    ("action goto chain 7", nic.Plain(nic.Then("goto", 7))),
    ("action pedit ex munge ip ttl add 0xff pipe action pass", nic.Edit((nic.Munge("ip", "ttl", 8, b"\xff", b"\xff", True),))),
    ("action pedit ex munge tcp dport set 8080 pipe action pass", nic.Edit((nic.Munge("tcp", "dport", 2, b"\x1f\x90", b"\xff\xff"),))),
])  # fmt: skip
def test_each_action(text, action):
    found = one("ip_proto tcp", text).actions[0]
    if isinstance(action, nic.Tag) and action.kind == "push":
        found = nic.Tag(found.kind, found.tci, 0, found.protocol, found.then)
    assert found == action


def test_a_policer():
    (found,) = one("", "action police rate 8mbit burst 10k conform-exceed drop/pipe").actions
    assert isinstance(found, nic.Police)
    assert (found.rate, found.burst, found.exceed, found.then, found.mtu) == (8_000_000, 10240, nic.DROP, nic.PIPE, 2040)


def test_what_is_sent_to_where_there_are_rules_stays_in_software():
    found = translated("""
        dev eth0 ingress protocol ip prio 1 flower ip_proto tcp action mirred egress redirect dev eth1
        dev eth0 ingress protocol ip prio 2 flower action mirred egress redirect dev eth2
        dev eth1 egress protocol ip prio 1 flower action pass
        """)
    assert [rule.number for rule in found.rules] == [0, 1], "rules at an egress hook are software's"
    assert Nic(load("perfect"), found).kept() == {0: Kept.RULES_BEHIND}


def test_a_shared_block_is_one_group_of_all_its_ifaces():
    setup = "tc qdisc add dev eth0 ingress_block 7 clsact\ntc qdisc add dev eth1 ingress_block 7 clsact\ntc qdisc add dev eth2 clsact\n"
    found = translated("block 7 protocol ip prio 1 flower action drop", setup)
    assert set(found.groups) == {1, 2} and len(set(found.groups.values())) == 1 == len(found.rules)


def test_a_policy_in_tc_is_in_hardware_where_established_connections_are_concerned():
    found = translated("""
        dev eth0 ingress protocol ip prio 1 flower ct_state -trk action ct zone 3 pipe action goto chain 1
        dev eth0 ingress protocol ip prio 1 chain 1 flower ct_state +trk+inv action drop
        dev eth0 ingress protocol ip prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev eth1
        dev eth0 ingress protocol ip prio 3 chain 1 flower ct_state +trk+new dst_ip 10.0.0.0/8 action ct zone 3 commit mark 1 pipe action pass
        """)
    assert Nic(load("connectx-7-hw"), found).kept() == {1: Kept.REL_INV, 3: Kept.CT_SETS}

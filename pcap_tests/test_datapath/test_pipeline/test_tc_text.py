"""tc lines as rules: each key and action, what is written in several ways, and what is wrong with a line."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from datapath.pipeline import tc_text
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import (
    CT_STATES,
    DROP,
    ETH_ALL,
    ETH_ARP,
    ETH_IP,
    ETH_IPV6,
    ETH_QINQ,
    ETH_VLAN,
    PASS,
    PIPE,
    RECLASSIFY,
    Csum,
    Ct,
    CtNat,
    Gact,
    Hook,
    Match,
    Mirred,
    Munge,
    Pedit,
    Place,
    Police,
    Qdisc,
    Rule,
    Skbedit,
    Template,
    Vlan,
    goto,
)

FULL = (1 << 128) - 1


def parsed(text: str):
    found = Findings()
    ruleset = tc_text.parse(text, "rules.tc", found)
    assert [str(error) for error in found.errors] == []
    return ruleset


def rule(text: str) -> Rule:
    return parsed(f"tc filter add dev eth0 ingress {text}").rules[0]


def match(text: str, protocol: str = "ip") -> Match:
    """The one that the last key of the text is about."""
    key = text.split()[-2]
    return next(each for each in rule(f"protocol {protocol} flower {text}").matches if each.name == key)


def action(text: str):
    (one,) = rule(f"protocol ip flower action {text}").actions
    return one


def errors(text: str) -> list[str]:
    found = Findings()
    tc_text.parse(text, "rules.tc", found)
    return [str(error) for error in found.errors]


# --- lines ----------------------------------------------------------------------------------------------------------------------------------


def test_the_line_of_the_design_notes():
    text = "tc filter add dev eth0 ingress protocol ip prio 2 chain 0 flower ct_state -trk ip_proto tcp action ct zone 5 pipe action goto chain 1"
    assert parsed(text).rules == (
        Rule(
            Hook("eth0", "ingress"),
            ETH_IP,
            (Match("ip_proto", 6, 0xFF), Match("ct_state", 0, CT_STATES["trk"])),
            (Ct(zone=5), Gact(goto(1))),
            prio=2,
        ),
    )


def test_a_script_gives_qdiscs_templates_and_rules_with_their_places():
    ruleset = parsed(
        "#!/bin/sh\n"
        "tc qdisc add dev eth0 ingress_block 22 clsact\n"
        "tc qdisc add dev eth1 handle ffff: ingress\n"
        "tc chain add block 22 protocol ip chain 5 flower dst_ip 0.0.0.0/24\n"
        "  tc filter add block 22 \\\n    protocol ip chain 5 flower dst_ip 192.0.2.0/24 action drop\n"
    )
    assert ruleset.qdiscs == (Qdisc("eth0", "clsact", 22), Qdisc("eth1", "ingress"))
    assert ruleset.templates == (Template(Hook("", "", 22), ETH_IP, 5, (Match("dst_ip", 0, 0xFFFFFF00),)),)
    assert ruleset.rules[0].hook == Hook("", "", 22)
    assert [each.place for each in (*ruleset.qdiscs, *ruleset.templates, *ruleset.rules)] == [
        Place("rules.tc", line, column) for line, column in ((2, 1), (3, 1), (4, 1), (5, 3))
    ]
    assert ruleset.rules[0].parts["dst_ip"] == Place("rules.tc", 6, 32)
    assert ruleset.rules[0].parts["action 0"] == Place("rules.tc", 6, 59)


@pytest.mark.parametrize(
    ("text", "hook"),
    [
        ("dev eth0 ingress", Hook("eth0", "ingress")),
        ("dev eth0 egress", Hook("eth0", "egress")),
        ("egress dev eth0", Hook("eth0", "egress")),
        ("dev eth0 parent ffff:", Hook("eth0", "ingress")),
        ("dev eth0 parent ffff:fff2", Hook("eth0", "ingress")),
        ("dev eth0 parent ffff:fff3", Hook("eth0", "egress")),
        ("block 22", Hook("", "", 22)),
    ],
)
def test_hooks(text, hook):
    assert parsed(f"tc filter add {text} protocol ip flower").rules[0].hook == hook


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flower", {"protocol": ETH_ALL, "prio": 0, "chain": 0, "handle": 0}),
        ("protocol ipv6 prio 7 flower", {"protocol": ETH_IPV6, "prio": 7}),
        ("proto IP pref 0x10 handle 0x20 chain 0x30 flower", {"protocol": ETH_IP, "prio": 16, "handle": 32, "chain": 48}),
        ("protocol 802.1ad flower", {"protocol": ETH_QINQ}),
        ("protocol 0x88cc flower skip_sw verbose", {"protocol": 0x88CC, "skip_sw": True, "skip_hw": False}),
        ("protocol all flower skip_hw", {"protocol": ETH_ALL, "skip_hw": True}),
    ],
)
def test_what_comes_before_and_behind_flower(text, expected):
    assert {name: getattr(rule(text), name) for name in expected} == expected


def test_tc_may_be_left_out_or_have_a_path_or_be_cut_short():
    assert len(parsed("filter add dev a ingress flower\n/sbin/tc filt a dev a ingress flower\n").rules) == 2


def test_replace_takes_the_place_of_what_has_its_number():
    line = "tc filter replace dev eth0 ingress protocol ip prio 1 handle {} flower action {}\n"
    ruleset = parsed(line.format(1, "pass") + line.format(2, "pass") + line.format(1, "drop"))
    assert [(each.handle, each.actions[0].control) for each in ruleset.rules] == [(1, DROP), (2, PASS)]
    assert parsed("tc qdisc add dev a ingress\ntc qdisc replace dev a clsact").qdiscs == (Qdisc("a", "clsact"),)


def test_a_chain_without_a_template_says_nothing():
    assert parsed("tc chain add dev eth0 ingress chain 5").templates == ()


# --- keys -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("indev eth1", Match("indev", 0, 0, None, "eth1")),
        ("dst_mac 02:00:00:00:00:01", Match("dst_mac", 0x020000000001, 0xFFFFFFFFFFFF)),
        ("src_mac 2:0:0:0:0:1/24", Match("src_mac", 0x020000000000, 0xFFFFFF000000)),
        ("src_mac 02:00:00:00:00:01/ff:00:00:00:00:ff", Match("src_mac", 0x020000000001, 0xFF00000000FF)),
        ("ip_proto tcp", Match("ip_proto", 6, 0xFF)),
        ("ip_proto 11", Match("ip_proto", 17, 0xFF)),
        ("ip_proto gre", Match("ip_proto", 47, 0xFF)),
        ("ip_tos 16", Match("ip_tos", 16, 0xFF)),
        ("ip_tos 0xb8/0xfc", Match("ip_tos", 0xB8, 0xFC)),
        ("ip_ttl 64/f0", Match("ip_ttl", 64, 0xF0)),
        ("src_ip 192.0.2.1", Match("src_ip", 0xC0000201, 0xFFFFFFFF)),
        ("src_ip 192.0.2.1/24", Match("src_ip", 0xC0000200, 0xFFFFFF00)),
        ("dst_ip 192.0.2.0/255.255.255.0", Match("dst_ip", 0xC0000200, 0xFFFFFF00)),
        ("dst_ip 0.0.0.0/0", Match("dst_ip", 0, 0)),
        ("ip_proto udp dst_port 53", Match("dst_port", 53, 0xFFFF)),
        ("ip_proto udp dst_port 80/0xfff0", Match("dst_port", 80, 0xFFF0)),
        ("ip_proto udp src_port 1024-65535", Match("src_port", 1024, 0xFFFF, 65535)),
        ("ip_proto tcp tcp_flags 12/13", Match("tcp_flags", 0x12, 0x13)),
        ("ip_proto icmp type 8", Match("type", 8, 0xFF)),
        ("ip_proto icmp code 1/3", Match("code", 1, 3)),
        ("ip_flags frag", Match("ip_flags", 1, 1)),
        ("ip_flags frag/nofirstfrag", Match("ip_flags", 1, 3)),
        ("ip_flags nofrag", Match("ip_flags", 0, 1)),
        ("ct_state +trk+est-rpl", Match("ct_state", 0x0A, 0x2A)),
        ("ct_zone 5", Match("ct_zone", 5, 0xFFFF)),
        ("ct_mark 0x12/0xff", Match("ct_mark", 0x12, 0xFF)),
        ("ct_label 0102", Match("ct_label", 0x0201, FULL)),
        ("ct_label 01/03", Match("ct_label", 1, 3)),
    ],
)
def test_keys_of_ipv4(text, expected):
    assert match(text) == expected


@pytest.mark.parametrize(
    ("protocol", "text", "expected"),
    [
        ("ipv6", "src_ip 2001:db8::1/32", Match("src_ip", 0x20010DB8 << 96, 0xFFFFFFFF << 96)),
        ("ipv6", "dst_ip ::1", Match("dst_ip", 1, FULL)),
        ("ipv6", "ip_proto icmpv6 type 135", Match("type", 135, 0xFF)),
        ("arp", "arp_sip 192.0.2.0/24", Match("arp_sip", 0xC0000200, 0xFFFFFF00)),
        ("arp", "arp_op reply", Match("arp_op", 2, 0xFF)),
        ("rarp", "arp_tha 02:00:00:00:00:01", Match("arp_tha", 0x020000000001, 0xFFFFFFFFFFFF)),
        ("802.1Q", "vlan_id 5", Match("vlan_id", 5, 0xFFF)),
        ("802.1Q", "vlan_prio 7", Match("vlan_prio", 7, 7)),
        ("802.1Q", "vlan_ethtype arp", Match("vlan_ethtype", ETH_ARP, 0xFFFF)),
        ("802.1ad", "vlan_ethtype 802.1Q cvlan_id 9", Match("cvlan_id", 9, 0xFFF)),
        ("802.1Q", "vlan_ethtype ipv6 dst_ip ::1", Match("dst_ip", 1, FULL)),
        ("802.1ad", "vlan_ethtype 0x8100 cvlan_ethtype ip dst_ip 0.0.0.1", Match("dst_ip", 1, 0xFFFFFFFF)),
    ],
)
def test_keys_of_other_protocols(protocol, text, expected):
    assert match(text, protocol) == expected


def test_keys_may_be_in_any_order_and_come_in_that_of_the_fields():
    one = rule("protocol 802.1Q flower ct_state +trk dst_port 80 ip_proto tcp dst_ip 2001:db8::1 vlan_ethtype ipv6 vlan_id 3")
    assert [each.name for each in one.matches] == ["vlan_id", "vlan_ethtype", "ip_proto", "dst_ip", "dst_port", "ct_state"]
    assert one.protocol == ETH_VLAN


# --- actions --------------------------------------------------------------------------------------------------------------------------------


def ends(low: str, high: str | None = None):
    return ip_address(low), ip_address(high or low)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pass", Gact(PASS)),
        ("ok", Gact(PASS)),
        ("shot", Gact(DROP)),
        ("gact continue", Gact(rule("flower action continue").actions[0].control)),
        ("goto chain 7", Gact(goto(7))),
        ("ct", Ct()),
        ("ct clear", Ct(clear=True)),
        ("ct zone 0x10 commit force drop", Ct(zone=16, commit=True, force=True, control=DROP)),
        ("ct commit mark 1/3 label 0100/ff pipe", Ct(commit=True, mark=(1, 3), label=(1, 0xFF))),
        ("ct nat", Ct(nat=CtNat())),
        ("ct nat zone 3 goto chain 2", Ct(zone=3, nat=CtNat(), control=goto(2))),
        ("ct commit nat src addr 192.0.2.1", Ct(commit=True, nat=CtNat("src", *ends("192.0.2.1")))),
        ("ct commit nat dst addr ::1-::9 port 80 pipe", Ct(commit=True, nat=CtNat("dst", *ends("::1", "::9"), (80, 80)))),
        ("ct nat src addr 192.0.2.1-192.0.2.9 port 1-2 commit", Ct(commit=True, nat=CtNat("src", *ends("192.0.2.1", "192.0.2.9"), (1, 2)))),
        ("ct commit helper ipv4-tcp-ftp", Ct(commit=True, helper=("ftp", 4, 6))),
        ("mirred egress redirect dev eth1", Mirred("redirect", "eth1")),
        ("mirred ingress mirror dev eth1 drop", Mirred("mirror", "eth1", "ingress", DROP)),
        ("pedit ex munge ip ttl set 3", Pedit((Munge("ip", "ttl", "set", 3, 0xFF),), PASS)),
        ("pedit munge ip dsfield set 0xb8 retain 0xfc pipe", Pedit((Munge("ip", "tos", "set", 0xB8, 0xFC),))),
        ("pedit ex munge ip ttl decrement pipe", Pedit((Munge("ip", "ttl", "add", 0xFF, 0xFF),))),
        ("pedit ex munge ip6 hoplimit add 2 pipe", Pedit((Munge("ip6", "hoplimit", "add", 2, 0xFF),))),
        ("pedit ex munge ip df set 0xff munge tcp dport clear pipe",
         Pedit((Munge("ip", "df", "set", 0x40, 0x40), Munge("tcp", "dport", "set", 0, 0xFFFF)))),
        ("pedit ex munge ip src set 192.0.2.1 munge eth dst set 2:0:0:0:0:1 pipe",
         Pedit((Munge("ip", "src", "set", 0xC0000201, 0xFFFFFFFF), Munge("eth", "dst", "set", 0x020000000001, 0xFFFFFFFFFFFF)))),
        ("csum ip and tcp or udp", Csum(("ip4h", "tcp", "udp"), PASS)),
        ("csum udp ip4h pipe", Csum(("ip4h", "udp"))),
        ("skbedit mark 5/0xf priority 1:a queue_mapping 3 ptype host", Skbedit((5, 15), 0x1000A, 3, "host")),
        ("skbedit priority 10", Skbedit(priority=16)),
        ("vlan pop drop", Vlan("pop", control=DROP)),
        ("vlan push id 5 protocol 802.1ad priority 3", Vlan("push", 5, ETH_QINQ, 3)),
        ("vlan modify id 0x7", Vlan("modify", 7)),
        ("police rate 1mbit burst 10k", Police(1_000_000, 10240)),
        ("police rate 1.5kibit burst 1b conform-exceed drop", Police(1536, 1, exceed=DROP)),
        ("police rate 1kbps burst 1 mtu 2k conform-exceed drop/pipe", Police(8000, 1, None, None, 2048, DROP, PIPE)),
        ("police rate 9 burst 1m conform-exceed goto chain 1 / goto chain 2", Police(8, 1 << 20, exceed=goto(1), control=goto(2))),
        ("police pkts_rate 5 pkts_burst 6 drop", Police(packet_rate=5, packet_burst=6, exceed=DROP)),
        ("police rate 8bit maxburst 1 minburst 2", Police(8, 1, mtu=2, exceed=RECLASSIFY)),
    ],
)  # fmt: skip
def test_actions(text, expected):
    assert action(text) == expected


def test_actions_follow_each_other_with_and_without_their_keyword():
    assert rule("flower action ct zone 1 action ct zone 2 ct clear pipe action drop").actions == (Ct(zone=1), Ct(zone=2), Ct(clear=True), Gact(DROP))


def test_what_stands_behind_a_redirect_is_an_action_of_its_own():
    assert rule("flower action mirred egress redirect dev eth1 drop").actions == (Mirred("redirect", "eth1"), Gact(DROP))


# --- what is wrong ---------------------------------------------------------------------------------------------------------------------------

LINE = "tc filter add dev eth0 ingress protocol ip flower "


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("ip link set eth0 up", "1:1: 'ip': no tc line: a rules file has nothing else of a script; expected tc qdisc, tc filter or tc chain"),
        ("set -e", "1:1: 'set': no tc line: a rules file has nothing else of a script; expected tc qdisc, tc filter or tc chain"),
        ("tc class add", "1:4: 'class': expected tc qdisc, tc filter or tc chain add or replace"),
        ("tc", "1:1: 'tc': expected qdisc, filter, chain behind it"),
        ("tc filter del dev eth0 ingress", "1:4: 'filter del': a rules file says what is there: expected add or replace"),
        ("tc filter add dev eth0 flower", "1:15: 'dev eth0': expected ingress or egress behind it"),
        ("tc filter add protocol ip flower", "1:1: expected dev DEVICE or block N"),
        ("tc filter add block 3 ingress flower", "1:23: 'ingress': a shared block has neither device nor direction: expected block N alone"),
        ("tc filter add dev eth0 parent 1: flower",
         "1:24: 'parent 1:': classful queueing is not done here: expected ffff: for ingress, ffff:fff2 or ffff:fff3 for those of clsact"),
        ("tc filter add dev eth0 ingress parent ffff: flower",
         "1:32: 'parent': expected direction once (ingress, egress and parent say the same)"),
        ("tc filter add dev eth0 ingress prio 1 prio 2 flower", "1:39: 'prio': expected prio once"),
        ("tc filter add dev eth0 ingress prio 65536 flower", "1:32: 'prio 65536': expected a priority from 0 to 65535"),
        ("tc filter add dev eth0 ingress u32 match",
         "1:32: 'u32': expected flower behind dev, ingress, egress, block, protocol, prio, handle and chain; "
         "of tc's classifiers only flower is known here"),
        ("tc filter add dev eth0 ingress protocol ip", "1:43: the line ends: expected flower"),
        ("tc filter add dev a/b ingress flower", "1:15: 'dev a/b': expected a device's name, of 1 to 15 printable characters other than / and :"),
        ("tc qdisc add dev eth0 root htb",
         "1:23: 'root': queueing is not done here: expected dev, handle ffff:, ingress_block, egress_block, and then ingress or clsact"),
        ("tc qdisc add dev eth0 clsact ingress_block 3", "1:30: 'ingress_block': expected nothing behind clsact, which tc wants before it"),
        ("tc qdisc add dev a ingress\ntc qdisc add dev a clsact",
         "2:14: 'dev a': has a qdisc already: expected one ingress or clsact for each device"),
        ("tc chain add dev a ingress chain 1 flower action drop", "1:36: 'flower': a template has keys only: expected neither flags nor actions"),
        (LINE + "ip_prot tcp src_ip", "1:63: 'src_ip': expected ADDRESS[/PREFIX] behind it"),
        (LINE + "srcip 192.0.2.1", "1:51: 'srcip': expected a key of flower, skip_sw, skip_hw or action; src_ip or src_port?"),
        (LINE + "ip_proto tcp ip_proto udp", "1:64: 'ip_proto': expected ip_proto once"),
        (LINE + "ip_proto nothing", "1:51: 'ip_proto nothing': expected tcp, udp, sctp, icmp, icmpv6, or a number to ff in hexadecimal"),
        (LINE + "src_ip 2001:db8::1", "1:51: 'src_ip 2001:db8::1': expected an IPv4 address, as in 192.0.2.1"),
        (LINE + "src_ip 192.0.2.0/33", "1:51: 'src_ip 192.0.2.0/33': expected a prefix length from 0 to 32"),
        (LINE + "enc_key_id 5", "1:51: 'enc_key_id': tunnel metadata is not supported: expected keys of the packet itself"),
        (LINE + "classid 1:1", "1:51: 'classid': classes are for queueing, which is not done here: expected an action"),
        (LINE + "hw_tc 3", "1:51: 'hw_tc': hardware traffic classes are not supported: expected an action"),
        (LINE + "ct_state +trk+bad", "1:51: 'ct_state +trk+bad': expected + or - before each of trk, new, est, rel, rpl, inv"),
        (LINE + "ct_state +trk-trk", "1:51: 'ct_state +trk-trk': expected trk once"),
        (LINE + "ip_proto tcp dst_port 9-8", "1:64: 'dst_port 9-8': expected the lower port first"),
        (LINE + "action jump 2",
         "1:58: 'jump': jump skips actions, which no chain needs: expected goto chain N, or the actions one after the other"),
        (LINE + "action bogus", "1:58: 'bogus': no action known here: expected ct, mirred, pedit, csum, skbedit, vlan, police, gact, "
         "pass, drop, pipe, continue or goto chain N"),
        (LINE + "action goto 5", "1:58: 'goto 5': expected goto chain N"),
        (LINE + "action pass index 3",
         "1:63: 'index': actions that are shared by number are not supported: expected the action itself in each rule"),
        (LINE + "action pass skip_hw", "1:63: 'skip_hw': a flag of the action; expected it before `action`, for the rule"),
        (LINE + "action ct zone 65536", "1:61: 'zone 65536': expected a zone from 0 to 65535"),
        (LINE + "action ct zone 1 zone 2", "1:68: 'zone': expected zone once"),
        (LINE + "action ct clear commit", "1:58: 'ct clear': expected neither commit, force nor nat with it"),
        (LINE + "action ct commit nat src addr 192.0.2.9-192.0.2.1", "1:76: 'addr 192.0.2.9-192.0.2.1': expected the lower address first"),
        (LINE + "action ct commit nat src port 3", "1:68: 'nat src': expected addr A[-B] behind it"),
        (LINE + "action ct commit nat src addr 192.0.2.1 nat dst addr 192.0.2.2",
         "1:91: 'nat': one translation for each connection, and nat src is there: expected nothing more of it"),
        (LINE + "action ct commit helper ftp", "1:68: 'helper ftp': expected FAMILY-PROTOCOL-NAME, as in ipv4-tcp-ftp"),
        (LINE + "action mirred egress dev eth1", "1:65: 'egress dev': expected redirect or mirror behind it"),
        (LINE + "action pedit munge tcp dport set 3", "1:70: 'tcp dport': expected `pedit ex` before it"),
        (LINE + "action pedit ex munge offset 0 u32 set 3", "1:73: 'offset': raw offsets are not supported: expected a header and a field of it"),
        (LINE + "action pedit ex munge ip ttl set 256", "1:73: 'ip ttl set': expected a value from 0 to 255"),
        (LINE + "action pedit ex munge tcp dport add 3",
         "1:73: 'tcp dport add': what Linux adds to more than a byte depends on the machine: expected set VALUE"),
        (LINE + "action pedit ex munge eth dst set 02:00:00:00:00:01 retain 3",
         "1:73: 'eth dst set ... retain 3': expected no retain with a field of more than 32 bits"),
        (LINE + "action police rate 10mb burst 1", "1:65: 'rate 10mb': expected a rate, as in 10mbit; units are bit, bps, kbit, kbps"),
        (LINE + "action vlan push", "1:63: 'push': expected id ID behind it"),
    ],
)  # fmt: skip
def test_an_error_says_where_and_what_was_expected(text, error):
    (one,) = errors(text)
    assert one.startswith(f"rules.tc:{error}")


def test_all_errors_of_a_script_are_found():
    assert [error.split(":")[1] for error in errors("tc a\n" + LINE + "\ntc b\n" + LINE + "foo\n")] == ["1", "3", "4"]


def test_a_number_that_looks_decimal_is_warned_of():
    found = Findings()
    (one,) = tc_text.parse(LINE + "ip_proto 17", "rules.tc", found).rules
    assert one.matches[0].value == 0x17
    assert found.warnings == ["rules.tc:1:51: 'ip_proto 17': tc reads it in hexadecimal, as 23; 17 is 0x11"]


@pytest.mark.parametrize(
    ("rest", "meant"),
    [
        ("acion drop", "'acion': expected a key of flower, skip_sw, skip_hw or action; action?"),
        ("skip_ws action drop", "; skip_sw or skip_hw?"),
        ("action acept", "did you mean pass?"),
        ("action reject", "did you mean drop?"),
        ("action dorp", "did you mean drop?"),
        ("action mired egress redirect dev eth1", "did you mean mirred?"),
    ],
)
def test_a_word_that_is_none_gets_the_question_which_was_meant(rest, meant):
    found = Findings()
    tc_text.parse(f"tc filter add dev eth0 ingress protocol ip flower {rest}", "rules.tc", found)
    assert meant in str(found.errors[0])

"""Which rules make sense together, and the numbers the kernel gives. What is refused, and what is not, was tried on Linux 6.1."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from datapath.pipeline import tc_text
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import (
    DROP,
    ETH_IP,
    Control,
    Csum,
    Ct,
    CtNat,
    Gact,
    Hook,
    Match,
    Mirred,
    Munge,
    Pedit,
    Police,
    Rule,
    RuleError,
    Ruleset,
    Skbedit,
    Vlan,
    goto,
)
from datapath.pipeline.validate import resolved, validate

FILTER = "tc filter add dev eth0 ingress"


def judged(text: str) -> tuple[Ruleset, list[str], list[str]]:
    """The rules, errors and warnings of a script."""
    found = Findings()
    ruleset = validate(tc_text.parse(text, "rules.tc", found), found)
    return ruleset, [str(error) for error in found.in_order()], found.warnings


def numbers(text: str) -> list[tuple[int, int]]:
    ruleset, errors, _ = judged(text)
    assert errors == []
    return [(rule.prio, rule.handle) for rule in ruleset.rules]


# --- keys ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "error"),
    [
        ("+new", "new is of tracked packets: expected +trk with it"),
        ("+est-trk", "est is of tracked packets: expected +trk with it"),
        ("+trk+new+est", "new and est exclude each other"),
        ("+trk+new+rpl", "new and rpl exclude each other"),
        ("+trk+inv+est", "inv and est exclude each other"),
        ("+inv", "inv is of tracked packets: expected +trk with it"),
    ],
)
def test_states_that_contradict_each_other(states, error):
    assert judged(f"{FILTER} protocol ip flower ct_state {states}")[1][0].endswith(error)


def test_the_error_of_the_design_notes():
    text = "tc filter add dev eth0 ingress protocol ip chain 1 flower ct_state +trk+new+est action drop"
    assert judged(f"\n\n\n\n\n\n{text}")[1] == ["rules.tc:7:59: 'ct_state +trk+new+est': new and est exclude each other"]


@pytest.mark.parametrize("states", ["+trk", "-trk", "+trk+new", "+trk+est+rpl", "+trk+new+rel", "+trk+inv", "-new", "-est-inv-rpl", "+trk+inv-est"])
def test_states_that_go_together(states):
    assert judged(f"{FILTER} protocol ip flower ct_state {states}")[1] == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("protocol ip flower dst_port 80", "'dst_port 80': expected ip_proto tcp, udp or sctp beside it"),
        ("protocol all flower ip_proto tcp", "'ip_proto tcp': expected protocol ip or ipv6"),
        ("protocol arp flower ip_tos 3", "'ip_tos 0x3': expected protocol ip or ipv6"),
        ("protocol ip flower ip_proto icmpv6", "'ip_proto icmpv6': expected icmp with protocol ip, icmpv6 with protocol ipv6"),
        ("protocol ip flower ip_proto gre dst_port 80", "'dst_port 80': expected ip_proto tcp, udp or sctp beside it"),
        ("protocol ip flower ip_proto udp tcp_flags 2", "'tcp_flags 0x2': expected ip_proto tcp beside it"),
        ("protocol ip flower ip_proto tcp type 8", "'type 8': expected ip_proto icmp (icmpv6 with protocol ipv6) beside it"),
        ("protocol ip flower arp_op request", "'arp_op 1': expected protocol arp or rarp"),
        ("protocol ip flower vlan_id 5", "'vlan_id 5': expected protocol 802.1Q or 802.1ad"),
        ("protocol 802.1Q flower cvlan_id 5", "'cvlan_id 5': expected vlan_ethtype 802.1Q or 802.1ad beside it"),
        ("protocol 802.1Q flower ip_proto tcp", "'ip_proto tcp': expected protocol ip or ipv6 (or vlan_ethtype)"),
        ("protocol ip flower skip_sw skip_hw", "'skip_sw skip_hw': a rule that nobody carries out: expected one of them"),
        ("protocol ip flower action ct nat src addr 192.0.2.1 pipe", "'ct': expected commit with nat src"),
        ("protocol ip flower action vlan push id 4095", "'id 4095': expected a VLAN id from 0 to 4094"),
        ("protocol ip flower action ct commit helper ipv4-tcp-foo", "helper foo: expected one of ftp, tftp, sip, irc, pptp"),
        ("protocol ip flower action police rate 1mbit burst 10k conform-exceed drop / goto chain 5",
         "expected no goto chain for what conforms: Linux takes it for what exceeds only"),
        ("protocol ip flower action ct commit nat pipe", "'ct': expected src or dst with nat and commit"),
        ("protocol ipv6 flower action ct commit nat src addr 192.0.2.1 pipe",
         "'ct': expected an IPv6 address, as the rule's protocol"),
        ("protocol ip flower action police rate 1mbit drop", "'police': burst is missing: expected it with rate"),
        ("protocol ip flower action police rate 1mbit burst 9 pkts_rate 1 pkts_burst 1 drop", "expected a rate of bytes or of packets, not both"),
        ("protocol ip flower action police burst 9 drop", "'police': rate is missing: expected it with burst"),
    ],
)  # fmt: skip
def test_what_needs_something_else_beside_it(text, error):
    (one,) = judged(f"{FILTER} {text}")[1]
    assert one.endswith(error)


# --- hooks ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("qdisc", "hook", "error"),
    [
        ("dev eth0 clsact", "dev eth0 egress", None),
        ("dev eth0 ingress", "dev eth0 ingress", None),
        ("dev eth0 ingress_block 3 clsact", "block 3", None),
        ("dev eth0 ingress_block 3 clsact", "dev eth0 egress", None),
        ("dev eth0 ingress", "dev eth0 egress",
         "2:15: 'dev eth0 egress': eth0 has an ingress qdisc, which takes egress for ingress: expected clsact"),
        ("dev eth1 clsact", "dev eth0 ingress",
         "2:15: 'dev eth0 ingress': expected a line `tc qdisc add dev eth0 clsact` (or no qdisc lines at all)"),
        ("dev eth0 ingress_block 3 clsact", "dev eth0 ingress",
         "2:15: 'dev eth0 ingress': is bound to a shared block: expected block 3 instead of the device"),
        ("dev eth0 ingress_block 3 clsact", "block 4",
         "2:15: 'block 4': expected a qdisc line with ingress_block or egress_block of that number"),
        ("dev eth0 egress_block 3 ingress", "block 3", "1:1: 'egress_block 3': ingress has no egress: expected clsact"),
    ],
)  # fmt: skip
def test_rules_need_the_qdisc_of_their_hook_if_the_file_has_any(qdisc, hook, error):
    _, errors, _ = judged(f"tc qdisc add {qdisc}\ntc filter add {hook} protocol ip flower action drop")
    assert errors == ([] if error is None else [f"rules.tc:{error}"])


def test_a_file_without_qdiscs_is_rules_for_hooks_of_somebody_else():
    assert judged(f"{FILTER} flower action drop\ntc filter add dev eth1 egress flower action ct\ntc filter add block 3 flower")[1] == []


# --- priorities and handles --------------------------------------------------------------------------------------------------------------------


def test_the_kernel_gives_priorities_downwards_below_the_first_of_the_upper_half():
    """As Linux 6.1 did with the same lines."""
    lines = ["protocol ip flower ip_proto tcp", "protocol ip flower ip_proto udp", "protocol ipv6 flower ip_proto udp"]
    lines += ["protocol ip prio 40000 flower ip_proto sctp", "protocol ip flower ip_proto sctp", "protocol ip prio 5 flower ip_proto sctp"]
    lines += ["protocol ip prio 5 handle 7 flower ip_proto tcp", "protocol ip prio 5 flower ip_proto tcp dst_port 3"]
    given = [(49152, 1), (49151, 1), (49150, 1), (40000, 1), (39999, 1), (5, 1), (5, 7), (5, 2)]
    assert numbers("\n".join(f"{FILTER} {line}" for line in lines)) == given


def test_each_chain_of_each_hook_counts_for_itself():
    where = ["dev a ingress", "dev a ingress chain 1", "dev a egress", "dev b ingress", "block 1"]
    text = "\n".join(f"tc filter add {hook} protocol ip flower action goto chain 1" for hook in where)
    assert numbers(text) == [(49152, 1)] * 5


def test_no_priority_is_left_below_32768():
    _, errors, _ = judged(f"{FILTER} prio 32768 flower\n{FILTER} flower indev a")
    assert errors == ["rules.tc:2:1: no priority is left to be given below 49152: expected prio N"]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["protocol ip prio 1 flower", "protocol ipv6 prio 1 flower"],
         "2:47: 'prio 1': has protocol ipv6 here, and ip in line 1: expected a prio of its own for each protocol of a chain"),
        (["protocol ip prio 1 handle 1 flower", "protocol ip prio 1 handle 1 flower indev a"],
         "2:39: 'handle 0x1': prio 1 of this chain has it, in line 1: expected another"),
        (["protocol ip prio 1 flower", "protocol ip prio 1 flower"],
         "2:1: 'prio 1': has a rule with the same keys, in line 1: expected other keys, or another prio"),
    ],
)  # fmt: skip
def test_what_a_prio_can_have_once(lines, error):
    _, errors, _ = judged("\n".join(f"{FILTER} {line}" for line in lines))
    assert [each.split(":", 3)[3] for each in errors] == [f" {error.split(': ', 1)[1]}"]
    assert errors[0].startswith("rules.tc:2:")


def test_equal_keys_with_other_masks_or_ranges_are_other_rules():
    keys = ["tcp_flags 0x2/0x2", "tcp_flags 0x10/0x10", "dst_port 5-9", "dst_port 5-8", "dst_port 5"]
    assert len(numbers("\n".join(f"{FILTER} protocol ip prio 1 flower ip_proto tcp {key}" for key in keys))) == 5


# --- templates ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "rule", "fits"),
    [
        ("protocol ip flower dst_ip 0.0.0.0/24", "protocol ip flower dst_ip 10.0.0.0/16", True),
        ("protocol ip flower dst_ip 0.0.0.0/24", "protocol ip flower dst_ip 10.0.0.0/25", False),
        ("protocol ip flower dst_ip 0.0.0.0/24", "protocol ip flower src_ip 10.0.0.0/24", False),
        ("protocol ip flower dst_ip 0.0.0.0/24", "protocol ip flower", True),
        ("protocol ip flower dst_ip 0.0.0.0/24", "protocol ipv6 flower", True),
        ("protocol ip flower dst_ip 0.0.0.0/24", "protocol ipv6 flower dst_ip ::/8", False),
        ("protocol ip flower dst_ip 0.0.0.0/24", "protocol ip flower indev eth1", False),
        ("protocol ip flower indev eth0", "protocol ip flower indev eth1", True),
        ("flower ct_state +trk", "protocol ip flower ct_state -trk", True),
        ("flower ct_state +trk", "protocol ip flower ct_state +trk+est", False),
        ("protocol ip flower ip_proto tcp dst_port 1-2", "protocol ip flower ip_proto tcp dst_port 3-4", True),
        ("protocol ip flower ip_proto tcp dst_port 1-2", "protocol ip flower ip_proto tcp dst_port 3", False),
    ],
)
def test_a_rule_looks_at_no_more_than_its_chains_template(template, rule, fits):
    _, errors, _ = judged(f"tc chain add dev eth0 ingress {template.replace('flower', 'chain 1 flower')}\n{FILTER} chain 1 {rule}")
    assert bool(errors) != fits
    assert all("the template of chain 1" in error for error in errors)


def test_a_template_comes_before_the_rules():
    _, errors, _ = judged(f"{FILTER} chain 1 flower\ntc chain add dev eth0 ingress chain 1 flower ct_state +trk")
    assert errors == ["rules.tc:2:1: 'chain 1': has rules already, in line 1: expected the template before them"]


# --- warnings -----------------------------------------------------------------------------------------------------------------------------------


def test_jumps_to_nowhere_and_chains_from_nowhere_are_warned_of():
    _, errors, warnings = judged(f"{FILTER} protocol ip flower action goto chain 2\n{FILTER} protocol ip chain 3 flower action drop")
    assert errors == []
    assert warnings == [
        "rules.tc:1:58: 'goto chain 2': dev eth0 ingress has no rule there: packets pass",
        "rules.tc:2:44: 'chain 3': no rule of dev eth0 ingress goes there: it is never tried",
    ]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("protocol ip flower action ct mark 5 pipe", "without commit neither mark, label nor helper is set"),
        ("protocol ip flower action ct clear zone 5 pipe", "with clear nothing else counts"),
        ("protocol arp flower action ct zone 5 pipe", "packets that are not IP are dropped here"),
    ],
)
def test_what_does_not_do_what_it_looks_like_is_warned_of(text, warning):
    _, errors, warnings = judged(f"{FILTER} {text}")
    assert errors == []
    assert [each.endswith(warning) for each in warnings] == [True]


# --- rules that were made, not read -----------------------------------------------------------------------------------------------------------

PLAIN = Rule(Hook("eth0"), ETH_IP, actions=(Gact(DROP),), prio=1)
LOW, HIGH = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.9")


@pytest.mark.parametrize(
    "wrong",
    [
        replace(PLAIN, hook=Hook("a/b")),
        replace(PLAIN, hook=Hook("eth0", "sideways")),
        replace(PLAIN, hook=Hook("eth0", "ingress", 3)),
        replace(PLAIN, hook=Hook("", "", 0)),
        replace(PLAIN, prio=65536),
        replace(PLAIN, chain=1 << 28),
        replace(PLAIN, handle=1 << 32),
        replace(PLAIN, actions=(Gact(DROP),) * 33),
        replace(PLAIN, matches=(Match("bogus", 0, 0),)),
        replace(PLAIN, matches=(Match("ct_mark", 0, 1), Match("ct_zone", 0, 1))),
        replace(PLAIN, matches=(Match("ct_mark", 2, 1),)),
        replace(PLAIN, matches=(Match("ct_mark", 0, 1 << 32),)),
        replace(PLAIN, matches=(Match("src_ip", 1, (1 << 128) - 1),)),
        replace(PLAIN, matches=(Match("src_ip", 1, 0xFF),)),
        replace(PLAIN, matches=(Match("ip_proto", 6, 0x0F),)),
        replace(PLAIN, matches=(Match("ip_proto", 6, 0xFF), Match("dst_port", 5, 0xFFFF, 5))),
        replace(PLAIN, matches=(Match("ip_tos", 0, 0xFF, 5),)),
        replace(PLAIN, matches=(Match("ct_state", 0, 0),)),
        replace(PLAIN, matches=(Match("indev", 0, 0),)),
        replace(PLAIN, actions=(Gact(Control("bogus")),)),
        replace(PLAIN, actions=(Gact(Control("goto")),)),
        replace(PLAIN, actions=(Gact(Control("drop", 3)),)),
        replace(PLAIN, actions=(Gact(goto(1 << 28)),)),
        replace(PLAIN, actions=(Ct(zone=1 << 16),)),
        replace(PLAIN, actions=(Ct(mark=(2, 1)),)),
        replace(PLAIN, actions=(Ct(clear=True, commit=True),)),
        replace(PLAIN, actions=(Ct(commit=True, helper=("a b", 4, 6)),)),
        replace(PLAIN, actions=(Ct(commit=True, nat=CtNat("src")),)),
        replace(PLAIN, actions=(Ct(commit=True, nat=CtNat("src", HIGH, LOW)),)),
        replace(PLAIN, actions=(Ct(commit=True, nat=CtNat("src", LOW, HIGH, (2, 1))),)),
        replace(PLAIN, actions=(Ct(commit=True, nat=CtNat("dst", IPv6Address("::1"), IPv6Address("::1"))),)),
        replace(PLAIN, actions=(Ct(nat=CtNat("", LOW, HIGH)),)),
        replace(PLAIN, actions=(Mirred("copy", "eth1"),)),
        replace(PLAIN, actions=(Mirred("mirror", "a b"),)),
        replace(PLAIN, actions=(Pedit(()),)),
        replace(PLAIN, actions=(Pedit((Munge("ip", "bogus", "set", 0, 0),)),)),
        replace(PLAIN, actions=(Pedit((Munge("ip", "ttl", "set", 256, 0x1FF),)),)),
        replace(PLAIN, actions=(Pedit((Munge("tcp", "dport", "add", 1, 0xFFFF),)),)),
        replace(PLAIN, actions=(Pedit((Munge("eth", "dst", "set", 1, 1),)),)),
        replace(PLAIN, actions=(Csum(()),)),
        replace(PLAIN, actions=(Csum(("tcp", "ip4h")),)),
        replace(PLAIN, actions=(Skbedit(),)),
        replace(PLAIN, actions=(Skbedit(queue=1 << 16),)),
        replace(PLAIN, actions=(Vlan("push"),)),
        replace(PLAIN, actions=(Vlan("pop", 3),)),
        replace(PLAIN, actions=(Vlan("push", 3, ETH_IP),)),
        replace(PLAIN, actions=(Police(),)),
        replace(PLAIN, actions=(Police(rate=9, burst=1),)),
        replace(PLAIN, actions=(Police(rate=8),)),
    ],
)
def test_a_value_that_no_line_could_say_is_refused(wrong):
    with pytest.raises(RuleError) as error:
        resolved(Ruleset(rules=(wrong,)))
    assert "\n" not in str(error.value)


def test_a_sound_value_gets_its_numbers():
    assert resolved(Ruleset(rules=(PLAIN, replace(PLAIN, prio=0)))).rules == (replace(PLAIN, handle=1), replace(PLAIN, prio=49152, handle=1))

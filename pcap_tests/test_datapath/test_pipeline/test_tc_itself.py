"""The machine's own tc takes every line we print, and reads it as we do.

Needs root, tc and a compiler; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1. No classifier is needed in the kernel:
pcap_tests/tc_itself.py tells how.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, assume, given, settings

from datapath.pipeline import tc_print, tc_text
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import ETH_ALL, ETH_IPV6, Ct, Rule, innermost
from pcap_tests.conftest import examples
from pcap_tests.tc_itself import Refused, attributes
from pcap_tests.test_datapath.test_pipeline.rulesets import rulesets
from pcap_tests.written_rules import FILTER, WRITTEN, with_chain

TCA_KIND, TCA_OPTIONS, TCA_CHAIN, TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK = 1, 2, 11, 13, 14
TCA_FLOWER_ACT, TCA_FLOWER_FLAGS = 3, 22
TCA_ACT_KIND, TCA_ACT_OPTIONS = 1, 2
SKIP_HW, SKIP_SW = 1, 2
BIG, LITTLE = "big", "little"  # byte orders: of the wire, and of the machine as far as the kernel's own numbers go

# Where the kernel wants each key: the attributes of value and mask, and their byte order (include/uapi/linux/pkt_cls.h).
FLOWER = {
    "dst_mac": (4, 5, BIG), "src_mac": (6, 7, BIG), "vlan_id": (23, 0, LITTLE), "vlan_prio": (24, 0, LITTLE), "vlan_ethtype": (25, 0, BIG),
    "cvlan_id": (77, 0, LITTLE), "cvlan_prio": (78, 0, LITTLE), "cvlan_ethtype": (79, 0, BIG), "ip_proto": (9, 0, BIG), "ip_tos": (73, 74, BIG),
    "ip_ttl": (75, 76, BIG), "tcp_flags": (71, 72, BIG), "arp_sip": (57, 58, BIG), "arp_tip": (59, 60, BIG), "arp_op": (61, 62, BIG),
    "arp_sha": (63, 64, BIG), "arp_tha": (65, 66, BIG), "ip_flags": (47, 48, BIG), "ct_state": (91, 92, LITTLE), "ct_zone": (93, 94, LITTLE),
    "ct_mark": (95, 96, LITTLE), "ct_label": (97, 98, LITTLE),
}  # fmt: skip
ADDRESSES = {("src_ip", 4): (10, 11), ("dst_ip", 4): (12, 13), ("src_ip", 6): (14, 15), ("dst_ip", 6): (16, 17)}
PORTS = {("src_port", 6): (18, 35), ("dst_port", 6): (19, 36), ("src_port", 17): (20, 37), ("dst_port", 17): (21, 38),
         ("src_port", 132): (41, 39), ("dst_port", 132): (42, 40)}  # fmt: skip
RANGES = {"src_port": (87, 88), "dst_port": (89, 90)}
ICMP = {("code", 1): (49, 50), ("type", 1): (51, 52), ("code", 58): (53, 54), ("type", 58): (55, 56)}


def read(line: str) -> Rule:
    found = Findings()
    ruleset = tc_text.parse(line, "line", found)
    assert not found.errors, found.errors
    return ruleset.rules[0]


def meaning(message: bytes) -> dict[object, object]:
    """A request in a form in which the order of attributes does not matter, nor how many bytes of a label are written."""
    found = dict(attributes(message[20:]))
    options = dict(attributes(found.pop(TCA_OPTIONS, b"")))
    acts = attributes(options.pop(TCA_FLOWER_ACT, b""))
    for label in (97, 98):
        if label in options:
            options[label] = options[label].ljust(16, b"\0")
    actions = [(kind, _options(kind, said)) for kind, said in map(_action, acts.values())]
    return {"tcmsg": message[:20], "keys": options, "actions": actions, **found}


def _action(data: bytes) -> tuple[bytes, bytes]:
    found = attributes(data)
    return found[TCA_ACT_KIND], found[TCA_ACT_OPTIONS]


def _options(kind: bytes, data: bytes) -> dict[int, bytes]:
    found = dict(attributes(data))
    if kind == b"ct\0":
        for label in (7, 8):
            if label in found:
                found[label] = found[label].ljust(16, b"\0")
        if found.get(4) == b"\0\0":
            del found[4]  # zone 0, which is what no zone is
    return found


# --- words cut short ----------------------------------------------------------------------------------------------------------------------

# What tc 6.1 takes and means the same by, as far as only one word begins so.
SHORT = [
    *(f"pedit ex munge ip ttl {word} 5" for word in ("s", "se", "a", "ad")),
    *(f"pedit ex munge ip ttl {word}" for word in ("d", "dec", "decremen", "c", "cle")),
    *(f"pedit ex munge ip ttl set 5 {word} 0xf" for word in ("r", "ret", "retai")),
    *(f"pedit ex munge ip {word} set 5" for word in ("dsf", "dsfield", "pre", "precedence")),
    *(f"pedit {ex} {munge} ip ttl set 5 pipe" for ex, munge in (("e", "munge"), ("ex", "m"), ("e", "mun"))),
    *(f"csum {word}" for word in ("ip4", "ic", "ig", "t", "udpl", "s", "sc", "tcp and s", "s pipe", "s sh", "tcp dro")),
    *(f"vlan {word}" for word in ("po", "pu id 5", "mo id 5", "m id 5 prot 802.1ad", "push id 5 prio 3")),
    *(f"mirred {word} lo" for word in ("egress mirror d", "eg mir de", "i r dev")),
    *(f"police rate 10mbit burst 10k conform-exceed {word}" for word in ("dr/pa", "sh/o", "con/reclass", "rec", "drop/pi")),
    "ct commit nat src addr 192.0.2.1 po 5-9", "ct commit nat src addr 192.0.2.1 p 5 pass", "ct cl", "ct com z 5 m 5", "ct fo com",
]  # fmt: skip


@pytest.mark.parametrize("action", SHORT)
def test_words_cut_short_mean_what_they_mean_to_tc(tc, action):
    line = f"tc filter add dev lo ingress protocol ip prio 1 chain 0 handle 0x1 flower action {action}"
    if "nat src" not in action:  # tc 6.1 wants a library for addresses in `nat` that not every build of it has
        assert meaning(tc.request(line)) == meaning(tc.request(tc_print.rule_line(read(line))))
    assert read(line).actions


@pytest.mark.parametrize(
    "action",
    [
        "ct c",
        "ct zone 1 c",
        "vlan push id 5 pr 3",
        "csum ud",
        "csum i",
        "pedit ex munge ip d set 5",
        "pedit ex munge ip tt set 5",
        "pedit ex munge ip ttl p 5",
    ],
)
def test_what_several_words_begin_with_is_an_error(action):
    found = Findings()
    tc_text.parse(f"tc filter add dev lo ingress protocol ip flower action {action}", "line", found)
    assert len(found.errors) == 1


# --- what is printed is taken, and understood ---------------------------------------------------------------------------------------------


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ruleset=rulesets())
def test_tc_takes_every_line_that_is_printed(tc, knows_helpers, ruleset):
    for line in tc_print.print_ruleset(ruleset).splitlines():
        if knows_helpers or " helper " not in line:
            tc.request(line)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ruleset=rulesets())
def test_tc_reads_from_a_printed_line_what_the_rule_says(tc, knows_helpers, ruleset):
    """Hook, numbers, flags, and each key's value and mask, where the kernel looks for them."""
    assume(ruleset.rules)
    for rule in ruleset.rules:
        if not knows_helpers and any(isinstance(action, Ct) and action.helper for action in rule.actions):
            continue
        message = tc.request(tc_print.rule_line(rule))
        said = attributes(message[20:])
        _, ifindex, handle, parent, info = struct.unpack("=B3xiIII", message[:20])
        assert (info >> 16, info & 0xFFFF, handle) == (rule.prio, int.from_bytes(struct.pack(">H", rule.protocol), LITTLE), rule.handle)
        assert (parent if ifindex == -1 else parent & 0xFFFF) == (rule.hook.block or {"ingress": 0xFFF2, "egress": 0xFFF3}.get(rule.hook.direction))
        assert int.from_bytes(said[TCA_CHAIN], LITTLE) == rule.chain
        keys = attributes(said[TCA_OPTIONS])
        assert int.from_bytes(keys[TCA_FLOWER_FLAGS], LITTLE) == SKIP_SW * rule.skip_sw | SKIP_HW * rule.skip_hw
        assert len(attributes(keys.get(TCA_FLOWER_ACT, b""))) == len(rule.actions)
        expected = expected_keys(rule)
        got = {kind: value for kind, value in keys.items() if kind not in (TCA_FLOWER_ACT, TCA_FLOWER_FLAGS)}
        assert got == expected


def expected_keys(rule: Rule) -> dict[int, bytes]:
    """The attributes of a rule's keys, with masks that are left out of the request left out."""
    inner = innermost(rule.protocol, rule.matches)
    proto = next((match.value for match in rule.matches if match.name == "ip_proto"), 0)
    found = {} if rule.protocol == ETH_ALL else {8: struct.pack(">H", rule.protocol)}
    sizes = {"ct_label": 16, "ct_mark": 4, "ip_flags": 4, "dst_mac": 6, "src_mac": 6, "arp_sha": 6, "arp_tha": 6, "arp_sip": 4, "arp_tip": 4}
    for match in rule.matches:
        size, order = 2, BIG
        if match.name == "indev":
            found[2] = match.device.encode() + b"\0"
            continue
        if match.high is not None:
            low, high = RANGES[match.name]
            found |= {low: match.value.to_bytes(2, BIG), high: match.high.to_bytes(2, BIG)}
            continue
        if match.name in ("src_ip", "dst_ip"):
            version = 6 if inner == ETH_IPV6 else 4
            (value, mask), size = ADDRESSES[match.name, version], {4: 4, 6: 16}[version]
        elif match.name in ("src_port", "dst_port"):
            value, mask = PORTS[match.name, proto]
            mask = mask if match.mask != 0xFFFF or not match.value else 0
        elif match.name in ("type", "code"):
            (value, mask), size = ICMP[match.name, proto], 1
        else:
            value, mask, order = FLOWER[match.name]
            narrow = ("ip_proto", "ip_tos", "ip_ttl", "arp_op", "vlan_prio", "cvlan_prio")
            size = sizes.get(match.name, 1 if match.name in narrow else 2)
        found[value] = match.value.to_bytes(size, order)
        found |= {mask: match.mask.to_bytes(size, order)} if mask else {}
    return found


# --- what people write is read as tc reads it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", WRITTEN)
def test_a_line_means_to_tc_what_we_print_of_it(tc, written):
    """Whatever we make of a line, tc makes the same of ours as of the original."""
    line = f"{FILTER} {written}"
    printed = tc_print.rule_line(read(line))
    assert meaning(tc.request(printed)) == meaning(tc.request(with_chain(line)))


@pytest.mark.parametrize(
    "line",
    [
        "tc qdisc add dev eth0 ingress",
        "tc qdisc add dev eth0 handle ffff: ingress",
        "tc qdisc add dev eth0 ingress handle ffff:",
        "tc qdisc add dev eth0 ingress_block 22 egress_block 23 clsact",
        "tc chain add dev eth0 ingress protocol ip chain 5 flower src_ip 0.0.0.0/24 ip_proto tcp",
        "tc chain add block 22 protocol ip chain 5 flower ct_state +trk",
        "tc filter add block 22 protocol ip chain 0 flower",
        "tc filter add dev eth0 parent ffff:fff3 protocol ip chain 0 flower",
    ],
)
def test_other_lines_mean_to_tc_what_we_print_of_them(tc, line):
    found = Findings()
    printed = tc_print.print_ruleset(tc_text.parse(line, "line", found))
    assert not found.errors
    assert meaning(tc.request(printed)) == meaning(tc.request(line))


@pytest.mark.parametrize(
    "written",
    [
        "protocol ip flower eth_type ip",
        "protocol ip flower ip_proto icmp type 8/0xf",
        "protocol arp flower arp_op 3",
        "protocol ip flower src_ip 10.0.0.0/255.0.255.0",
        "protocol ip flower ip_proto tcp dst_port 200-100",
        "protocol ip flower ip_proto tcp dst_port 0-5",
        "protocol ip flower ip_proto tcp dst_port 0x50",
        "protocol ip flower ip_proto tcp dst_port 0",
        "protocol ip flower ip_proto udp src_port 00",
        "protocol ip flower ct_state trk",
        "protocol ip flower ct_label 0x01",
        "protocol ip flower tcp_flags 0x1fff",
        "protocol ip flower ip_proto 0x100",
        "protocol ip prio 1 prio 2 flower",
        "protocol vlan flower",
        "protocol 802.1q flower vlan_ethtype 0800",
        "protocol ip flower action",
        "protocol ip flower action goto chain 0x10",
        "protocol ip flower action ct commit nat src port 5-9 pipe",
        "protocol ip flower action ct commit nat src addr 10.0.0.1 nat dst addr 10.0.0.2 pipe",
        "protocol ip flower action ct clear commit",
        "protocol ip flower action mirred redirect egress dev eth1",
        "protocol ip flower action csum",
        "protocol ip flower action skbedit pipe",
        "protocol ip flower action vlan modify priority 7",
        "protocol ip flower action police pkt_rate 1000 pkt_burst 100",
        "protocol ip flower action police rate 1mbit burst 10k conform-exceed drop/goto chain 5",
        "protocol ip flower action pedit ex munge ip ttl set 256",
        "protocol ip flower action pedit ex munge tcp seq set 5",
        "protocol ip flower action pedit munge ip6 src set ::1",
    ],
)
def test_what_tc_does_not_take_is_an_error_here_too(tc, written):
    with pytest.raises(Refused):
        tc.request(f"{FILTER} {written}")
    found = Findings()
    tc_text.parse(f"{FILTER} {written}", "line", found)
    assert found.errors

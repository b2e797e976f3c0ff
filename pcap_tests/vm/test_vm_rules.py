"""Every form of rule that TC can express, installed in a real kernel, is read back as what was meant: by our own list, and by tc."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from random import Random

import pytest

from datapath.commands.tc.ask import KernelTc
from datapath.commands.tc.decode import kept
from datapath.pipeline import flower_keys, tc_print, tc_text
from datapath.pipeline.findings import Findings
from datapath.pipeline.flower_keys import TC
from datapath.pipeline.rule_checks import check_rule
from datapath.pipeline.rules import ETH_IP, ETH_IPV6, PIPE, Ct, CtNat, Hook, Match, Mirred, Qdisc, Rule, Ruleset, goto, innermost
from datapath.pipeline.validate import validate
from pcap_tests.test_datapath.test_pipeline.random_pipelines import some_rule
from pcap_tests.test_datapath.test_tc.sayable import sayable
from pcap_tests.written_rules import FILTER, FURTHER, WRITTEN, with_chain

HOOK = Hook("eth0")
FILE = """
tc qdisc add dev eth0 ingress_block 22 clsact
tc qdisc add dev vf0 clsact
tc qdisc add dev eth1 ingress
tc chain add block 22 protocol ip chain 5 flower ip_proto tcp dst_port 0/0xffff ct_state -trk-new
tc chain add dev vf0 ingress protocol ipv6 chain 6 flower dst_ip ::/64
tc filter add block 22 protocol ip prio 1 chain 0 handle 7 flower ct_state -trk ip_proto tcp action ct zone 5 pipe action goto chain 5
tc filter add block 22 protocol ip prio 1 chain 5 flower ip_proto tcp dst_port 80 ct_state +trk+new action ct commit zone 5 pipe action pass
tc filter add dev vf0 ingress protocol ipv6 prio 9 chain 6 flower dst_ip 2001:db8::/64 action drop
tc filter add dev vf0 egress protocol ip prio 3 chain 0 flower skip_hw src_ip 10.0.0.0/8 action mirred egress redirect dev eth1
tc filter add dev eth1 ingress protocol all prio 4 chain 0 flower indev eth1 action continue
"""


def rules() -> list[Rule]:
    """One of each form, each with a priority of its own."""
    found = Findings()
    lines = [f"{with_chain(f'{FILTER} {written}')}\n" for written in (*WRITTEN, *FURTHER)]
    parsed = [rule for line in lines for rule in tc_text.parse(line, "written", found).rules]
    assert not found.errors and len(parsed) == len(lines)
    return [replace(rule, prio=number, handle=number) for number, rule in enumerate(parsed, 1)]


def listed_by_tc(device: str) -> dict[int, dict]:
    """By priority, what tc says of each rule. It may not print a policer's rate as JSON: then that is what it says."""
    done = subprocess.run(["tc", "-j", "filter", "show", "dev", device, "ingress"], capture_output=True, text=True, check=True)
    return {each["pref"]: each["options"] for each in json.loads(done.stdout) if "keys" in each.get("options", {})}


@pytest.fixture
def installed(switch):
    meant = rules()
    with KernelTc() as kernel:
        refused = kernel.make(Ruleset((Qdisc("eth0"),), (), tuple(meant)))
        assert [refusal.told() for refusal in refused] == []
        yield kernel, meant


def test_every_form_is_listed_as_it_was_meant(installed):
    kernel, meant = installed
    listed = kernel.listed([HOOK])
    assert listed.foreign == () and listed.qdiscs == (Qdisc("eth0"),)
    found = {each.rule.prio: each.rule for each in listed.rules}
    assert {prio: rule for prio, rule in found.items() if rule != kept(meant[prio - 1])} == {}
    assert len(found) == len(meant)


def test_tc_lists_the_keys_that_were_meant(installed):
    """tc's words for each key are read by the same tables that rules files are."""
    _, meant = installed
    said = listed_by_tc("eth0")
    assert len(said) == len(meant)
    wrong = {}
    for rule in map(kept, meant):
        inner = innermost(rule.protocol, rule.matches)
        keys = said[rule.prio]["keys"]
        told = [match_of(match.name, keys, inner) for match in rule.matches if match.name != "indev"]
        if told != [match for match in rule.matches if match.name != "indev"] or said[rule.prio].get("indev", "") != device_of(rule):
            wrong[tc_print.rule_line(rule)] = keys
    assert wrong == {}


def device_of(rule: Rule) -> str:
    return next((match.device for match in rule.matches if match.name == "indev"), "")


def match_of(name: str, keys: dict, inner: int) -> Match | None:
    """A key as tc says it in JSON: a number with its mask in hexadecimal beside it, a range, a text with both in it, or flags."""
    name_there = {"type": "icmp_type", "code": "icmp_code"}.get(name, name)
    value = keys.get(name_there)
    if isinstance(value, dict) and "start" in value:
        return Match(name, value["start"], 0xFFFF, value["end"])
    if isinstance(value, dict):
        words = "/".join(f"{'' if on else 'no'}{flag}" for flag, on in value.items())
        return flower_keys.read_key(name, words, inner, TC)
    if isinstance(value, int):
        full = (1 << (flower_keys.FIELD[name].bits)) - 1
        return Match(name, value, int(keys.get(f"{name_there}_mask", f"{full:x}"), 16))
    return flower_keys.read_key(name, str(value), inner, TC) if value is not None else None


def test_tc_says_of_our_rules_what_it_says_of_its_own(installed, tmp_path):
    """The same rules once more, by tc, at another device: whatever tc prints of both is equal, actions included."""
    _, meant = installed
    elsewhere = [replace(rule, hook=Hook("vf0")) for rule in meant]
    script = tmp_path / "script"
    script.write_text("".join(f"{tc_print.rule_line(rule).removeprefix('tc ')}\n" for rule in elsewhere))
    subprocess.run(["tc", "qdisc", "add", "dev", "vf0", "clsact"], check=True)
    done = subprocess.run(["tc", "-batch", str(script)], capture_output=True, text=True)
    assert done.stderr == ""
    ours, theirs = listed_by_tc("eth0"), listed_by_tc("vf0")
    assert {prio: (plain(ours[prio]), plain(theirs[prio])) for prio in ours if plain(ours[prio]) != plain(theirs[prio])} == {}


def plain(said: dict) -> dict:
    """Without the numbers that the kernel gives to actions."""
    return said | {"actions": [{name: value for name, value in each.items() if name != "index"} for each in said.get("actions", [])]}


def test_a_whole_file_with_blocks_templates_and_egress(switch):
    found = Findings()
    meant = validate(tc_text.parse(FILE, "file", found), found)
    assert not found.errors
    with KernelTc(b"ours") as kernel:
        assert [refusal.told() for refusal in kernel.make(meant)] == []
        hooks = {rule.hook for rule in meant.rules} | {Hook(qdisc.device, "egress") for qdisc in meant.qdiscs if qdisc.kind == "clsact"}
        listed = kernel.listed(sorted(hooks, key=str))
        assert listed.foreign == ()
        assert sorted(map(str, listed.qdiscs)) == sorted(str(replace(qdisc, place=listed.qdiscs[0].place)) for qdisc in meant.qdiscs)
        assert {each.rule for each in listed.rules} == {kept(rule) for rule in meant.rules}
        assert {counted.cookie for each in listed.rules for counted in each.counted} == {b"ours"}
        template, other = sorted(listed.templates, key=lambda each: each.chain)
        assert (template.hook, template.chain, template.protocol) == (Hook("", "", 22), 5, ETH_IP)
        assert {match.name: match.mask for match in template.matches} == {"ip_proto": 0xFF, "dst_port": 0xFFFF, "ct_state": 0x09}
        assert (other.hook, other.chain, other.matches[0].mask) == (Hook("vf0"), 6, (1 << 128) - (1 << 64))
        assert kernel.remove(meant.rules) == []
        assert kernel.listed(hooks).rules == ()


# --- at random ----------------------------------------------------------------------------------------------------------------------------

DEVICES = {"eth2": "vf0", "tap0": "vf1"}  # of random rules, and what stands for them here


def some_ct(random: Random, inner: int) -> Ct:
    zone, commit = random.randrange(1 << 16), random.randrange(2) == 0
    mark, label = random.getrandbits(32), random.getrandbits(128)
    if not commit:
        return Ct(zone, force=random.randrange(3) == 0, nat=random.choice((None, CtNat())), control=random.choice((PIPE, goto(7))))
    make, bits = (IPv6Address, 128) if inner == ETH_IPV6 else (IPv4Address, 32)
    low, high = sorted(random.getrandbits(bits) for _ in range(2))
    nat = CtNat(random.choice(("src", "dst")), make(low), make(high), random.choice((None, (5, 5), (1, 0xFFFF))))
    return Ct(zone, (mark & 0xFF00, 0xFF00), (label, (1 << 128) - 1), commit=True, nat=random.choice((None, nat)))


def some_sound_rule(random: Random, prio: int) -> Rule:
    """One that is right by itself, with devices that are here, and of a priority of its own."""
    while True:
        rule = some_rule(random, HOOK, actions=some_ct)
        acts = tuple(replace(act, device=DEVICES.get(act.device, act.device)) if isinstance(act, Mirred) else act for act in rule.actions)
        keys = tuple(replace(key, device=DEVICES.get(key.device, key.device)) for key in rule.matches)
        rule = replace(rule, prio=prio, handle=prio, skip_sw=False, matches=keys, actions=acts)
        found = Findings()
        check_rule(rule, found)
        if not found.errors and sayable(rule):
            return rule


def test_random_rules_are_listed_as_they_were_meant(switch):
    random = Random(int(os.environ.get("CTMIRROR_SEED", "8")))
    meant = [some_sound_rule(random, prio) for prio in range(1, 501)]
    with KernelTc() as kernel:
        refused = kernel.make(Ruleset((Qdisc("eth0"),), (), tuple(meant)))
        assert [refusal.told() for refusal in refused] == []
        listed = kernel.listed([HOOK])
    assert listed.foreign == ()
    found = {each.rule.prio: each.rule for each in listed.rules}
    wrong = {tc_print.rule_line(rule): found.get(rule.prio) for rule in meant if found.get(rule.prio) != kept(rule)}
    assert wrong == {}

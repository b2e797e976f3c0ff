"""Rules at functions of a NIC, as rules at the interfaces that stand for them."""

from __future__ import annotations

import pytest

from ctcore.errors import CtmirrorError
from datapath.pipeline.findings import Findings
from datapath.pipeline.renamed import renamed
from datapath.pipeline.rules_file import parse

VF = "pf0vf3@0000:08:00.0"
TEXT = f"""
tc qdisc add dev {VF} clsact
tc qdisc add dev p0@pci/0000:08:00.0 clsact ingress_block
tc chain add dev {VF} ingress protocol ip chain 5 flower ip_proto tcp
tc filter add dev {VF} ingress protocol ip prio 1 flower indev {VF} ip_proto tcp action mirred egress mirror dev eth5 pipe \
action mirred egress redirect dev p0@pci/0000:08:00.0
""".replace(" ingress_block\n", "\n")
IFACES = {VF: "eth0_3", "p0@pci/0000:08:00.0": "eth0"}


def rules(text: str):
    found = Findings()
    ruleset = parse(text, "rules.tc", found)
    found.check()
    return ruleset


def test_every_device_is_called_by_its_interface():
    text = TEXT
    for function, iface in IFACES.items():
        text = text.replace(function, iface)
    assert renamed(rules(TEXT), lambda device: IFACES.get(device, device)) == rules(text)


def test_the_same_in_yaml():
    yaml = f"""
rules:
  - {{device: "{VF}", protocol: ip, prio: 1, match: {{indev: "{VF}"}}, actions: [{{mirred: {{redirect: "{VF}"}}}}]}}
"""
    assert renamed(rules(yaml), lambda device: "x") == rules(yaml.replace(VF, "x"))


def test_rules_of_interfaces_stay_the_very_same():
    ruleset = rules(TEXT)
    assert renamed(ruleset, str) is ruleset


def test_blocks_have_no_device():
    text = "tc qdisc add dev eth0 ingress_block 4 clsact\ntc filter add block 4 protocol ip prio 1 flower action drop\n"
    assert renamed(rules(text), lambda device: "other") == rules(text.replace("eth0", "other"))


def test_a_function_that_is_not_there_is_told_with_its_line():
    def refused(device: str) -> str:
        raise CtmirrorError("no such function")

    with pytest.raises(CtmirrorError, match=r"^rules.tc:2:1: 'dev pf0vf3@0000:08:00.0': no such function$"):
        renamed(rules(TEXT), refused)


def test_two_names_of_one_interface_are_a_mistake():
    with pytest.raises(CtmirrorError, match=rf"rules.tc:3:1: 'dev p0@pci/0000:08:00.0': the same interface as {VF}: expected one name for it$"):
        renamed(rules(TEXT), lambda device: "eth0")

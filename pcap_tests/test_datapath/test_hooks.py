"""Where a capture's packets arrive."""

from __future__ import annotations

import pytest

from ctcore.errors import ConfigError
from datapath.hooks import Arrivals, arrivals, check_device, departures, read_hook
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import Hook
from datapath.pipeline.rules_file import parse

UPLINK = "tc filter add dev eth0 ingress protocol ip prio 1 flower action drop\n"
VF = "tc filter add dev eth0_0 ingress protocol ip prio 1 flower action drop\n"
EGRESS = "tc filter add dev eth1 egress protocol ip prio 1 flower action drop\n"
SHARED = "tc qdisc add dev eth5 ingress_block 7 clsact\ntc filter add block 7 protocol ip prio 1 flower action drop\n"


def hooks_of(ruleset, names, where, device, **how):
    finder = Arrivals(ruleset, where, device, **how)
    return [finder.hook(name, names) for name in names]


def rules(text: str):
    return parse(text, "some.tc", Findings())


def test_devices_with_rules_at_their_ingress_are_where_packets_arrive():
    assert arrivals(rules(UPLINK + EGRESS + VF + UPLINK + SHARED)) == ["eth0", "eth0_0", "eth5"]


def test_interfaces_arrive_at_the_devices_of_their_names():
    both = rules(UPLINK + VF)
    assert hooks_of(both, ["eth0_0", "eth0"], "a.pcapng", None) == [Hook("eth0_0"), Hook("eth0")]


def test_with_one_device_names_do_not_matter():
    assert hooks_of(rules(UPLINK + EGRESS), ["", "en0"], "a.pcap", None) == [Hook("eth0"), Hook("eth0")]


def test_an_interface_beside_the_one_that_is_known_is_not_taken_for_it():
    """What came to another interface of the host would be judged as if it had come to this one."""
    with pytest.raises(ConfigError) as raised:
        hooks_of(rules(VF + EGRESS), ["eth0_0", "eth0"], "a.pcapng", None)
    assert str(raised.value) == "a.pcapng: interface 'eth0' is no device of the rules: expected --device eth0_0 or eth1:egress"


@pytest.mark.parametrize(
    ("text", "name", "device", "fixed", "came", "went"),
    [
        (UPLINK, "eth0", None, False, Hook("eth0"), Hook("eth0", "egress")),
        (UPLINK, "", None, False, Hook("eth0"), Hook("eth0", "egress")),
        (UPLINK + VF, "", Hook("eth0_0"), False, Hook("eth0_0"), Hook("eth0_0", "egress")),
        (UPLINK + VF, "", Hook("eth0_0"), True, Hook("eth0_0"), Hook("eth0_0")),
        (UPLINK + EGRESS, "", Hook("eth1", "egress"), True, Hook("eth1", "egress"), Hook("eth1", "egress")),
        (UPLINK + VF, "eth0", Hook("eth0_0"), True, Hook("eth0"), Hook("eth0", "egress")),
        (UPLINK + EGRESS, "eth1", Hook("eth0"), False, Hook("eth0"), Hook("eth1", "egress")),
    ],
)
def test_what_went_out_comes_to_the_egress_of_its_device(text, name, device, fixed, came, went):
    finder = Arrivals(rules(text), "a.pcapng", device, fixed=fixed)
    assert (finder.hook(name, [name]), finder.hook(name, [name], out=True)) == (came, went)


def test_devices_with_rules_at_their_egress():
    assert departures(rules(UPLINK + EGRESS + EGRESS + SHARED.replace("ingress_block", "egress_block"))) == ["eth1", "eth5"]


def test_who_has_no_name_arrives_where_the_user_says():
    assert hooks_of(rules(UPLINK + VF), ["", "eth0"], "a.pcap", Hook("eth0_0")) == [Hook("eth0_0"), Hook("eth0")]


@pytest.mark.parametrize(
    ("text", "name", "error"),
    [
        (UPLINK + VF, "", "a.pcap: it does not say at which device its packets arrived: expected --device eth0 or eth0_0"),
        (UPLINK + VF, "en0", "a.pcap: interface 'en0' is no device of the rules: expected --device eth0 or eth0_0"),
        (EGRESS, "", "a.pcap: it does not say at which device its packets arrived: expected --device eth1:egress"),
        ("", "", "a.pcap: it does not say at which device its packets arrived: expected --device DEVICE"),
    ],
)
def test_nobody_says_where(text, name, error):
    with pytest.raises(ConfigError) as raised:
        hooks_of(rules(text), [name], "a.pcap", None)
    assert str(raised.value) == error


@pytest.mark.parametrize(
    ("text", "hook"), [("eth0", Hook("eth0")), ("eth0:egress", Hook("eth0", "egress")), ("eth0:ingress", Hook("eth0")), ("eth0:1", Hook("eth0:1"))]
)
def test_a_hook_is_read(text, hook):
    assert read_hook(text) == hook


def test_a_hook_needs_a_device():
    with pytest.raises(ConfigError, match="expected DEVICE"):
        read_hook(":egress")


@pytest.mark.parametrize("device", [Hook("eth0"), Hook("eth5"), Hook("eth1", "egress")])
def test_a_device_with_rules_may_be_named(device):
    check_device(rules(UPLINK + EGRESS + SHARED), device)


@pytest.mark.parametrize("device", [Hook("eth9"), Hook("eth1"), Hook("eth0", "egress")])
def test_a_device_without_rules_is_a_mistake(device):
    with pytest.raises(ConfigError, match=r"no rule is there: expected one of eth0, eth1:egress$"):
        check_device(rules(UPLINK + EGRESS), device)


def test_without_any_rules_all_devices_are_alike():
    check_device(rules(""), Hook("eth9"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("veth0:foo", "'foo' is no direction: expected veth0, veth0:ingress or veth0:egress"),
        ("shop/web", "a pod; its device in these rules is veth0: expected that"),
        ("shop/db", "no device, but perhaps a pod: expected its device; rules that `ctmirror policy compile` made say at their head whose"),
    ],
)
def test_a_name_that_is_no_device_but_something_else(monkeypatch, name, said):
    """Of a pod by the template that `policy compile` takes if none is given."""
    monkeypatch.setattr("datapath.hooks.default_device", lambda title: "veth0" if title == "shop/web" else "veth1")
    with pytest.raises(ConfigError) as error:
        check_device(rules("tc filter add dev veth0 ingress protocol ip flower action pass"), read_hook(name))
    assert said in str(error.value)

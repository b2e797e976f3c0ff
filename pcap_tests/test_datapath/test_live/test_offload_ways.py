"""Which way to the kernel's TC a node takes, by what its section, its rules and trials say; and what is in the way of each better one."""

from __future__ import annotations

import errno

import pytest

from ctcore.errors import ConfigError
from datapath.commands.offload_ways import KERNEL, NIC, Probe, Way, chosen
from datapath.live.config import parse
from offload.netlink.extack import Answer
from offload.trials import CT, EXACT, FLOWER, PIPELINE, TRIALS, Tried

HEAD = 'rules = "rules.tc"\n[[iface]]\nname = "left"\n{}[[iface]]\nname = "right"\n[offload]\nbackend = "tc"\n'
SIDES = '[[offload.side]]\ndevice = "left"\nnetworks = ["10.0.0.0/8"]\n[[offload.side]]\ndevice = "right"\n'
BOTH = ("left", "right")


def tried(*refused):
    return tuple(Tried(trial, Answer(errno.EOPNOTSUPP, "not here") if trial in refused else Answer(0)) for trial in TRIALS)


ALL = Probe("on", tried(), tried())
SOFTWARE = Probe("", tried(), ())
OFF = Probe("off", tried(), ())
NO_CT = Probe("on", tried(), tried(CT))


def decide(section: str, found: dict[str, Probe] | Probe, iface: str = "", begin=lambda way: ()):
    config = parse(HEAD.format(iface) + section, "node.toml")
    return chosen(config, begin, lambda device: found if isinstance(found, Probe) else found[device])


def test_the_best_that_both_devices_take():
    assert decide(SIDES, ALL) == (Way(PIPELINE, NIC, BOTH), [])
    way, why = decide(SIDES, {"left": ALL, "right": NO_CT})
    assert way == Way(EXACT, NIC, BOTH)
    assert why == ["not pipeline in a NIC: right: ct (action ct, and on in a chain): Operation not supported: not here"]
    way, why = decide(SIDES, {"left": OFF, "right": SOFTWARE})
    assert way == Way(PIPELINE, KERNEL, BOTH)
    assert why == [f"not {way} in a NIC: left: hw-tc-offload is off: ethtool -K left hw-tc-offload on (and 1 more)" for way in ("pipeline", "exact")]


def test_what_was_told_is_that_or_an_error():
    assert decide('way = "exact"\n' + SIDES, ALL)[0] == Way(EXACT, NIC, BOTH)
    assert decide('way = "pipeline"\nhardware = "no"\n', ALL)[0] == Way(PIPELINE, KERNEL, BOTH)
    with pytest.raises(ConfigError) as error:
        decide('way = "pipeline"\nhardware = "only"\n', SOFTWARE)
    nothing = "the interface has no hw-tc-offload"
    assert str(error.value) == f"offload: not pipeline in a NIC: left: {nothing}; right: {nothing}", "all that is in the way"


def test_an_eswitch_in_mode_legacy_is_told_of_a_nic_that_does_not_take_all():
    _, why = decide("", {"left": ALL, "right": NO_CT._replace(legacy="pci/0000:08:00.0")})
    hint = "its eswitch is in mode legacy: ctmirror offload eswitch pci/0000:08:00.0 --mode switchdev"
    assert why[0] == f"not pipeline in a NIC: right: ct (action ct, and on in a chain): Operation not supported: not here: {hint}"
    assert decide("", ALL._replace(legacy="pci/0000:08:00.0")) == (Way(PIPELINE, NIC, BOTH), []), "it takes all, so its mode is no matter"


def test_rules_that_the_kernel_does_not_take_are_in_the_way():
    asked = []

    def begin(way: Way) -> list[str]:
        asked.append(way[:2])
        return ["rules.tc:3:1: tc filter add ...: Invalid argument"] if way.way == PIPELINE else []

    way, why = decide(SIDES, ALL, begin=begin)
    assert way == Way(EXACT, NIC, BOTH) and asked == [(PIPELINE, NIC), (EXACT, NIC)]
    assert why == ["not pipeline in a NIC: rules.tc:3:1: tc filter add ...: Invalid argument"]


def test_without_a_way_nothing_is_offloaded():
    nothing = Probe("", tried(FLOWER), ())
    way, why = decide("", nothing)
    assert way is None and len(why) == 4
    assert why[2:] == [
        "not pipeline in the kernel: left: flower (a filter): Operation not supported: not here (and 1 more for the same reason)",
        "not exact in the kernel: no [[offload.side]] says which addresses are behind which device",
    ]


def test_a_kernel_without_flower_is_said_once_with_what_it_takes():
    lacking = Probe("", tuple(Tried(trial, Answer(errno.ENOENT, "TC classifier not found")) for trial in TRIALS), ())
    cause = "left: flower (a filter): No such file or directory: TC classifier not found"
    advice = "expected a kernel with CONFIG_NET_CLS_FLOWER (ctmirror doctor)"
    _, why = decide(SIDES, lacking)
    assert why[2] == f"not pipeline in the kernel: {cause}: {advice} (and 11 more for the same reason)"
    with pytest.raises(ConfigError) as error:
        decide('way = "exact"\nhardware = "no"\n' + SIDES, lacking)
    assert str(error.value) == f"offload: not exact in the kernel: {cause}: {advice} (and 9 more for the same reason)"


@pytest.mark.parametrize(
    ("iface", "said"),
    [
        ('inward = "right"\n', "left: what passes leaves by `inward` here, and would be the host's in TC: expected rules that redirect"),
        ("routed = true\n", "left: what passes leaves by a route here, and would be the host's in TC: expected rules that redirect"),
        ('driver = "packet"\n', "left: driver packet: TC would forward the same frames again: expected XDP"),
    ],
)
def test_what_passes_has_to_mean_the_same_in_TC(iface, said):
    way, why = decide('hardware = "only"\n', ALL, iface)
    assert way is None and why[0] == f"not pipeline in a NIC: {said}"


def test_each_device_is_tried_once():
    asked = []

    def prober(device: str) -> Probe:
        asked.append(device)
        return SOFTWARE

    chosen(parse(HEAD.format("") + SIDES, "node.toml"), lambda way: ["no"], prober)
    assert sorted(asked) == ["left", "right"]

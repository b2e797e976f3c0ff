"""The section [offload] of a configuration: what may stand there, with which other settings, and what is said where it may not."""

from __future__ import annotations

import pytest

from ctcore.errors import ConfigError
from datapath import doctor
from datapath.commands.offload_backend import checked, doubts
from datapath.live.config import load, parse
from datapath.live.config_offload import POLICIES as NAMES
from datapath.live.config_offload import OffloadSection
from offload.mirror_settings import POLICIES
from offload.trials import EXACT, PIPELINE
from pcap_tests.test_datapath.command import run

HEAD = """rules = "rules.tc"
[[iface]]
name = "left"
[[iface]]
name = "right"
[offload]
"""
SIDE = '[[offload.side]]\ndevice = "left"\n'


def test_everything_that_can_be_said():
    text = 'backend = "tc"\nway = "exact"\nhardware = "only"\npolicy = "by-rate"\nprio = 7\n[[offload.side]]\ndevice = "left"\n'
    section = parse(HEAD + text + 'networks = ["10.0.0.0/8", "fd00::/8"]\nzone = 5\nchain = 9\n' + SIDE.replace("left", "right"), "node.toml").offload
    assert (section.backend, section.way, section.hardware, section.prio, section.rules) == ("tc", "exact", "only", 7, "remove")
    first, second = section.side
    assert (first.device, first.networks, first.zone, first.chain) == ("left", ["10.0.0.0/8", "fd00::/8"], 5, 9)
    assert (second.device, second.networks, second.zone, second.chain) == ("right", [], 0, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('way = "exact"', ":7: offload.way: expected `backend` with it: sim or tc"),
        ('backend = "tc"\nprofile = "tiny"', ':8: offload.profile: expected `backend = "sim"` with it'),
        ('backend = "sim"\nway = "exact"', ':8: offload.way: expected `backend = "tc"` with it'),
        ('backend = "sim"\n' + SIDE, ':8: offload.side[0]: expected `backend = "tc"` with it'),
        ('backend = "ovs"', ":7: offload.backend: 'ovs': expected 'sim' or 'tc'"),
        ('backend = "tc"\nway = "both"', ":8: offload.way: 'both': expected 'auto', 'pipeline' or 'exact'"),
        ('backend = "tc"\nhardware = true', ":8: offload.hardware: True: expected 'auto', 'only' or 'no'"),
        ('backend = "tc"\nprio = 0', ":8: offload.prio: 0: expected"),
        ('backend = "tc"\nway = "exact"', ":8: offload.way: expected [[offload.side]] sections with it: which addresses are behind"),
        ('backend = "tc"\nway = "pipeline"\n' + SIDE, ':9: offload.side[0]: expected none with `way = "pipeline"`: there the rules say'),
        ('backend = "tc"\nway = "pipeline"\nprio = 1', ':9: offload.prio: expected none with `way = "pipeline"`: there the rules have'),
        ('backend = "tc"\nway = "exact"\nrules = "keep"\n' + SIDE, ':9: offload.rules: expected none with `way = "exact"`: no rules are'),
        ('backend = "tc"\n[[offload.side]]\ndevice = "eth7"', ":9: offload.side[0].device: eth7: expected an interface of this file"),
        ('backend = "tc"\n[[offload.side]]\ndevice = "left"\nnetworks = ["10.0.0.1/8"]',
         ":10: offload.side[0].networks[0]: expected a prefix without bits behind it"),
        ('backend = "tc"\n[[offload.side]]\ndevice = "left"\nnetworks = ["10.0.0.0/33"]',
         ":10: offload.side[0].networks[0]: expected a prefix length from 0 to 32, not '10.0.0.0/33'"),
        ('backend = "tc"\n[[offload.side]]\ndevice = "left"\nnetworks = ["10/8"]',
         ":10: offload.side[0].networks[0]: expected a prefix, as '10.0.0.0/8', not '10/8'"),
        ('backend = "tc"\n[[offload.side]]\ndevice = "left"\nnetworks = "10/8"',
         """:10: offload.side[0].networks: '10/8': expected a list, as ["10.0.0.0/8"]"""),
        ('backend = "tc"\n[offload.side]\ndevice = "left"', ":8: offload.side: expected [[offload.side]], two brackets"),
        ('[iface.filter]\nports = "tcp 22"', ":8: iface[1].filter.ports: 'tcp 22': expected a list, in [ ]"),
        ('backend = "tc"\n[[offload.side]]\ndevise = "left"', ":8: offload.side[0].device: missing"),
        ('backend = "tc"\n[[offload.side]]\ndevice = "left"\nchains = 1', ":10: offload.side[0].chains: no such setting (is chain meant?)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_by_line(text, said):
    with pytest.raises(ConfigError) as error:
        parse(HEAD + text + "\n", "node.toml")
    assert str(error.value).startswith(f"node.toml{said}")


@pytest.mark.parametrize(
    ("driver", "text", "fine"),
    [
        ("xdp-generic", 'way = "pipeline"', True),
        ("packet", 'way = "pipeline"', False),
        ("tap", 'way = "pipeline"', False),
        ("packet", SIDE, False),
        ("packet", 'way = "exact"\nhardware = "only"\n' + SIDE, True),
        ("tap", 'way = "exact"\nhardware = "only"\n' + SIDE, False),
        ("packet", SIDE.replace("left", "right"), True),
        ("packet", 'way = "auto"', True),
    ],
)
def test_frames_that_TC_has_as_well_are_not_taken_twice(driver, text, fine):
    config = HEAD.replace('name = "left"', f'name = "left"\ndriver = "{driver}"') + f'backend = "tc"\n{text}\n'
    if fine:
        parse(config, "node.toml")
        return
    with pytest.raises(ConfigError) as error:
        parse(config, "node.toml")
    assert str(error.value).startswith(f"node.toml:4: iface[0].driver: {driver}: expected XDP with `[offload] backend =")


@pytest.mark.parametrize("key", ['inward = "right"', "routed = true"])
def test_with_rules_in_TC_nothing_goes_on_but_by_rules(key):
    config = HEAD.replace('name = "left"', f'name = "left"\n{key}') + 'backend = "tc"\n'
    parse(config, "node.toml")
    with pytest.raises(ConfigError) as error:
        parse(config + 'way = "pipeline"\n', "node.toml")
    assert str(error.value).startswith(
        f'node.toml:4: iface[0].{key.split()[0]}: expected none with `way = "pipeline"`: what passes would be the host'
    )


def test_what_is_routed_leaves_by_a_chain():
    config = HEAD.replace('name = "left"', 'name = "left"\nrouted = true') + 'backend = "tc"\n' + SIDE
    with pytest.raises(ConfigError, match=r"node.toml:9: offload.side\[0\].chain: expected one where packets are routed"):
        parse(config, "node.toml")
    parse(config + "chain = 3\n", "node.toml")


def test_it_needs_a_flow_table():
    with pytest.raises(ConfigError, match=r"node\.toml:8: offload\.backend: expected `flowtable = true`"):
        parse("flowtable = false\n" + HEAD + 'backend = "tc"\n', "node.toml")


def test_sides_that_contradict_each_other_are_told_before_anything_is_opened(tmp_path):
    (tmp_path / "node.toml").write_text(HEAD + 'backend = "tc"\n' + SIDE + SIDE.replace("left", "right"))
    with pytest.raises(ConfigError, match=r"node.toml:6: offload.side: side right: 0.0.0.0/0 of zone 0 is behind left already"):
        load(str(tmp_path / "node.toml"), checked)


def test_names_are_those_of_who_does_it():
    assert NAMES == POLICIES and (PIPELINE, EXACT) == ("pipeline", "exact")


def test_a_side_may_be_a_function_of_a_nic(tmp_path):
    function = "pf0vf3@0000:08:00.0"
    (tmp_path / "node.toml").write_text((HEAD + 'backend = "tc"\n' + SIDE).replace("left", function))
    config = load(str(tmp_path / "node.toml"), checked, iface_of=lambda name: "eth7" if name == function else name)
    assert [side.device for side in config.offload.side] == ["eth7"] and config.iface[0].name == "eth7"


# --- what `run --check` says of this kernel ---------------------------------------------------------------------------------------------------------

FLOWER = "cls_flower is nowhere: expected a kernel with CONFIG_NET_CLS_FLOWER (ctmirror doctor)"
ACT_CT = "act_ct is nowhere: expected a kernel with CONFIG_NET_ACT_CT (ctmirror doctor)"
EXACTLY = 'way = "exact"\n' + SIDE


@pytest.mark.parametrize(
    ("lacks", "text", "said"),
    [
        (("cls_flower", "act_ct"), "", [f"nothing would be offloaded here: {FLOWER}"]),
        (("cls_flower",), EXACTLY, [f"the node would not start here: {FLOWER}"]),
        (("act_ct",), "", [f"nothing would be offloaded here: {ACT_CT}"]),
        (("act_ct",), SIDE, [f"only exact filters are possible here: {ACT_CT}"]),
        (("act_ct",), 'way = "pipeline"\n', [f"the node would not start here: {ACT_CT}"]),
        (("act_ct",), EXACTLY, []),
        ((), "", []),
    ],
)
def test_check_warns_of_a_kernel_that_takes_nothing(tmp_path, monkeypatch, capfd, lacks, text, said):
    for function, module in (("tc_flower", "cls_flower"), ("tc_ct", "act_ct")):
        finding = doctor.Finding(module, module not in lacks, f"{module} is nowhere")
        monkeypatch.setattr(doctor, function, lambda finding=finding: finding)
    (tmp_path / "rules.tc").write_text("tc filter add dev lo ingress protocol ip prio 1 flower action drop\n")
    (tmp_path / "node.toml").write_text(f'rules = "rules.tc"\n[[iface]]\nname = "lo"\n[offload]\nbackend = "tc"\n{text}'.replace("left", "lo"))
    code, out, err = run(capfd, "run", "--config", tmp_path / "node.toml", "--check")
    warnings = [line.removeprefix("ctmirror: warning: ") for line in err.splitlines()]
    assert code == 0 and [line for line in warnings if line.startswith("offload: ")] == [f"offload: {line}" for line in said]
    assert out.startswith("1 interface, 1 rule: ") and (out.endswith(": fine\n") is (warnings == []))


def test_check_of_another_backend_asks_for_no_kernel(monkeypatch):
    monkeypatch.setattr(doctor, "tc_flower", lambda: pytest.fail("asked"))
    assert list(doubts(OffloadSection(backend="sim", profile="tiny"))) == list(doubts(OffloadSection())) == []

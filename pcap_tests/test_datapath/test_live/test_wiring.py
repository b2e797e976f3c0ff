"""Rules beside a node's interfaces: what they name and it has not, and interfaces that lead nowhere, are said and change nothing."""

from __future__ import annotations

import logging

import pytest

from datapath.cli import main
from datapath.live.config import NodeConfig
from datapath.live.wiring import MOST, absent, doubts_of
from datapath.pipeline import rules_file
from datapath.pipeline.findings import Findings
from pcap_tests.test_datapath.command import run
from pcap_tests.test_datapath.test_live.noded import COMMIT, running

PASS = "tc filter add dev {} ingress protocol ip prio 1 flower action pass\n"
SEND = "tc filter add dev {} ingress protocol ip prio 1 flower action mirred egress redirect dev {}\n"


def doubts(rules: str, *ifaces: dict) -> list[str]:
    config = NodeConfig.model_validate({"rules": "r.tc", "iface": list(ifaces)})
    found = Findings()
    ruleset = rules_file.parse(rules, "r.tc", found)
    assert not found.errors
    return doubts_of(config, ruleset)


LAN, WAN = {"name": "lan", "inward": "wan"}, {"name": "wan", "inward": "lan"}


def test_rules_for_a_device_that_is_no_interface_see_no_packet():
    """A misspelt name would be a wall with a hole: it is said once, where it stands first."""
    assert doubts(PASS.format("lan") + PASS.format("lam") + PASS.format("lam").replace("prio 1", "prio 2"), LAN, WAN) == [
        "r.tc:2:1: 'dev lam': this node has no such interface (but lan, wan): its rules see no packet"
    ]
    assert doubts(PASS.format("lan") + PASS.format("wan"), LAN, WAN) == []


def test_a_device_that_is_sent_to_and_not_there():
    (said,) = doubts(SEND.format("lan", "wam"), LAN, WAN)
    assert said == "r.tc:1:1: 'mirred dev wam': this node has no such interface (but lan, wan): what is sent there is lost"


def test_a_device_that_is_bound_to_a_block():
    rules = "tc qdisc add dev lam ingress_block 7 ingress\ntc filter add block 7 protocol ip prio 1 flower action pass\n"
    assert [said.partition(": ")[0] for said in doubts(rules, LAN, WAN)] == ["r.tc:1:1"]
    assert doubts(rules.replace("lam", "lan"), LAN, WAN) == []


@pytest.mark.parametrize(
    ("rules", "ifaces", "dead"),
    [
        (PASS.format("lan"), [{"name": "lan"}, {"name": "wan"}], ["lan", "wan"]),
        (PASS.format("lan"), [{"name": "lan", "inward": "wan"}, {"name": "wan"}], []),  # one way
        (SEND.format("lan", "wan"), [{"name": "lan"}, {"name": "wan"}], []),
        (PASS.format("lan"), [{"name": "lan", "routed": True}, {"name": "wan", "routed": True}], []),
    ],
)
def test_interfaces_from_which_nothing_goes_on(rules, ifaces, dead):
    assert [said.partition(": nothing that comes there goes on")[0] for said in doubts(rules, *ifaces)] == dead


def test_rules_at_an_egress_that_nothing_comes_to():
    """What goes on by `inward` asks none there; what is routed or redirected does."""
    egress = PASS.format("wan").replace("ingress", "egress")
    assert [said.partition(": no packet comes there")[0] for said in doubts(egress, LAN, WAN)] == ["r.tc:1:1: 'dev wan egress'"]
    assert doubts(egress + SEND.format("lan", "wan"), LAN, WAN) == []
    assert doubts(egress, {"name": "lan", "routed": True}, {"name": "wan", "routed": True}) == []


def test_zones_of_rules_and_of_sides_of_offloading():
    track = "tc filter add dev lan ingress protocol ip prio {0} flower action ct zone {0} pipe action mirred egress redirect dev wan\n"
    clear = "tc filter add dev wan ingress protocol ip prio 1 flower action ct clear pipe action mirred egress redirect dev lan\n"
    config = {
        "rules": "r.tc",
        "iface": [LAN, WAN],
        "offload": {"backend": "tc", "side": [{"device": "lan", "zone": 5}, {"device": "wan", "zone": 5}]},
    }

    def said(rules: str, config: dict) -> list[str]:
        return doubts_of(NodeConfig.model_validate(config), rules_file.parse(rules, "r.tc", Findings()))

    assert said(track.format(5) + clear, config) == []
    other, *sides = said(track.format(7) + clear, config)
    assert other == "r.tc:1:1: 'ct zone 7': no [[offload.side]] has this zone: its connections have no exact filters"
    assert sides == [f"offload.side[{i}]: {name}: no rule tracks in zone 5: no connection is of this side" for i, name in enumerate(("lan", "wan"))]
    assert said(track.format(7) + clear, {**config, "offload": {"backend": "tc"}}) == []


def test_many_doubts_are_counted():
    found = doubts("".join(PASS.format(f"x{i}") for i in range(MOST + 5)), LAN, WAN)
    assert len(found) == MOST + 1 and found[-1] == "5 more of the kind"


def test_run_check_says_them_and_is_content(tmp_path, capfd):
    (tmp_path / "r.tc").write_text(PASS.format("lam"))
    (tmp_path / "n.toml").write_text('rules = "r.tc"\n[[iface]]\nname = "lo"\n[[iface]]\nname = "no-such-iface"\ninward = "lo"\n')
    code, out, err = run(capfd, "run", "--config", str(tmp_path / "n.toml"), "--check")
    assert (code, out) == (0, "2 interfaces, 1 rule: 2 warnings\n")
    first, second = err.splitlines()
    assert first.startswith(f"ctmirror: warning: {tmp_path}/r.tc:1:1: 'dev lam': this node has no such interface (but lo, no-such-iface)")
    assert second == "ctmirror: warning: no-such-iface: no such interface in this network namespace now"
    assert run(capfd, "run", "--config", str(tmp_path / "n.toml"), "--check", "-q") == (0, "", "")
    (tmp_path / "r.tc").write_text("tc filter add dev lo ingress dance\n")
    assert main(["run", "--config", str(tmp_path / "n.toml"), "--check", "-q"]) == 2


def test_a_tap_is_made_by_the_node():
    config = NodeConfig.model_validate({"rules": "r", "iface": [{"name": "no-such-tap", "driver": "tap"}, {"name": "no-such-eth"}]})
    assert [said.partition(":")[0] for said in absent(config)] == ["no-such-eth"]


def test_a_node_says_them_when_it_starts_and_when_its_rules_change(tmp_path, caplog, capfd):
    logging.getLogger("ctmirror").propagate = True
    with caplog.at_level("WARNING", logger="ctmirror"), running(tmp_path, COMMIT + "tc qdisc add dev eht0 clsact\n" + PASS.format("eht0")) as rig:
        assert ["'dev eht0': this node has no such interface" in message for message in caplog.messages] == [True]
        (tmp_path / "new.tc").write_text(PASS.format("eht1"))
        code, out, err = run(capfd, "control", "rules", str(tmp_path / "new.tc"), "--socket", rig.path)
    assert (code, out) == (0, "1 rule\n")
    assert err.startswith(f"ctmirror: warning: {tmp_path}/new.tc:1:1: 'dev eht1': this node has no such interface (but eth0, eth1)")

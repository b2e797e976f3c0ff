"""What is tried of a real kernel and of a NIC that takes it, all or in part: found out, decided, said, and gone again."""

from __future__ import annotations

import json
import subprocess

import pytest

from datapath.commands.offload_probe import probed, tc_rules
from datapath.commands.tc.ask import KernelTc
from datapath.live.privileges import keep_only
from datapath.pipeline.rules import Hook
from offload.netlink.channel import Channel
from offload.netlink.filters import Where
from offload.netlink.links import links
from offload.trials import EXACT, PIPELINE, SOFTWARE, TRIALS, trials
from pcap_tests.test_datapath.command import run
from pcap_tests.vm.test_vm_install import ended, in_child


def tc(line: str) -> None:
    subprocess.run(["tc", *line.split()], check=True)


def left(device: str) -> tuple[int, int, int]:
    """Qdiscs, templates and filters."""
    with KernelTc() as kernel:
        there = kernel.listed([Hook(device), Hook(device, "egress")])
        return len(there.qdiscs), len(there.templates), len(there.rules) + len(there.foreign)


def test_a_stock_kernel_takes_all_of_it(switch):
    with Channel() as channel:
        tried = trials(channel, Where(links(channel)["eth0"]))
    assert [(each.trial.name, each.answer.told()) for each in tried] == [(trial.name, "done") for trial in TRIALS]
    assert left("eth0") == (0, 0, 0)


def test_what_is_there_stays_as_it_is(switch):
    tc("qdisc add dev eth0 clsact")
    tc("chain add dev eth0 ingress chain 1 protocol ip flower ip_proto tcp")
    tc("filter add dev eth0 ingress protocol ip prio 1 chain 0 flower ip_proto udp action goto chain 2")
    before = subprocess.run(["tc", "filter", "show", "dev", "eth0", "ingress"], capture_output=True, text=True, check=True).stdout
    with Channel() as channel:
        assert all(each.ok for each in trials(channel, Where(links(channel)["eth0"])))
    assert left("eth0") == (1, 1, 1)
    assert subprocess.run(["tc", "filter", "show", "dev", "eth0", "ingress"], capture_output=True, text=True, check=True).stdout == before


def test_a_nic_that_takes_all_has_the_pipeline(nic, switch):
    feature, hardware, software, decision = probed("eth0", "vf0")
    assert (feature, len(hardware), len(software)) == ("on", len(TRIALS), len(TRIALS))
    assert decision == (PIPELINE, ()) and nic.lines("rules") == []


def test_a_nic_without_conntrack_has_exact_filters_and_says_why_no_more(nic, switch):
    nic.set(takes_ct=0)
    decision = probed("eth0")[3]
    assert decision.way == EXACT
    assert decision.why[0] == "the NIC: ct (action ct, and on in a chain): Operation not supported: feigned_nic: this NIC has no conntrack"
    assert len(decision.why) == 2 and "matches no conntrack (and 1 more for the same reason)" in decision.why[1]


def test_a_nic_that_is_full_has_nothing(nic, switch):
    nic.set(rule_room=0)
    decision = probed("eth0")[3]
    assert decision.way == SOFTWARE
    assert decision.why[0] == "the NIC: flower (a filter): No space left on device: feigned_nic: no room in hardware (and 8 more for the same reason)"


@pytest.mark.parametrize(("state", "why"), [("off", "hw-tc-offload is off: ethtool -K DEVICE hw-tc-offload on")])
def test_a_nic_whose_feature_is_off_is_not_tried(nic, switch, state, why):
    subprocess.run(["ethtool", "-K", "eth0", "hw-tc-offload", state], check=True)
    feature, hardware, _, decision = probed("eth0")
    assert (feature, hardware, decision) == ("off", (), (SOFTWARE, (why,)))


def test_the_command_says_it(capfd, nic, switch):
    nic.set(takes_ct=0)
    code, out, err = run(capfd, "offload", "probe", "eth0")
    lines = out.splitlines()
    assert (code, err, lines[0]) == (0, "", "hw-tc-offload  on") and "kernel  ct         yes" in lines
    assert "NIC     ct         Operation not supported: feigned_nic: this NIC has no conntrack" in lines
    told = json.loads(run(capfd, "offload", "probe", "eth0", "--json")[1])
    assert (told["way"], told["kernel"]["ct"], told["nic"]["flower"]) == ("exact", None, None) and "no conntrack" in told["nic"]["ct"]
    subprocess.run(["ethtool", "-K", "eth0", "hw-tc-offload", "off"], check=True)
    assert run(capfd, "offload", "probe", "eth0", "-q") == (1, "", "")
    assert run(capfd, "offload", "probe", "eth9") == (2, "", "ctmirror: no interface eth9\n")
    assert ended(in_child(lambda: keep_only(()), "offload", "probe", "eth0")) == 2
    assert capfd.readouterr() == ("", "ctmirror: TC cannot be tried: not permitted: expected root, or cap_net_admin\n")


def test_doctor_has_tried_it():
    finding = tc_rules()
    assert finding.ok and finding.found == "flower, chains, exact filters and ct: tried in a namespace"

"""A flow table, its mirror and the kernel's TC as its hardware: connections come in, are counted, leave, and are put back after a flush."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from offload.contract.why import Why
from offload.exact_rules import ExactRules
from offload.sides import Sides, side
from pcap_tests.test_datapath.tabled import IN, OUT, Tcp
from pcap_tests.test_offload.mirrored import QuickRig

SIDES = Sides([side("eth0", ["10.0.0.0/8"]), side("vf0")])


@pytest.fixture
def rig(nic, switch) -> Iterator[QuickRig]:
    with ExactRules(SIDES, skip_sw=True) as backend:
        yield QuickRig(nic=backend, mirror={"backoff": 1.0})


def test_an_established_connection_is_two_rules_and_its_fin_takes_them_out(rig, nic):
    talk = Tcp(rig).opened()
    assert rig.in_hardware() and len(nic.lines("rules")) == 2
    talk.say(IN, "FA")
    rig.wait(3)
    assert not rig.in_hardware() and nic.lines("rules") == []


def test_what_hardware_has_counted_is_the_connections(rig, nic):
    Tcp(rig).opened()
    seen = [int(flow["packets"]) for flow in rig.conn()["flow"]]
    nic.hit("rules", "eth0 chain", 1000, 64_000)
    rig.wait(8)
    assert [int(flow["packets"]) for flow in rig.conn()["flow"]] == [seen[0] + 1000, seen[1]]
    nic.hit("rules", "eth0 chain", 5, 320)
    nic.hit("rules", "vf0 chain", 7, 700)
    rig.wait(8)
    assert [int(flow["packets"]) for flow in rig.conn()["flow"]] == [seen[0] + 1005, seen[1] + 7]


def test_a_full_nic_is_tried_again_and_says_why(rig, nic):
    nic.set(rule_room=2)
    first, second = Tcp(rig).opened(), Tcp(rig, port=40_001).opened()
    assert rig.in_hardware(0) and not rig.in_hardware(1)
    assert rig.mirror.why(1)["why"] is Why.HW_FULL and "no room in hardware" in rig.nic.refusal(1)
    first.say(IN, "FA")
    rig.wait(3)
    second.say(OUT, "PA", b"hello")
    rig.settle()
    assert rig.in_hardware(1) and rig.nic.refusal(1) == ""


def test_a_flush_by_somebody_is_made_good(rig, nic):
    for port in range(40_000, 40_010):
        Tcp(rig, port=port).opened()
    subprocess.run(["tc", "qdisc", "del", "dev", "vf0", "clsact"], check=True)
    assert len(nic.lines("rules")) == 10
    rig.wait(2)  # it is told what has gone, and then that hardware has begun anew
    rig.settle()
    assert len(nic.lines("rules")) == 20 and rig.mirror.counters()["resets"] == 1
    assert len(rig.mirror.audit(rig.nic.held())) == 0


def test_a_rule_that_somebody_has_deleted_is_found_by_an_audit_and_put_back(rig, nic):
    talk = Tcp(rig).opened()
    rig.settle()
    assert len(rig.mirror.audit(rig.nic.held())) == 0
    subprocess.run(["tc", *["filter", "del", "dev", "vf0", "ingress", "protocol", "ip", "prio", "1", "handle", "2", "flower"]], check=True)
    (found,) = rig.mirror.audit(rig.nic.held())
    assert found["dir"] == 1
    rig.wait(8)  # until it is asked for its counters, and is known to be missing
    talk.say(OUT, "PA", b"hello")
    rig.settle()
    assert len(nic.lines("rules")) == 2 and len(rig.mirror.audit(rig.nic.held())) == 0

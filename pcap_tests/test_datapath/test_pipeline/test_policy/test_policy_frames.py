"""The rules of the recipes on real frames, in the interpreter that other rules are held against: its fields, its order of rules, its actions."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from datapath import craft
from datapath.pipeline.interpret import Interpreter, Piece, Tracked
from datapath.pipeline.policy.compiler import Options
from datapath.pipeline.policy.evaluate import Packet, judge
from datapath.pipeline.rules import Ct, Hook
from pcap_tests.test_datapath.test_pipeline.test_policy import machine
from pcap_tests.test_datapath.test_pipeline.test_policy.compared import Lab
from pcap_tests.test_datapath.test_pipeline.test_policy.machine import Frame
from pcap_tests.test_datapath.test_pipeline.test_policy.recipes import NAMES, Recipe


def written(frame: Frame) -> bytes:
    src, dst = str(frame.src), str(frame.dst)
    match frame.proto:
        case 6:
            return craft.tcp(src, dst, frame.sport, frame.dport, "S")
        case 17:
            return craft.udp(src, dst, frame.sport, frame.dport, b"?")
        case 132:
            return craft.sctp(src, dst, frame.sport, frame.dport, 0, craft.sctp_init(1))
        case _:
            return craft.icmp(src, dst, frame.kind if frame.src.version == 4 else 128)


class Follower:
    """Connection tracking for the interpreter: that of the machine, which knows frames by what they were written from."""

    def __init__(self, lab: Lab) -> None:
        self.machine, self.frame = lab.machine, None

    def act(self, action: Ct, frame: bytes, now: int, before: Tracked, missing: int = 0):
        tracked = self.machine._track(action, self.frame, machine.Tracked(before.state, before.zone, before.conn) if before.state else None)
        after = Tracked() if tracked is None else Tracked(tracked.state, tracked.zone, tracked.conn.mark if tracked.conn else 0, 0, tracked.conn)
        return "go on", frame, after

    def leave(self, tracked: Tracked) -> None:
        """Whatever the machine has not committed it has not kept."""

    def cut(self, frame: bytes, tracked: Tracked, missing: int = 0) -> list[Piece]:
        return [Piece(frame, missing)]


def passes(lab: Lab, follower: Follower, interpreter: Interpreter, frame: Frame) -> list[bool]:
    """At the device it comes out of, and at the one it goes into."""
    follower.frame = frame
    verdicts = []
    for address, direction in ((frame.src, "ingress"), (frame.dst, "egress")):
        device = lab.device(address)
        walk = interpreter.run(written(frame), 0, Hook(device, direction)) if device and all(verdicts) else None
        verdicts.append(walk is None or walk.verdict == "pass")
    return verdicts


@pytest.mark.parametrize("name", NAMES)
def test_real_frames_meet_the_same_fate(name):
    recipe = Recipe(name)
    lab = Lab(recipe.cluster(), Options(node_traffic=recipe.node_traffic))
    follower = Follower(lab)
    interpreter = Interpreter(lab.machine.ruleset, follower)
    attempts = list(recipe.attempts())
    for attempt in attempts[:: max(1, len(attempts) // 24)]:
        ports = (None, None) if attempt.number is None else (40000, attempt.number)
        frame = Frame(attempt.src, attempt.dst, attempt.proto, *ports, kind=8 if attempt.number is None else None)
        lab.machine.conns.clear()
        said = judge(lab.cluster, Packet(attempt.src, attempt.dst, attempt.proto, attempt.number), recipe.node_traffic)
        there = passes(lab, follower, interpreter, frame)
        assert there[0] == said.egress.allowed and all(there) == said.allowed == attempt.allowed, attempt
        if all(there):
            assert all(passes(lab, follower, interpreter, frame.reply())), attempt
            assert all(passes(lab, follower, interpreter, frame)), attempt


def test_arp_and_neighbour_discovery_on_real_frames():
    lab = Lab(Recipe("dual-stack").cluster())
    interpreter, web, db = Interpreter(lab.machine.ruleset, Follower(lab)), ip_address("10.1.0.2"), ip_address("10.1.0.4")

    def verdict(direction, frame):
        return interpreter.run(frame, 0, Hook(lab.device(db), direction)).verdict

    def arp(sender):
        head = bytes.fromhex("0001080006040001") + bytes(6) + sender.packed + bytes(6) + web.packed
        return craft.eth(head, 0x0806)

    assert verdict("ingress", arp(db)) == verdict("egress", arp(web)) == "pass"
    assert verdict("ingress", arp(web)) == "drop"
    assert verdict("ingress", craft.icmp("fe80::1", "ff02::1", 135)) == verdict("egress", craft.icmp("fe80::1", "ff02::1", 134)) == "pass"
    assert verdict("ingress", craft.icmp("fe80::1", "ff02::1", 134)) == "drop"
    assert verdict("ingress", craft.icmp("fe80::1", "ff02::1", 128)) == "drop"

"""Zones beside the running kernel: packets of several zones at once, few hosts and ports, zones of both directions and of one, rules or none.

Clashes that Linux resolves for datagrams (two connections that begin at the same moment) cannot come of packets one after the other: here they are
dropped by both. Zone 0 is not among the zones: where it meets others of one direction, Linux has a tuple twice and we refuse it (docs/decisions.md).
"""

from __future__ import annotations

from random import Random

import pytest

from ctcore.config import Config
from ctcore.nat_rules import NatRule
from ctcore.types import Reason
from datapath import craft
from datapath.frame import frames_of
from datapath.oracle.compare import differences
from datapath.oracle.lockstep import Compared, Lockstep
from datapath.oracle.oracle import Oracle
from datapath.rule_text import parse_rule

HOSTS, PORTS, ZONES = ("10.0.0.1", "10.0.0.2", "192.0.2.1"), (53, 1000, 7000), (1, 5, 65535)
RULES = {
    "none": (), "address": (parse_rule("snat", "192.0.2.1"),), "port": (parse_rule("snat", "192.0.2.1:7000"),),
    "ports": (parse_rule("snat", "192.0.2.1:7000-7001"),), "server": (parse_rule("dnat", "10.0.0.2:53"),), "hidden": (parse_rule("snat", ":7000"),),
}  # fmt: skip
KINDS = ("udp", "udp", "udp", "udp", "gre", "echo", "tcp", "sctp")
TALKS, PACKETS = 8, 40


def frame(dice: Random) -> bytes:
    src, dst = dice.sample(HOSTS, 2)
    sport, dport = dice.choice(PORTS), dice.choice(PORTS)
    match dice.choice(KINDS):
        case "udp":
            return craft.udp(src, dst, sport, dport, b"text")
        case "gre":
            return craft.frame(src, dst, craft.GRE, bytes(8))
        case "echo":
            return craft.icmp(src, dst, dice.choice((8, 0)), ident=sport)
        case "tcp":
            return craft.tcp(src, dst, sport, dport, dice.choice(("S", "SA", "A")), seq=100, ack=100)
        case _:
            return craft.sctp(src, dst, sport, dport, 0, craft.sctp_init(7))


def in_zone(lockstep: Lockstep, frames: list[bytes], zone: int) -> Compared:
    lockstep.zone = lockstep.oracle.zone = lockstep.gatherer.zone = zone
    return lockstep.run(*frames_of(frames))


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("direction", ["both", "original", "reply"])
def test_engine_and_kernel_agree(running_kernel: None, direction: str, rules: tuple[NatRule, ...]) -> None:
    dice = Random(f"zones/{direction}/{[rule.text for rule in rules]}")
    with Oracle(Config(zone_dir=direction, nat=rules)) as oracle:
        for _ in range(TALKS):
            lockstep = Lockstep(oracle)
            for _ in range(PACKETS):
                compared = in_zone(lockstep, [frame(dice)], dice.choice(ZONES))
                assert differences(compared, oracle.config.hz) == []


@pytest.mark.parametrize("proto", ["udp", "udplite", "gre", "echo"])
def test_equal_datagrams_of_two_zones_are_not_merged(running_kernel: None, proto: str) -> None:
    """Their answers would be the same. Linux merges what it can only for one zone (nf_ct_match)."""
    packet = {
        "udp": craft.udp(*HOSTS[:2], 1000, 53, b"x"), "udplite": craft.udplite(*HOSTS[:2], 1000, 53, b"x", sum_proto=craft.UDP),
        "gre": craft.frame(*HOSTS[:2], craft.GRE, bytes(8)), "echo": craft.icmp(*HOSTS[:2], 8, ident=7),
    }[proto]  # fmt: skip
    with Oracle(Config(zone_dir="original")) as oracle:
        lockstep = Lockstep(oracle)
        for zone, reason in ((5, Reason.R_OK), (7, Reason.R_CLASH), (7, Reason.R_CLASH), (5, Reason.R_OK)):
            compared = in_zone(lockstep, [packet], zone)
            assert differences(compared, oracle.config.hz) == []
            assert compared.ours.decisions["reason"][0] == reason

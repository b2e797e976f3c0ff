"""What rules make of frames: chains, controls, and actions that need no connection tracking."""

from __future__ import annotations

from typing import Any

import pytest

from datapath import craft
from datapath.pipeline.interpret import MOST_TURNS, Interpreter, Tracked, Walk
from datapath.pipeline.rules import (
    CONTINUE,
    DROP,
    ETH_ALL,
    ETH_IP,
    ETH_IPV6,
    ETH_VLAN,
    PASS,
    PIPE,
    RECLASSIFY,
    Action,
    Ct,
    Gact,
    Hook,
    Match,
    Mirred,
    Munge,
    Pedit,
    Police,
    Rule,
    Ruleset,
    Skbedit,
    Vlan,
    goto,
)

HOOK = Hook("eth0")
TCP, UDP = Match("ip_proto", 6, 0xFF), Match("ip_proto", 17, 0xFF)
A, B = "192.0.2.1", "198.51.100.1"
SEGMENT, DATAGRAM = craft.tcp(A, B, 40000, 80, "S"), craft.udp(A, B, 5000, 53, b"?")
SECOND = 1_000_000_000


def rule(prio: int, *actions: Action, matches: tuple[Match, ...] = (), chain: int = 0, protocol: int = ETH_ALL, **more: Any) -> Rule:
    return Rule(HOOK, protocol, matches, actions, prio, chain, **more)


def run(frame: bytes, *rules: Rule, now: int = 0) -> Walk:
    return Interpreter(Ruleset(rules=rules)).run(frame, now, HOOK)


def test_no_rule_means_pass() -> None:
    assert run(SEGMENT).verdict == "pass"
    assert run(SEGMENT, rule(1, Gact(DROP), matches=(UDP,))).verdict == "pass"


def test_the_first_rule_that_matches_decides() -> None:
    rules = rule(2, Gact(DROP)), rule(1, Gact(PASS), matches=(TCP,))
    assert [run(frame, *rules).verdict for frame in (SEGMENT, DATAGRAM)] == ["pass", "drop"]


def test_the_protocol_is_part_of_the_match() -> None:
    rules = (rule(1, Gact(DROP), protocol=ETH_IPV6),)
    assert [run(frame, *rules).verdict for frame in (SEGMENT, craft.tcp("2001:db8::1", "2001:db8::2", 1, 2, "S"))] == ["pass", "drop"]


def test_goto_goes_on_in_another_chain_and_does_not_come_back() -> None:
    rules = rule(1, Gact(goto(7))), rule(2, Gact(DROP)), rule(1, Gact(DROP), matches=(UDP,), chain=7)
    assert [run(frame, *rules).verdict for frame in (SEGMENT, DATAGRAM)] == ["pass", "drop"]


def test_continue_goes_on_with_the_next_priority() -> None:
    walk = run(SEGMENT, rule(1, Gact(CONTINUE)), rule(1, Gact(PASS), matches=(TCP,)), rule(2, Gact(DROP)))
    assert (walk.verdict, [hit.prio for hit in walk.hits]) == ("drop", [1, 2])


def test_what_pipes_at_the_end_passes() -> None:
    assert run(SEGMENT, rule(1, Gact(PIPE)), rule(2, Gact(DROP))).verdict == "pass"
    assert run(SEGMENT, rule(1), rule(2, Gact(DROP))).verdict == "pass"


@pytest.mark.parametrize("control", [RECLASSIFY, goto(0)])
def test_a_circle_ends(control: Any) -> None:
    walk = run(SEGMENT, rule(1, Gact(control)))
    assert (walk.verdict, walk.reason, len(walk.hits)) == ("drop", "rule_chains", MOST_TURNS)


def test_skip_sw_is_for_hardware() -> None:
    assert run(SEGMENT, rule(1, Gact(DROP), skip_sw=True)).verdict == "pass"


def test_a_mirror_passes_on_and_a_redirect_does_not() -> None:
    walk = run(SEGMENT, rule(1, Mirred("mirror", "tap0"), Gact(DROP)))
    assert (walk.verdict, [(sent.device, sent.frame) for sent in walk.sent]) == ("drop", [("tap0", SEGMENT)])
    walk = run(SEGMENT, rule(1, Mirred("redirect", "eth1"), Gact(DROP)))
    assert (walk.verdict, [sent.device for sent in walk.sent]) == ("redirect", ["eth1"])


def test_later_actions_and_chains_see_what_earlier_ones_changed() -> None:
    to_8080 = Pedit((Munge("tcp", "dport", "set", 8080, 0xFFFF),))
    caught = Match("dst_port", 8080, 0xFFFF)
    walk = run(SEGMENT, rule(1, to_8080, Gact(goto(1)), matches=(TCP,)), rule(1, Gact(DROP), matches=(TCP, caught), chain=1))
    assert walk.verdict == "drop" and walk.frame[36:38] == (8080).to_bytes(2, "big")


def test_a_tag_is_matched_behind_its_push() -> None:
    tagged = Match("vlan_id", 5, 0xFFF), Match("vlan_ethtype", ETH_IP, 0xFFFF), TCP
    walk = run(SEGMENT, rule(1, Vlan("push", id=5), Gact(goto(1))), rule(1, Vlan("pop"), Gact(DROP), matches=tagged, chain=1, protocol=ETH_VLAN))
    assert (walk.verdict, walk.frame) == ("drop", SEGMENT)


def test_marks_and_priorities() -> None:
    walk = run(SEGMENT, rule(1, Skbedit(mark=(0x12, 0xFF)), Skbedit(mark=(0x100, 0xF00), priority=0x10001)))
    assert (walk.mark, walk.priority) == (0x112, 0x10001)


def test_a_policer_lets_pass_what_has_tokens() -> None:
    interpreter = Interpreter(Ruleset(rules=(rule(1, Police(rate=8 * len(SEGMENT), burst=2 * len(SEGMENT), exceed=DROP)),)))
    times = (0, 0, 0, SECOND // 2, SECOND, SECOND, 10 * SECOND, 10 * SECOND, 10 * SECOND)
    verdicts = [interpreter.run(SEGMENT, time, HOOK).verdict for time in times]
    assert verdicts == ["pass", "pass", "drop", "drop", "pass", "drop", "pass", "pass", "drop"]


def test_a_policer_of_packets() -> None:
    interpreter = Interpreter(Ruleset(rules=(rule(1, Police(packet_rate=10, packet_burst=1, exceed=DROP)),)))
    assert [interpreter.run(SEGMENT, time, HOOK).verdict for time in (0, 0, SECOND // 10)] == ["pass", "drop", "pass"]


def test_what_is_redirected_comes_to_the_next_device() -> None:
    rules = rule(1, Mirred("redirect", "eth1")), Rule(Hook("eth1", "egress"), ETH_ALL, (UDP,), (Gact(DROP),), 1)
    interpreter = Interpreter(Ruleset(rules=rules))
    for frame, verdict in ((SEGMENT, "pass"), (DATAGRAM, "drop")):
        assert [walk.verdict for walk in interpreter.deliver(frame, 0, HOOK).walks] == ["redirect", verdict]


class Remembers:
    """Tracks nothing: says what it is told to say, and remembers what it was asked."""

    def __init__(self, what: str, tracked: Tracked) -> None:
        self.what, self.tracked, self.asked = what, tracked, list[Ct]()

    def act(self, action: Ct, frame: bytes, now: int, before: Tracked) -> tuple[str, bytes, Tracked]:
        self.asked.append(action)
        return self.what, frame, self.tracked


def test_rules_behind_ct_see_what_it_said() -> None:
    established = Match("ct_state", 0x0A, 0x0A), Match("ct_zone", 5, 0xFFFF), Match("ct_mark", 2, 0x3)
    rules = rule(1, Ct(zone=5), Gact(goto(1)), matches=(Match("ct_state", 0, 8),)), rule(1, Gact(DROP), matches=established, chain=1)
    for tracked, verdict in ((Tracked(0x0A, 5, 0xE), "drop"), (Tracked(0x09, 5, 0xE), "pass"), (Tracked(0x0A, 5, 1), "pass")):
        assert Interpreter(Ruleset(rules=rules), Remembers("go on", tracked)).run(SEGMENT, 0, HOOK).verdict == verdict


@pytest.mark.parametrize(("what", "verdict"), [("drop", "drop"), ("held", "held"), ("go on", "pass")])
def test_ct_may_drop_and_hold(what: str, verdict: str) -> None:
    assert Interpreter(Ruleset(rules=(rule(1, Ct()),)), Remembers(what, Tracked(8))).run(SEGMENT, 0, HOOK).verdict == verdict

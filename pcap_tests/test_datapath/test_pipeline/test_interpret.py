"""What rules make of frames: chains, controls, and actions that need no connection tracking."""

from __future__ import annotations

from typing import Any

import pytest

from datapath import craft
from datapath.pipeline.interpret import MOST_TURNS, Interpreter, Piece, Tracked, Walk
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
    size = len(SEGMENT) - 14  # at ingress, where the link header is off
    interpreter = Interpreter(Ruleset(rules=(rule(1, Police(rate=8 * size, burst=2 * size, exceed=DROP)),)))
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
    """Tracks nothing: says what it is told to say, and remembers what it was asked, and what was given back. pieces: what a frame leaves as."""

    def __init__(self, what: str, tracked: Tracked, pieces: list[Piece] | None = None) -> None:
        self.what, self.tracked, self.pieces = what, tracked, pieces
        self.asked, self.over = list[Ct](), list[Tracked]()

    def act(self, action: Ct, frame: bytes, now: int, before: Tracked, missing: int = 0) -> tuple[str, bytes, Tracked]:
        self.asked.append(action)
        return self.what, frame, self.tracked if self.what == "go on" else Tracked(reason="table_full")

    def leave(self, tracked: Tracked) -> None:
        self.over.append(tracked)

    def cut(self, frame: bytes, tracked: Tracked, missing: int = 0) -> list[Piece]:
        return [Piece(frame, missing)] if self.pieces is None else self.pieces


def test_rules_behind_ct_see_what_it_said() -> None:
    established = Match("ct_state", 0x0A, 0x0A), Match("ct_zone", 5, 0xFFFF), Match("ct_mark", 2, 0x3)
    rules = rule(1, Ct(zone=5), Gact(goto(1)), matches=(Match("ct_state", 0, 8),)), rule(1, Gact(DROP), matches=established, chain=1)
    for tracked, verdict in ((Tracked(0x0A, 5, 0xE), "drop"), (Tracked(0x09, 5, 0xE), "pass"), (Tracked(0x0A, 5, 1), "pass")):
        assert Interpreter(Ruleset(rules=rules), Remembers("go on", tracked)).run(SEGMENT, 0, HOOK).verdict == verdict


@pytest.mark.parametrize(("what", "verdict"), [("drop", "drop"), ("held", "held"), ("go on", "pass")])
def test_ct_may_drop_and_hold(what: str, verdict: str) -> None:
    assert Interpreter(Ruleset(rules=(rule(1, Ct()),)), Remembers(what, Tracked(8))).run(SEGMENT, 0, HOOK).verdict == verdict


@pytest.mark.parametrize(
    ("what", "actions", "verdict"),
    [
        ("go on", (Gact(PASS),), "pass"),
        ("go on", (Gact(DROP),), "drop"),
        ("go on", (Mirred("redirect", "eth1"),), "redirect"),
        ("go on", (Mirred("mirror", "eth1"), Gact(RECLASSIFY)), "drop"),
        ("drop", (), "drop"),
        ("held", (), "held"),
    ],
)
def test_whichever_way_a_packet_ends_it_gives_back_what_it_carries(what: str, actions: tuple[Action, ...], verdict: str) -> None:
    carried = Tracked(8, conn="a connection")
    tracker = Remembers(what, carried)
    walk = Interpreter(Ruleset(rules=(rule(1, Ct(), *actions),)), tracker).run(SEGMENT, 0, HOOK)
    assert (walk.verdict, walk.tracked.conn) == (verdict, None)
    assert tracker.over == [carried if what == "go on" else Tracked(reason="table_full")]
    assert walk.reason == {"pass": "", "redirect": "", "drop": walk.reason}.get(verdict, "table_full")


def test_a_mistake_gives_back_what_is_carried_too() -> None:
    class Mistaken(Remembers):
        def act(self, action: Ct, frame: bytes, now: int, before: Tracked, missing: int = 0) -> tuple[str, bytes, Tracked]:
            if self.asked:
                raise ValueError("no such zone")
            return super().act(action, frame, now, before)

    tracker = Mistaken("go on", Tracked(8, conn="a connection"))
    with pytest.raises(ValueError):
        Interpreter(Ruleset(rules=(rule(1, Ct(), Ct()),)), tracker).run(SEGMENT, 0, HOOK)
    assert tracker.over == [tracker.tracked]


PIECES = [Piece(craft.udp(A, B, 1, 2, b"first")), Piece(craft.udp(A, B, 1, 2, b"second"), 5)]


def test_what_was_put_together_leaves_in_pieces() -> None:
    tracker = Remembers("go on", Tracked(8), PIECES)
    walk = Interpreter(Ruleset(rules=(rule(1, Ct()),)), tracker).run(SEGMENT, 0, HOOK)
    assert (walk.frame, walk.pieces) == (SEGMENT, PIECES)
    walk = Interpreter(Ruleset(rules=(rule(1, Ct(), Mirred("redirect", "eth1")),)), tracker).run(SEGMENT, 0, HOOK)
    assert ([sent.frame for sent in walk.sent], walk.pieces) == ([piece.frame for piece in PIECES], [])


def test_every_piece_comes_to_the_next_device() -> None:
    delivery = Interpreter(Ruleset(rules=(rule(1, Ct(), Mirred("redirect", "eth1")),)), Remembers("go on", Tracked(8), PIECES)).deliver(
        SEGMENT, 0, HOOK
    )
    assert [(walk.frame, walk.missing, walk.verdict) for walk in delivery.passed] == [(*piece, "pass") for piece in PIECES]
    assert delivery.last is delivery.passed[-1]


@pytest.mark.parametrize("actions", [(), (Mirred("redirect", "eth1"),)])
def test_what_cannot_be_cut_up_again_is_dropped(actions: tuple[Action, ...]) -> None:
    walk = Interpreter(Ruleset(rules=(rule(1, Ct(), *actions),)), Remembers("go on", Tracked(8), [])).run(SEGMENT, 0, HOOK)
    assert (walk.verdict, walk.reason, walk.pieces, walk.sent) == ("drop", "rule_cut", [], [])


def test_a_redirected_packet_has_parted_from_its_connection_before_it_is_anywhere_else() -> None:
    log: list[str] = []

    class Logs(Remembers):
        def act(self, action: Ct, frame: bytes, now: int, before: Tracked, missing: int = 0) -> tuple[str, bytes, Tracked]:
            log.append(f"act {action.zone}")
            return super().act(action, frame, now, before, missing)

        def leave(self, tracked: Tracked) -> None:
            log.append("leave")

    rules = rule(1, Ct(), Mirred("redirect", "eth1")), Rule(Hook("eth1", "egress"), ETH_ALL, (), (Ct(zone=1),), 1)
    Interpreter(Ruleset(rules=rules), Logs("go on", Tracked(8))).deliver(SEGMENT, 0, HOOK)
    assert log == ["act 0", "leave", "act 1", "leave"]


def test_what_was_said_ends_at_the_next_device() -> None:
    """Its hook sees a packet that nobody has tracked."""
    untracked = Match("ct_state", 0, 8)
    rules = rule(1, Ct(), Mirred("redirect", "eth1")), Rule(Hook("eth1", "egress"), ETH_ALL, (untracked,), (Gact(DROP),), 1)
    delivery = Interpreter(Ruleset(rules=rules), Remembers("go on", Tracked(0x0A))).deliver(SEGMENT, 0, HOOK)
    assert [walk.verdict for walk in delivery.walks] == ["redirect", "drop"]


def test_a_drop_tells_the_trackers_reason() -> None:
    walk = Interpreter(Ruleset(rules=(rule(1, Ct()),)), Remembers("drop", Tracked())).run(SEGMENT, 0, HOOK)
    assert (walk.verdict, walk.reason) == ("drop", "table_full")


def test_what_lies_behind_the_packet_is_missing_no_more() -> None:
    """Of 20 bytes that were not captured, 10 are the packet's."""
    frame = craft.udp(A, B, 1, 2, bytes(30))
    walk = Interpreter(Ruleset(rules=(rule(1, Ct()),)), Remembers("go on", Tracked(8, missing=10))).run(frame[:-10], 0, HOOK, missing=20)
    assert (walk.missing, walk.pieces) == (10, [Piece(frame[:-10], 10)])

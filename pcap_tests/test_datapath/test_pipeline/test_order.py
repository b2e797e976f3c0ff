"""Priorities, masks, and shared blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datapath.pipeline.order import chains_of, in_order
from datapath.pipeline.rules import ETH_IP, PASS, Gact, Hook, Match, Qdisc, Rule, Ruleset

HOOK = Hook("eth0")


def rule(prio: int, *matches: Match, chain: int = 0, hook: Hook = HOOK) -> Rule:
    return Rule(hook, ETH_IP, matches, (Gact(PASS),), prio, chain)


def port(number: int) -> Match:
    return Match("dst_port", number, 0xFFFF)


TCP = Match("ip_proto", 6, 0xFF)


def test_within_a_priority_rules_go_by_their_masks() -> None:
    rules = [rule(1, port(80)), rule(1, TCP), rule(1, port(443))]
    assert [placed.rule for placed in in_order(rules)] == [rules[0], rules[2], rules[1]]


def test_a_range_is_a_mask_of_its_own() -> None:
    rules = [rule(1, port(80)), rule(1, Match("dst_port", 1, 0xFFFF, high=9)), rule(1, port(81))]
    assert [placed.rule for placed in in_order(rules)] == [rules[0], rules[2], rules[1]]


def test_continue_goes_to_the_next_priority() -> None:
    assert [placed.behind for placed in in_order([rule(1, TCP), rule(1, port(80)), rule(7)])] == [2, 2, 3]


def test_chains_are_apart() -> None:
    rules = rule(2, chain=1), rule(1), rule(1, TCP, chain=1), rule(1, hook=Hook("eth1"))
    found = chains_of(Ruleset(rules=rules), HOOK)
    assert {chain: [placed.rule for placed in placed] for chain, placed in found.items()} == {0: [rules[1]], 1: [rules[2], rules[0]]}


def test_a_hook_bound_to_a_block_has_the_blocks_rules() -> None:
    block = Hook("", "", 22)
    ruleset = Ruleset((Qdisc("eth0", ingress_block=22),), (), (rule(1, hook=block), rule(1, TCP)))
    assert [placed.rule.matches for placed in chains_of(ruleset, HOOK)[0]] == [()]
    assert chains_of(ruleset, Hook("eth0", "egress")) == {}


MATCHES = st.sampled_from([(), (TCP,), (port(80),), (port(81),), (TCP, port(80))])


@given(st.lists(st.builds(lambda prio, matches: rule(prio, *matches), st.integers(1, 4), MATCHES)))
def test_order_is_stable_and_by_priority(rules: list[Rule]) -> None:
    placed = in_order(rules)
    assert sorted(map(id, rules)) == sorted(id(each.rule) for each in placed)
    prios = [each.rule.prio for each in placed]
    assert prios == sorted(prios)
    for at, each in enumerate(placed):
        assert all(prio <= each.rule.prio for prio in prios[: each.behind]) and all(prio > each.rule.prio for prio in prios[each.behind :])
        assert at < each.behind

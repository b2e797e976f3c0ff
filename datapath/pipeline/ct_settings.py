"""What the `ct` actions of rules ask of a tracker's settings: ranges to translate to, and whether there is any translation, and any helper.

Not here: doing the actions (walk, and reference in the interpreter).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ctcore.config import Config
from ctcore.ct_action import BARE_NAT
from ctcore.nat_rules import NatRule, Range
from datapath.pipeline.rules import Ct, CtNat, Ruleset

NAT_KINDS = {"src": "snat", "dst": "dnat"}


def ct_actions(ruleset: Ruleset) -> Iterator[Ct]:
    return (action for rule in ruleset.rules for action in rule.actions if isinstance(action, Ct))


def nat_rule(nat: CtNat) -> NatRule:
    """A range of `nat src` or `nat dst` as the tracker has it: its match is nobody's business."""
    return NatRule(NAT_KINDS[nat.kind], Range(nat.low, nat.high, nat.ports))


def settings_of(ruleset: Ruleset, config: Config) -> Config:
    """Settings of a tracker that can do all `ct` actions of a ruleset: their ranges behind the rules it has, equal ones once.

    Raises ConfigError for ranges that cannot be, or more than a tracker has room for.
    """
    asked = list(ct_actions(ruleset))
    ranges = dict.fromkeys(nat_rule(action.nat) for action in asked if action.nat is not None and action.nat.kind)
    return replace(
        config,
        nat=config.nat + tuple(rule for rule in ranges if rule not in config.nat),
        nat_actions=config.nat_actions or any(action.nat is not None for action in asked),
        helper_actions=config.helper_actions or any(action.helper is not None for action in asked),
    )


def ranges_of(config: Config) -> dict[NatRule, int]:
    """The places of a tracker's NAT rules; of equal ones the first."""
    return {rule: i for i, rule in reversed(list(enumerate(config.nat)))}


def range_of(nat: CtNat | None, ranges: dict[NatRule, int]) -> int | None:
    """What a `ct` action says of translation in the tracker's words (CtAction.nat). KeyError for a range that the tracker does not have."""
    if nat is None or not nat.kind:
        return None if nat is None else BARE_NAT
    return ranges[nat_rule(nat)]

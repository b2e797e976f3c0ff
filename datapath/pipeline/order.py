"""The order in which rules are tried: what Linux makes of priorities, masks and the order of writing.

Theory of operation: a chain's rules of one priority are one classifier of the kernel's (a tcf_proto); these come by priority, lowest first. Within
one, cls_flower keeps a list of masks, each with a hash table of the rules that have it, and goes through the masks in the order in which they came:
the first mask under which a rule is found decides, though rules of a later mask match as well. Fields, ranges and the protocol are part of a mask.
Example: at one priority `dst_port 80`, `ip_proto tcp`, `dst_port 443` are tried as 80, 443, tcp.
Not here: which rules match (classify), what follows `continue`: the next priority.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from datapath.pipeline.rules import Hook, Qdisc, Rule, Ruleset

Shape = tuple[tuple[str, int, bool], ...]


class Placed(NamedTuple):
    """A rule and where it goes on after `continue`: the place of the first rule of the next priority in the chain, which may not be there.

    at: its number among the rules that were put in order.
    """

    rule: Rule
    behind: int
    at: int


def shape_of(rule: Rule) -> Shape:
    """What cls_flower calls a rule's mask: its fields with their masks, a range being one of its own."""
    return tuple([(match.name, match.mask, match.high is not None) for match in rule.matches])


def in_order(rules: Iterable[Rule]) -> list[Placed]:
    """The rules of one chain as they are tried. rules: in the order written, each with its priority."""
    masks: dict[tuple[int, Shape], int] = {}
    ranked = []
    for at, rule in enumerate(rules):
        mask = masks.setdefault((rule.prio, shape_of(rule)), len(masks))
        ranked.append((rule.prio, mask, at, rule))
    ranked.sort(key=lambda each: each[:3])
    ends: dict[int, int] = {prio: i + 1 for i, (prio, *_) in enumerate(ranked)}
    return [Placed(rule, ends[prio], at) for prio, _, at, rule in ranked]


def bindings(qdiscs: Iterable[Qdisc]) -> dict[Hook, Hook]:
    """The hooks that are bound to a shared block, which has their rules: in Linux they have none of their own then."""
    found = {}
    for qdisc in qdiscs:
        for direction, block in (("ingress", qdisc.ingress_block), ("egress", qdisc.egress_block)):
            if block is not None:
                found[Hook(qdisc.device, direction)] = Hook("", "", block)
    return found


def chains_of(ruleset: Ruleset, hook: Hook) -> dict[int, list[Placed]]:
    """By chain, the rules of a hook in the order in which they are tried."""
    bound = bindings(ruleset.qdiscs).get(hook, hook)
    found: dict[int, list[Rule]] = {}
    for rule in ruleset.rules:
        if rule.hook == bound:
            found.setdefault(rule.chain, []).append(rule)
    return {chain: in_order(rules) for chain, rules in sorted(found.items())}

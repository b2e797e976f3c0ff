"""What tc takes, and hardly anybody means: rules and actions that can never come to anything, and drops of more than was thought of.

A doubt is said where it cannot be otherwise: what may match, or be reached, is left alone. Where one cause makes many rules useless, the first of
them stands for all. Not here: errors (rule_checks, validate), doubts about a single `ct` action (rule_checks).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from datapath.pipeline.findings import Findings
from datapath.pipeline.flower_keys import ethertype_text, match_text
from datapath.pipeline.order import in_order
from datapath.pipeline.rules import (
    CT_STATES,
    ETH_ALL,
    Action,
    Csum,
    Ct,
    Gact,
    Hook,
    Mirred,
    Pedit,
    Place,
    Police,
    Rule,
    Ruleset,
    controls_of,
    hook_text,
)
from datapath.pipeline.tc_print import action_text, control_text

Chains = dict[int, list[Rule]]
ARP_TOO = "no protocol, so that ARP and neighbour discovery are dropped as well: expected protocol ip, ipv6, ... (or all, if that is meant)"


def doubt(ruleset: Ruleset, found: Findings) -> None:
    """Rules beside each other. ruleset: right, with priorities given."""
    hooks: dict[Hook, dict[int, list[Rule]]] = defaultdict(lambda: defaultdict(list))
    for rule in ruleset.rules:
        hooks[rule.hook][rule.chain].append(rule)
        if not rule.actions:
            found.warn(rule.place, _named(rule), "no action, which is `action pass`: expected that, or another")
    ways = _Ways()
    for hook, written in hooks.items():
        chains = {chain: [placed.rule for placed in in_order(rules)] for chain, rules in written.items()}
        targets = _jumps(hook, chains, found)
        for chain, rules in chains.items():
            _behind(rules, ways, found)
            _loops(rules, ways, found)
            if chain and chain not in targets:
                first = written[chain][0]
                said = f"no rule of {hook_text(hook)} goes there: it is never tried"
                found.warn(first.parts.get("chain", first.place), f"chain {chain}", said)
        _untracked(hook, {chain: rules for chain, rules in chains.items() if not chain or chain in targets}, ways, found)


def _named(rule: Rule) -> str:
    return f"prio {rule.prio}"


def _more(number: int) -> str:
    return f" (and {number:,} more of this chain)" if number else ""


# --- actions ---------------------------------------------------------------------------------------------------------------------------


def reached(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    """The actions up to the first that nothing follows."""
    for i, action in enumerate(actions[:-1]):
        if (isinstance(action, Mirred) and action.kind == "redirect") or all(control.kind != "pipe" for _, control in controls_of([action])):
            return actions[: i + 1]
    return actions


def unreached(actions: tuple[Action, ...]) -> str:
    """Why some of them are never done; nothing if all are."""
    done = reached(actions)
    if len(done) == len(actions):
        return ""
    last = done[-1]
    if isinstance(last, Mirred) and last.kind == "redirect":
        return f"never done: '{action_text(last)}' before it takes the packet away"
    hint = ", as in tc where nothing is written" if isinstance(last, Pedit | Csum | Police) and last.control.kind == "pass" else ""
    return f"never done: what is before it ends with '{control_text(last.control)}'{hint}: expected pipe there"


def drops(actions: Sequence[Action]) -> bool:
    """Whether any packet may be dropped by what is asked for."""
    return any(control.kind == "drop" for _, control in controls_of(reached(tuple(actions))))


Way = tuple[str, int, bool | None]


class _Ways:
    """What may follow rules' actions: each a kind, a chain, and whether the packet is tracked then, None: as before.

    Many rules do the same, and have the very same actions: these are looked at once, which is what makes thousands of rules fast.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[Way, ...]] = {}  # by the identity of actions, which outlive this

    def of(self, rule: Rule) -> tuple[Way, ...]:
        found = self.known.get(id(rule.actions))
        if found is None:
            found = self.known[id(rule.actions)] = tuple(_ways(rule.actions))
        return found

    def go_on(self, rule: Rule) -> bool:
        """Whether the rules behind it may be tried for a packet that it matches."""
        return any(kind == "continue" for kind, _, _ in self.of(rule))


def _ways(actions: tuple[Action, ...]) -> Iterator[Way]:
    tracked: bool | None = None
    for action in reached(actions):
        if isinstance(action, Ct):
            tracked = not action.clear
        for _, control in controls_of([action]):
            yield control.kind, control.chain or 0, tracked


# --- chains ----------------------------------------------------------------------------------------------------------------------------


def _jumps(hook: Hook, chains: Chains, found: Findings) -> set[int]:
    """The chains that rules go to. Where there is no rule, that is a warning; tc takes it."""
    targets: set[int] = set()
    for rule in (rule for rules in chains.values() for rule in rules):
        for i, control in controls_of(rule.actions):
            if control.chain is not None:
                targets.add(control.chain)
                if control.chain not in chains:
                    said = f"{hook_text(hook)} has no rule there: packets pass"
                    found.warn(rule.parts.get(f"action {i}", rule.place), f"goto chain {control.chain}", said)
    return targets


def _behind(rules: list[Rule], ways: _Ways, found: Findings) -> None:
    """Rules of a chain, in the order in which they are tried, that come after one that takes everything of their protocol and ends.

    One with skip_sw or skip_hw takes everything from those alone that have the same. `continue` leaves out the rest of its prio, takers as well.
    """
    left: set[int] = set()
    takers: dict[tuple[int, bool, bool], Rule] = {}
    useless: dict[int, tuple[Rule, list[Rule]]] = {}
    for rule in rules:
        keys = [(protocol, *flags) for protocol in (rule.protocol, ETH_ALL) for flags in ((False, False), (rule.skip_sw, rule.skip_hw))]
        taker = next((takers[key] for key in keys if key in takers), None)
        if taker is not None:
            useless.setdefault(id(taker), (taker, []))[1].append(rule)
        elif ways.go_on(rule):
            left.add(rule.prio)
        elif not rule.matches and rule.prio not in left:
            takers[rule.protocol, rule.skip_sw, rule.skip_hw] = rule
    for taker, behind in useless.values():
        first, at = behind[0], _at(taker.place)
        what = "everything" if taker.protocol == ETH_ALL else f"everything of protocol {ethertype_text(taker.protocol)}"
        found.warn(first.place, _named(first), f"never tried: prio {taker.prio}{at} takes {what} before it{_more(len(behind) - 1)}")


def _loops(rules: list[Rule], ways: _Ways, found: Findings) -> None:
    """Rules that send a packet to the beginning of their own chain as it is: it comes to them again, as often as it may be sent at all.

    Not behind a rule that may change the packet and go on: the second time it may meet another one.
    """
    for rule in rules:
        done = reached(rule.actions)
        idle = all(isinstance(action, Gact) for action in done)
        if not idle and ways.go_on(rule):
            return
        if not done or not idle or rule.skip_sw:
            continue
        last = done[-1].control
        if (last.kind == "goto" and last.chain == rule.chain) or (last.kind == "reclassify" and not rule.chain):
            said = (
                "a loop: nothing has changed, so that each packet comes here again, until it may go to no further chain and is dropped (rule_chains)"
            )
            found.warn(rule.parts.get(f"action {len(done) - 1}", rule.place), control_text(last), said)


def _at(place: Place) -> str:
    return f", in line {place.line}," if place.line else ""


# --- what is tracked where --------------------------------------------------------------------------------------------------------------


def _untracked(hook: Hook, chains: Chains, ways: _Ways, found: Findings) -> None:
    """Rules that want +trk where no packet has been through `ct`. What is sent to another device is not tracked there any more."""
    seen = dict.fromkeys(chains, False)
    while (now := _round(chains, seen, ways)) != seen:
        seen = now
    for chain, rules in chains.items():
        idle = [rule for rule, tracked in zip(rules, _tracked(rules, seen[chain], ways), strict=True) if not tracked and _wants(rule)]
        if idle:
            first = idle[0]
            state = next(match_text(match) for match in first.matches if match.name == "ct_state")
            netfilter = " (in Linux, what its own netfilter has tracked)" if hook.direction == "egress" else ""
            said = f"never matches: no `ct` action comes before it, on any way to chain {chain}{netfilter}{_more(len(idle) - 1)}"
            found.warn(first.parts.get("ct_state", first.place), state, said)


def _wants(rule: Rule) -> bool:
    return any(match.name == "ct_state" and match.value & CT_STATES["trk"] for match in rule.matches)


def _round(chains: Chains, seen: dict[int, bool], ways: _Ways) -> dict[int, bool]:
    """Which chains tracked packets may come to, given for which that is known."""
    now = dict(seen)
    for chain, rules in chains.items():
        for rule, tracked in zip(rules, _tracked(rules, seen[chain], ways), strict=True):
            for kind, target, after in ways.of(rule):
                to = target if kind == "goto" else 0
                if kind in ("goto", "reclassify") and (tracked if after is None else after) and to in now:
                    now[to] = True
    return now


def _tracked(rules: list[Rule], tracked: bool, ways: _Ways) -> Iterator[bool]:
    """For each rule of a chain, whether a packet that comes to it may be tracked."""
    for rule in rules:
        yield tracked
        tracked = tracked or any(kind == "continue" and after for kind, _, after in ways.of(rule))

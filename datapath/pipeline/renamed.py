"""Rules whose devices are called by other names: functions of a NIC (pf0vf3@0000:08:00.0) as the interfaces that stand for them here.

Invariant: what was two devices stays two: two names of one interface are an error, for priorities and qdiscs were given to each by itself.
Not here: which interface stands for which function (whoever calls).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ctcore.errors import CtmirrorError
from datapath.pipeline.findings import rule_error
from datapath.pipeline.rules import Action, Hook, Match, Mirred, Place, Qdisc, Rule, Ruleset, Template


def renamed(ruleset: Ruleset, called: Callable[[str], str]) -> Ruleset:
    """The same rules at devices by their new names. called: the new name of each. Raises RuleError with what `called` raises, and where."""
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for device, place in named_devices(ruleset):
        if device in names:
            continue
        try:
            names[device] = called(device)
        except CtmirrorError as error:
            raise rule_error(place, f"dev {device}", str(error)) from None
        owner = owners.setdefault(names[device], device)
        if owner != device:
            raise rule_error(place, f"dev {device}", f"the same interface as {owner}: expected one name for it")
    if all(name == device for device, name in names.items()):
        return ruleset
    return Ruleset(
        tuple(replace(qdisc, device=names[qdisc.device]) for qdisc in ruleset.qdiscs),
        tuple(_template(template, names) for template in ruleset.templates),
        tuple(_rule(rule, names) for rule in ruleset.rules),
    )


def named_devices(ruleset: Ruleset) -> Iterator[tuple[str, Place]]:
    """Every device that is named, with where: at hooks, by `indev`, and where packets are sent to. As often as it is."""
    parts: tuple[tuple[Qdisc | Template | Rule, ...], ...] = (ruleset.qdiscs, ruleset.templates, ruleset.rules)
    for part in (each for listed in parts for each in listed):
        if isinstance(part, Qdisc):
            yield part.device, part.place
            continue
        if part.hook.block is None:
            yield part.hook.device, part.place
        for match in part.matches:
            if match.name == "indev":
                yield match.device, part.place
        for action in part.actions if isinstance(part, Rule) else ():
            if isinstance(action, Mirred):
                yield action.device, part.place


def _hook(hook: Hook, names: dict[str, str]) -> Hook:
    return hook if hook.block is not None else hook._replace(device=names[hook.device])


def _matches(matches: tuple[Match, ...], names: dict[str, str]) -> tuple[Match, ...]:
    return tuple(replace(match, device=names[match.device]) if match.name == "indev" else match for match in matches)


def _template(template: Template, names: dict[str, str]) -> Template:
    return replace(template, hook=_hook(template.hook, names), matches=_matches(template.matches, names))


def _rule(rule: Rule, names: dict[str, str]) -> Rule:
    actions: tuple[Action, ...] = tuple(replace(each, device=names[each.device]) if isinstance(each, Mirred) else each for each in rule.actions)
    return replace(rule, hook=_hook(rule.hook, names), matches=_matches(rule.matches, names), actions=actions)

"""A rules file installed in the kernel's TC as it stands, and again: what differs is changed, and nothing else.

    plan = planned(wanted, there)             what has to be done, and what is in the way; from values alone
    refused = carried_out(kernel, plan)       done, in an order in which no packet comes into a chain that is not whole yet

Theory of operation: what is ours has our cookie on its actions. A rule of ours that is listed as it is meant (`kept`) stays; one of the same name
and the same masks is replaced in place, since the kernel replaces no other; any other one is made, and what is ours and not meant is deleted.
Chains are filled before what leads to them, and emptied behind it. What sends packets to a device that has gone (rules.GONE) does not do what is
meant. A chain whose template changes is made anew, with all that is ours at its hook.
Invariants: a plan for what is there already is empty; nothing without our cookie is changed or deleted, but what is known to have been ours when
somebody replaced it in its place (tc.overwritten); qdiscs stay, for an empty one does nothing.
Not here: requests (encode), what is listed (ask), reading files (datapath.pipeline).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from types import TracebackType
from typing import NamedTuple

from datapath.commands.tc.ask import KernelTc, Listed, Refusal, line_of
from datapath.commands.tc.ask import hooks_of as of_qdisc
from datapath.commands.tc.decode import Installed, kept
from datapath.commands.tc.encode import Part
from datapath.pipeline import rules as tc
from datapath.pipeline.tc_print import chain_removal_line, hook_text, removal_line, rule_line

MARK = b"ctmirror/rules"  # the cookie of what is ours
ADD, REPLACE, DELETE = "add", "replace", "delete"
AHEAD = "it is not ours, and packets meet it before they come to rules that are"
Name = tuple[tc.Hook, int, int, int, int]  # hook, chain, prio, protocol, handle


class Step(NamedTuple):
    """One request. A template that is deleted goes with all of its chain."""

    do: str
    part: Part

    def line(self) -> str:
        """As tc has it, cookie and all."""
        if isinstance(self.part, tc.Rule):
            return removal_line(self.part) if self.do == DELETE else rule_line(self.part, MARK, self.do)
        return chain_removal_line(self.part) if self.do == DELETE and isinstance(self.part, tc.Template) else line_of(self.part)


@dataclass(frozen=True)
class Plan:
    """steps: in order; same: rules that stay as they are; conflicts: what is in the way, a line each: then nothing should be done; ahead: filters of
    others that packets may meet before they come to one of ours, a line each."""

    steps: tuple[Step, ...]
    same: int
    conflicts: tuple[str, ...]
    ahead: tuple[str, ...] = ()

    def count(self, do: str) -> int:
        """Rules of which this is done."""
        return sum(step.do == do and isinstance(step.part, tc.Rule) for step in self.steps)

    def without(self, refused: Iterable[Refusal]) -> Plan:
        """With those steps that were not refused. refused: of this very plan, for what is deleted may be equal to what is added."""
        parts = {id(each.part) for each in refused}
        return replace(self, steps=tuple(step for step in self.steps if id(step.part) not in parts))

    def told(self, refused: Collection[Refusal] = ()) -> str:
        """What is done, of rules: 3 added, 1 changed, 2 removed, 1 refused; 6 as they were."""
        done, rules = self.without(refused), sum(isinstance(each.part, tc.Rule) for each in refused)
        text = f"{done.count(ADD)} added, {done.count(REPLACE)} changed, {done.count(DELETE)} removed"
        text += f"{f', {rules} refused' if rules else ''}; {self.same} as they were"
        return text + (f"; {len(refused) - rules} refused of qdiscs and chains" if len(refused) > rules else "")


def name(rule: tc.Rule) -> Name:
    return rule.hook, rule.chain, rule.prio, rule.protocol, rule.handle


def ours(rule: Installed) -> bool:
    return bool(rule.counted) and all(counted.cookie == MARK for counted in rule.counted)


def marked(rule: tc.Rule) -> tc.Rule:
    """The same with an action, which a cookie can be on: nothing follows a rule without any, as if it said `pass`."""
    return rule if rule.actions else replace(rule, actions=(tc.Gact(tc.PASS),))


def hooks_of(ruleset: tc.Ruleset) -> list[tc.Hook]:
    """All that a file says something of."""
    hooks = [*(template.hook for template in ruleset.templates), *(rule.hook for rule in ruleset.rules)]
    hooks += [hook for qdisc in ruleset.qdiscs for hook in of_qdisc(qdisc)]
    return list(dict.fromkeys(hooks))


# --- what has to be done ------------------------------------------------------------------------------------------------------------------------


def planned(wanted: tc.Ruleset, there: Listed, overwritten: Collection[Name] = ()) -> Plan:
    """wanted: validated; there: what the kernel has at its hooks; overwritten: names of ours that others have given other contents."""
    conflicts: list[str] = []
    qdiscs = list(_qdiscs(wanted, there, conflicts))
    anew, templates = _templates(wanted, there, conflicts, overwritten)
    meant = {name(rule): rule for rule in map(marked, wanted.rules)}
    found = {name(each.rule): each for each in there.rules}
    keys = {_keys(each.rule) for each in there.rules}
    changed: list[Step] = []
    kept_names: set[Name] = set()
    for which, rule in meant.items():
        old = found.get(which)
        if old is not None and not ours(old) and which not in overwritten:
            conflicts.append(f"{rule_line(rule)}: there is another filter of this name, which is not ours")
        elif old is None and which in overwritten:  # by something that there are no words for
            changed.append(Step(REPLACE, rule))
        elif old is None or rule.hook in anew or not _replaceable(old.rule, kept(rule), keys):
            changed.append(Step(ADD, rule))
        else:
            kept_names.add(which)
            changed += [Step(REPLACE, rule)] if old.rule != kept(rule) or not ours(old) else []
    gone = [each.rule for which, each in found.items() if ours(each) and which not in kept_names]
    steps = _in_order(qdiscs, anew, templates, changed, gone)
    same = len(kept_names) - sum(step.do == REPLACE and name(step.part) in kept_names for step in changed if isinstance(step.part, tc.Rule))
    return Plan(tuple(steps), same, tuple(conflicts), tuple(_ahead(meant, there)))


def _ahead(meant: Collection[Name], there: Listed) -> Iterator[str]:
    """Of others, in chains of ours, and not behind all of ours; but what has the name of one of ours, which is another matter."""
    last: dict[tuple[tc.Hook, int], int] = {}
    for hook, chain, prio, *_ in meant:
        last[hook, chain] = max(prio, last.get((hook, chain), 0))
    for each in there.rules:
        rule = each.rule
        if not ours(each) and name(rule) not in meant and rule.prio <= last.get((rule.hook, rule.chain), 0):
            yield f"{rule_line(rule)}: {AHEAD}"
    own = {(*which[:3], which[4]) for which in meant}
    for one in there.foreign:
        place = one.place
        if place is not None and place not in own and place[2] <= last.get(place[:2], 0):
            hook, chain, prio, _ = place
            yield f"{hook_text(hook)} chain {chain} prio {prio}: {one}: {AHEAD}"


def removal(there: Listed, templates: Iterable[tc.Template] = ()) -> Plan:
    """All that is ours, of what is listed, and templates of a file, where nothing else is in their chains."""
    gone = sorted((each.rule for each in there.rules if ours(each)), key=lambda rule: rule.chain)
    used = {(each.rule.hook, each.rule.chain) for each in there.rules if not ours(each)}
    known = {_shape(template) for template in templates}
    chains = [Step(DELETE, each) for each in there.templates if _shape(each) in known and (each.hook, each.chain) not in used]
    return Plan((*(Step(DELETE, rule) for rule in gone), *chains), 0, ())


def _qdiscs(wanted: tc.Ruleset, there: Listed, conflicts: list[str]) -> Iterator[Step]:
    found = {qdisc.device: qdisc for qdisc in there.qdiscs}
    named = {qdisc.device for qdisc in wanted.qdiscs}
    devices = dict.fromkeys(hook.device for hook in hooks_of(wanted) if hook.block is None)
    for qdisc in (*wanted.qdiscs, *(tc.Qdisc(device) for device in devices if device not in named)):
        old = found.get(qdisc.device)
        if old is None:
            yield Step(ADD, qdisc)
        elif (old.ingress_block, old.egress_block) != (qdisc.ingress_block, qdisc.egress_block) or (old.kind, qdisc.kind) == ("ingress", "clsact"):
            conflicts.append(f"{line_of(qdisc)}: there is another one: {line_of(old)}")


def _shape(template: tc.Template) -> tuple[object, ...]:
    """What tells templates apart: masks, for the kernel keeps no values. Those of a chain without keys have no protocol."""
    keys = frozenset((match.name, match.mask, match.high is not None) for match in template.matches if match.mask)
    return template.hook, template.chain, template.protocol, keys


def _templates(wanted: tc.Ruleset, there: Listed, conflicts: list[str], overwritten: Collection[Name]) -> tuple[set[tc.Hook], list[Step]]:
    """Hooks at which all of ours is made anew, and chains deleted and made."""
    found = {(each.hook, each.chain): each for each in there.templates}
    steps: list[Step] = []
    anew: set[tc.Hook] = set()
    for template in wanted.templates:
        place = (template.hook, template.chain)
        old = found.get(place)
        if old is not None and _shape(old) == _shape(template):
            continue
        others = [
            each for each in there.rules if (each.rule.hook, each.rule.chain) == place and not ours(each) and name(each.rule) not in overwritten
        ]
        if others:
            conflicts.append(f"{line_of(template)}: there are filters in this chain that are not ours")
        anew.add(template.hook)
        steps += [Step(DELETE, old)] if old is not None else []
        steps.append(Step(ADD, template))
    return anew, steps


def _keys(rule: tc.Rule) -> tuple[object, ...]:
    """What no two filters of a priority may share."""
    return rule.hook, rule.chain, rule.prio, rule.matches


def _replaceable(old: tc.Rule, new: tc.Rule, there: set[tuple[object, ...]]) -> bool:
    """Whether the kernel replaces one by the other: the same fields with the same masks (fl_check_assign_mask of Linux), and no other filter in the
    way. there: the keys of all."""
    masks = [[(each.name, each.mask, each.high is None) for each in rule.matches] for rule in (old, new)]
    return masks[0] == masks[1] and (old.matches == new.matches or _keys(new) not in there)


def _in_order(
    qdiscs: list[Step], anew: set[tc.Hook], templates: list[Step], changed: list[Step], gone: list[tc.Rule]
) -> Iterator[Step]:  # fmt: skip
    """What would be in the way of a new rule goes first: of its priority, which may have another protocol or the same keys; or of a new template."""
    crowded = {(step.part.hook, step.part.chain, step.part.prio) for step in changed if isinstance(step.part, tc.Rule)}
    first: list[Step] = []
    last: list[Step] = []
    for rule in sorted(gone, key=lambda rule: rule.chain):
        (first if rule.hook in anew or (rule.hook, rule.chain, rule.prio) in crowded else last).append(Step(DELETE, rule))
    yield from qdiscs
    yield from first
    yield from templates
    yield from sorted(changed, key=_from_the_end)
    yield from last


def _from_the_end(step: Step) -> tuple[int, bool]:
    """Chain 0 last, where packets come in; in each what is replaced first, which may have the keys of what is new."""
    return (-step.part.chain, step.do == ADD) if isinstance(step.part, tc.Rule) else (0, False)


# --- doing it ---------------------------------------------------------------------------------------------------------------------------------------


def carried_out(kernel: KernelTc, plan: Plan) -> list[Refusal]:
    """What the kernel has refused; all else is done. kernel: with MARK as its cookie. Raises NetlinkError."""
    refused: list[Refusal] = []
    for do, steps in groupby(plan.steps, key=lambda step: step.do):
        refused += kernel.each([step.part for step in steps], do)
    return refused


def taken_away(kernel: KernelTc, hooks: Iterable[tc.Hook], templates: Iterable[tc.Template], made: Iterable[tc.Qdisc]) -> None:
    """All that is ours at hooks, with chains of templates, and qdiscs that we have made, unless somebody uses them by now."""
    carried_out(kernel, removal(kernel.listed(hooks), templates))
    for qdisc in made:
        left = kernel.listed([tc.Hook(qdisc.device, "ingress"), *([tc.Hook(qdisc.device, "egress")] if qdisc.kind == "clsact" else [])])
        if not (left.rules or left.templates or left.foreign):
            kernel.each([qdisc], DELETE)


class Keeper:
    """Rules that are installed as long as this is entered, and then taken away with all that was made for them; `keep`: they stay. in_vain: some were
    refused, and none is there: then nothing stays of what was made for them."""

    def __init__(self, kernel: KernelTc, wanted: tc.Ruleset, *, keep: bool = False) -> None:
        self.kernel, self.wanted, self.keep = kernel, wanted, keep
        self.plan = planned(wanted, kernel.listed(hooks_of(wanted)))
        self.refused: list[Refusal] = []
        self.in_vain = False

    def __enter__(self) -> Keeper:
        if not self.plan.conflicts:
            with ExitStack() as stack:
                stack.push(self)  # where this is not entered to its end
                self.refused = carried_out(self.kernel, self.plan)
                self.in_vain = bool(self.refused) and not any(map(ours, self.kernel.listed(hooks_of(self.wanted)).rules))
                stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if (self.keep and not self.in_vain) or self.plan.conflicts:
            return
        made = [step.part for step in self.plan.without(self.refused).steps if step.do == ADD]
        templates = [part for part in made if isinstance(part, tc.Template)] if self.in_vain else self.wanted.templates
        taken_away(self.kernel, hooks_of(self.wanted), templates, [part for part in made if isinstance(part, tc.Qdisc)])

"""Whether rules make sense together, and the priorities and handles that the kernel would give.

What tc or the kernel refuses is an error, and so is a key that the kernel would silently ignore. What they take, and hardly anybody means, is a
warning. A file with qdisc lines has to have one for every device and block that its rules are for, since tc refuses the rules otherwise; a file
without any is rules for hooks that somebody else makes.
Source: cls_flower, cls_api and act_ct of Linux 6.18. Not here: what one line may say (tc_text, yaml_rules), one rule by itself (rule_checks), what
hardly anybody means (doubts).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from datapath.pipeline.doubts import doubt
from datapath.pipeline.findings import Findings
from datapath.pipeline.flower_keys import ethertype_text, match_text
from datapath.pipeline.rule_checks import Looked, check_rule, check_template
from datapath.pipeline.rules import Hook, Match, Place, Qdisc, Rule, Ruleset, Template, hook_text, innermost

FIRST_PRIO = 0xC000  # of the first rule of a chain that has none (tcf_auto_prio)
ASKED_PRIO = 0x8000  # where the kernel looks for the prio below which the next one is given


def validate(ruleset: Ruleset, found: Findings) -> Ruleset:
    """The rules with priorities and handles given, if `found` has no errors afterwards."""
    for template in ruleset.templates:
        check_template(template, found)
    for rule in ruleset.rules:
        check_rule(rule, found)
    _hooks(ruleset, found)
    _templates(ruleset, found)
    done = replace(ruleset, rules=tuple(_numbered(ruleset.rules, found)))
    if not found.errors:  # what is wrong is not there, so that chains would seem to lack it
        doubt(done, found)
    return done


def resolved(ruleset: Ruleset) -> Ruleset:
    """The same for rules that were made and not read. Raises RuleError for the first that is wrong."""
    found = Findings()
    rules = validate(ruleset, found)
    found.check()
    return rules


# --- hooks -----------------------------------------------------------------------------------------------------------------------------


def _hooks(ruleset: Ruleset, found: Findings) -> None:
    devices: dict[str, Qdisc] = {}
    for qdisc in ruleset.qdiscs:
        if qdisc.device in devices:
            found.error(qdisc.place, f"dev {qdisc.device}", "has a qdisc already: expected one ingress or clsact for each device")
        if qdisc.kind == "ingress" and qdisc.egress_block is not None:
            found.error(qdisc.place, f"egress_block {qdisc.egress_block}", "ingress has no egress: expected clsact")
        devices[qdisc.device] = qdisc
    blocks = {block for qdisc in ruleset.qdiscs for block in (qdisc.ingress_block, qdisc.egress_block)}
    said: set[Hook] = set()
    everything: list[Looked] = [*ruleset.templates, *ruleset.rules]
    for each in everything:
        if each.hook not in said and (wrong := _hook_error(each.hook, devices, blocks)):
            said.add(each.hook)
            place = each.parts.get("dev", each.parts.get("block", each.place))
            found.error(place, hook_text(each.hook), wrong)


def _hook_error(hook: Hook, devices: dict[str, Qdisc], blocks: set[int | None]) -> str:
    """What is wrong with a hook, given the qdiscs of the file; nothing if it has none."""
    if not devices:
        return ""
    if hook.block is not None:
        return "" if hook.block in blocks else "expected a qdisc line with ingress_block or egress_block of that number"
    qdisc = devices.get(hook.device)
    if qdisc is None:
        return f"expected a line `tc qdisc add dev {hook.device} clsact` (or no qdisc lines at all)"
    if hook.direction == "egress" and qdisc.kind != "clsact":
        return f"{hook.device} has an ingress qdisc, which takes egress for ingress: expected clsact"
    shared = qdisc.ingress_block if hook.direction == "ingress" else qdisc.egress_block
    return f"is bound to a shared block: expected block {shared} instead of the device" if shared is not None else ""


# --- templates --------------------------------------------------------------------------------------------------------------------------


def _templates(ruleset: Ruleset, found: Findings) -> None:
    """A rule of a chain with a template may look at what the template looks at, and no more (fl_mask_fits_tmplt); its protocol is its own."""
    templates: dict[tuple[Hook, int], Template] = {}
    for template in ruleset.templates:
        if templates.setdefault((template.hook, template.chain), template) is not template:
            found.error(template.place, f"chain {template.chain}", "has a template already: expected one for each chain")
    late: set[Template] = set()
    for rule in ruleset.rules:
        template_of = templates.get((rule.hook, rule.chain))
        if template_of is None:
            continue
        if rule.place.line and rule.place.file == template_of.place.file and rule.place < template_of.place and template_of not in late:
            late.add(template_of)
            found.error(template_of.place, f"chain {rule.chain}", f"has rules already, in line {rule.place.line}: expected the template before them")
        _fits(rule, template_of, found)


def _fits(rule: Rule, template: Template, found: Findings) -> None:
    inner, allowed = innermost(rule.protocol, rule.matches), dict(_keys(template.protocol, template.matches))
    for (key, mask), match in zip(_keys(rule.protocol, rule.matches), rule.matches, strict=True):
        if mask & ~allowed.get(key, 0):
            place, said = rule.parts.get(match.name, rule.place), f"the template of chain {rule.chain} does not look at that"
            found.error(place, match_text(match, inner), f"{said}: expected its keys and masks")


def _keys(protocol: int, matches: Sequence[Match]) -> list[tuple[tuple[str, bool, int], int]]:
    """Name, whether a range, the ethertype where the same name is another field (addresses, ICMP types); and the mask."""
    inner = innermost(protocol, matches)
    of_family = ("src_ip", "dst_ip", "type", "code")
    masks = [match.mask if match.name != "indev" else 1 for match in matches]
    names = [(each.name, each.high is not None, inner if each.name in of_family else 0) for each in matches]
    return list(zip(names, masks, strict=True))


# --- priorities and handles -------------------------------------------------------------------------------------------------------------


def _numbered(rules: Sequence[Rule], found: Findings) -> list[Rule]:
    """Each rule with its prio and handle, given in the order in which tc would add them."""
    done: list[Rule] = []
    chains: dict[tuple[Hook, int], _Chain] = defaultdict(_Chain)
    for rule in rules:
        done.append(chains[rule.hook, rule.chain].add(rule, found))
    return done


class _Chain:
    """A chain as far as it is filled."""

    def __init__(self) -> None:
        self.protocols: dict[int, tuple[int, Place]] = {}  # by prio
        self.handles: dict[int, dict[int, Place]] = defaultdict(dict)  # by prio, by handle
        self.lowest_free: dict[int, int] = defaultdict(lambda: 1)
        self.same: dict[tuple[int, tuple[Match, ...]], Place] = {}
        self.upper = FIRST_PRIO + 1  # the lowest prio in the upper half

    def add(self, rule: Rule, found: Findings) -> Rule:
        prio = rule.prio or self._prio(rule, found)
        if prio >= ASKED_PRIO:
            self.upper = min(self.upper, prio)
        protocol, first = self.protocols.setdefault(prio, (rule.protocol, rule.place))
        if protocol != rule.protocol:
            place, own, second = rule.parts.get("prio", rule.place), ethertype_text(rule.protocol), ethertype_text(protocol)
            there = f"in line {first.line}" if first.line else "in another rule"
            said = f"has protocol {own} here, and {second} {there}: expected a prio of its own for each protocol of a chain"
            found.error(place, f"prio {prio}", said)
        handles = self.handles[prio]
        handle = rule.handle or self._handle(prio)
        if handle in handles:
            at = _at(handles[handle])
            found.error(rule.parts.get("handle", rule.place), f"handle {handle:#x}", f"prio {prio} of this chain has it{at}: expected another")
        handles.setdefault(handle, rule.place)
        other = self.same.setdefault((prio, rule.matches), rule.place)
        if other is not rule.place and protocol == rule.protocol:
            found.error(rule.place, f"prio {prio}", f"has a rule with the same keys{_at(other)}: expected other keys, or another prio")
        return rule if (rule.prio, rule.handle) == (prio, handle) else replace(rule, prio=prio, handle=handle)

    def _prio(self, rule: Rule, found: Findings) -> int:
        """One below the first that is in the upper half, or FIRST_PRIO: so a later rule is tried first (tcf_auto_prio)."""
        if self.upper <= ASKED_PRIO:
            found.error(rule.place, "", f"no priority is left to be given below {FIRST_PRIO}: expected prio N")
        return max(self.upper - 1, 1)

    def _handle(self, prio: int) -> int:
        """The lowest that is free, from 1."""
        while self.lowest_free[prio] in self.handles[prio]:
            self.lowest_free[prio] += 1
        return self.lowest_free[prio]


def _at(place: Place) -> str:
    return f", in line {place.line}" if place.line else ""

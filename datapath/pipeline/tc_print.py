"""Rules as a script of tc lines: one line for each qdisc, template and rule, in words that tc itself takes.

Everything is spelled out (what follows an action, what pedit retains), in the order that tc wants, so that the same rules always give the same text.
Invariant: parse(print_ruleset(rules)) is the rules again. Not here: rules that tc has no words for, which validate refuses.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from typing import Any

from datapath.pipeline import quantities
from datapath.pipeline.flower_keys import ethertype_text, match_text
from datapath.pipeline.header_fields import HEADER_FIELDS
from datapath.pipeline.rules import (
    GONE,
    Action,
    Control,
    Csum,
    Ct,
    Gact,
    Hook,
    Match,
    Mirred,
    Munge,
    Pedit,
    Police,
    Qdisc,
    Rule,
    Ruleset,
    Skbedit,
    Template,
    Vlan,
    innermost,
)
from datapath.pipeline.tc_pedit import field_text


def print_ruleset(ruleset: Ruleset) -> str:
    """The whole as text, with a line break behind each line."""
    lines = [*map(qdisc_line, ruleset.qdiscs), *map(template_line, ruleset.templates), *map(rule_line, ruleset.rules)]
    return "".join(f"{line}\n" for line in lines)


def qdisc_line(qdisc: Qdisc) -> str:
    words = ["tc qdisc add dev", shlex.quote(qdisc.device)]
    words += [f"ingress_block {qdisc.ingress_block}"] if qdisc.ingress_block is not None else []
    words += [f"egress_block {qdisc.egress_block}"] if qdisc.egress_block is not None else []
    return " ".join([*words, qdisc.kind])


def template_line(template: Template) -> str:
    words = ["tc chain add", hook_text(template.hook), f"protocol {ethertype_text(template.protocol)} chain {template.chain} flower"]
    return " ".join([*words, *_matches(template.protocol, template.matches)])


def rule_line(rule: Rule, cookie: bytes = b"", verb: str = "add") -> str:
    """cookie: on each action; verb: add, replace."""
    words = [f"tc filter {verb}", hook_text(rule.hook), f"protocol {ethertype_text(rule.protocol)}"]
    words += [f"prio {rule.prio}"] if rule.prio else []
    words += [f"chain {rule.chain}"]
    words += [f"handle {rule.handle:#x}"] if rule.handle else []
    words += ["flower", *_matches(rule.protocol, rule.matches)]
    words += [name for name in ("skip_sw", "skip_hw") if getattr(rule, name)]
    mark = f" cookie {cookie.hex()}" if cookie else ""
    return " ".join([*words, *(f"action {action_text(action)}{mark}" for action in rule.actions)])


def removal_line(rule: Rule) -> str:
    """Of one filter, by its name."""
    protocol = ethertype_text(rule.protocol)
    return f"tc filter del {hook_text(rule.hook)} protocol {protocol} prio {rule.prio} chain {rule.chain} handle {rule.handle:#x} flower"


def chain_removal_line(template: Template) -> str:
    return f"tc chain del {hook_text(template.hook)} chain {template.chain}"


def flags_text(rule: Rule) -> str:
    """Who carries a rule out, in the words of `tc filter show`: no NIC does here."""
    return " ".join([*(name for name in ("skip_sw", "skip_hw") if getattr(rule, name)), "not_in_hw"])


def hook_text(hook: Hook) -> str:
    return f"block {hook.block}" if hook.block is not None else f"dev {shlex.quote(hook.device)} {hook.direction}"


def _matches(protocol: int, matches: Iterable[Match]) -> list[str]:
    """What vlan_ethtype and cvlan_ethtype say has to come before whatever depends on it, as FIELDS has it."""
    matches = tuple(matches)
    inner = innermost(protocol, matches)
    return [f"indev {shlex.quote(match.device)}" if match.name == "indev" else match_text(match, inner) for match in matches]


# --- actions ---------------------------------------------------------------------------------------------------------------------------


def control_text(control: Control) -> str:
    return f"goto chain {control.chain}" if control.kind == "goto" else control.kind


def action_text(action: Action) -> str:
    """An action with what follows it: `ct zone 5 pipe`."""
    return " ".join(_ACTIONS[type(action)](action))


def masked_text(given: tuple[int, int], bits: int) -> str:
    """VALUE[/MASK] in hexadecimal."""
    value, mask = given
    return f"{value:#x}" if mask == (1 << bits) - 1 else f"{value:#x}/{mask:#x}"


def label_words(given: tuple[int, int]) -> str:
    value, mask = (quantities.label_text(part) for part in given)
    return value if given[1] == (1 << 128) - 1 else f"{value}/{mask}"


def range_text(low: object, high: object) -> str:
    return str(low) if low == high else f"{low}-{high}"


def helper_text(helper: tuple[str, int, int]) -> str:
    name, family, proto = helper
    return f"ipv{family}-{quantities.PROTO_NAMES.get(proto, proto)}-{name}"


def _gact(action: Gact) -> list[str]:
    return [control_text(action.control)]


def _ct(action: Ct) -> list[str]:
    words = ["ct", *(name for name in ("commit", "force", "clear") if getattr(action, name))]
    words += [f"zone {action.zone}"] if action.zone else []
    words += [f"mark {masked_text(action.mark, 32)}"] if action.mark is not None else []
    words += [f"label {label_words(action.label)}"] if action.label is not None else []
    words += [f"helper {helper_text(action.helper)}"] if action.helper is not None else []
    if (nat := action.nat) is not None:
        words += [" ".join(["nat", nat.kind]).rstrip()]
        words += [f"addr {range_text(nat.low, nat.high)}"] if nat.low is not None else []
        words += [f"port {range_text(*nat.ports)}"] if nat.ports is not None else []
    return [*words, control_text(action.control)]


def _mirred(action: Mirred) -> list[str]:
    words = ["mirred", action.direction, action.kind, "dev", shlex.quote(action.device) if action.device != GONE else "*"]
    return words if action.kind == "redirect" else [*words, control_text(action.control)]


def munge_text(munge: Munge) -> str:
    """One change without `munge`: ip ttl set 0x40 retain 0xff."""
    field = HEADER_FIELDS[munge.header, munge.field]
    value = f"{munge.header} {munge.field} {munge.op} {field_text(field, munge.value)}"
    return value if munge.mask == field.mask else f"{value} retain {munge.mask:#x}"


def _pedit(action: Pedit) -> list[str]:
    return ["pedit ex", *(f"munge {munge_text(munge)}" for munge in action.munges), control_text(action.control)]


def _csum(action: Csum) -> list[str]:
    return ["csum", *action.of, control_text(action.control)]


def class_text(value: int) -> str:
    return f"{value >> 16:x}:{value & 0xFFFF:x}"


def _skbedit(action: Skbedit) -> list[str]:
    words = ["skbedit"]
    words += [f"queue_mapping {action.queue}"] if action.queue is not None else []
    words += [f"priority {class_text(action.priority)}"] if action.priority is not None else []
    words += [f"mark {masked_text(action.mark, 32)}"] if action.mark is not None else []
    words += [f"ptype {action.ptype}"] if action.ptype else []
    return [*words, control_text(action.control)]


def _vlan(action: Vlan) -> list[str]:
    words = ["vlan", action.kind]
    words += [f"id {action.id}"] if action.id is not None else []
    words += [f"protocol {ethertype_text(action.protocol)}"] if action.protocol is not None else []
    words += [f"priority {action.priority}"] if action.priority is not None else []
    return [*words, control_text(action.control)]


def _police(action: Police) -> list[str]:
    words = ["police"]
    given = (
        ("rate", action.rate, "bit"),
        ("burst", action.burst, "b"),
        ("mtu", action.mtu, "b"),
        ("pkts_rate", action.packet_rate, ""),
        ("pkts_burst", action.packet_burst, ""),
    )
    words += [f"{name} {value}{unit}" for name, value, unit in given if value is not None]
    both = (control_text(action.exceed), control_text(action.control))
    # tc takes `goto chain N` only with blanks around the slash.
    return [*words, "conform-exceed", (" / " if any("goto" in each for each in both) else "/").join(both)]


_ACTIONS: dict[type, Callable[[Any], list[str]]] = {
    Gact: _gact,
    Ct: _ct,
    Mirred: _mirred,
    Pedit: _pedit,
    Csum: _csum,
    Skbedit: _skbedit,
    Vlan: _vlan,
    Police: _police,
}

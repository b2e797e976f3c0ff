"""Rules in YAML (1.2, so JSON as well), and back: the same rules as in tc lines, for people who generate them.

The text becomes plain values (yaml_text), which the models hold against their shape, and these become rules. An error of any of the three says the
line and column of the key that it is about; where that is, is looked up only then.
Needs the extra `rules`. Not here: the shape (yaml_models), which rules make sense together (validate).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from datapath.pipeline import rules, tc_print
from datapath.pipeline.doubts import ARP_TOO, drops
from datapath.pipeline.findings import Expected, Findings
from datapath.pipeline.flower_keys import PLAIN, behind_prefix, ethertype_text, plain_text, read_key
from datapath.pipeline.rules import (
    FIELD_ORDER,
    PIPE,
    Action,
    Control,
    Hook,
    Match,
    Place,
    RuleError,
    Ruleset,
    innermost,
)
from datapath.pipeline.tc_actions import CSUM_ORDER, MAX_ACTIONS
from datapath.pipeline.yaml_text import Document, Loc, libraries

if TYPE_CHECKING:
    from pydantic import BaseModel

    from datapath.pipeline import yaml_models

# --- values to rules ----------------------------------------------------------------------------------------------------------------------


def parse(text: str, name: str, found: Findings) -> Ruleset:
    """The rules of a text in YAML, priorities and handles as written. name: of the file, for places. Errors go to `found`."""
    try:
        document = Document(text, name)
    except RuleError as error:
        found.errors.append(error)
        return Ruleset()
    from pydantic import ValidationError

    from datapath.pipeline.yaml_models import RulesFile
    from datapath.pipeline.yaml_said import said

    read, at = _Reading(document, found), dict[str, Sequence[int]]()
    try:
        file = RulesFile.model_validate(document.value)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            found.error(*document.find(each["loc"]), said(each))
        sound, at = _sound(document.value, [each["loc"] for each in error.errors(include_url=False)], read)
        file = RulesFile.model_validate(sound)
    return Ruleset(
        tuple(_qdisc(each, read.place("qdiscs", i)) for i, each in zip(at.get("qdiscs", count()), file.qdiscs, strict=False)),
        tuple(read.template(i, each) for i, each in zip(at.get("templates", count()), file.templates, strict=False)),
        tuple(read.rule(i, each) for i, each in zip(at.get("rules", count()), file.rules, strict=False)),
    )


def _sound(value: Any, wrong: Sequence[Loc], read: _Reading) -> tuple[dict[str, Any], dict[str, Sequence[int]]]:
    """A file without the items that are wrong, so that the rest is looked at as well, and the numbers of those that stay, by their lists.

    Of an item that is wrong, the keys to match are held against what they take. Qdiscs go all together: rules without theirs would be errors.
    """
    if not isinstance(value, dict):
        return {}, {}
    broken: dict[str, dict[int, list[Loc]]] = defaultdict(lambda: defaultdict(list))
    for loc in wrong:
        if len(loc) > 1 and isinstance(loc[1], int):
            broken[str(loc[0])][loc[1]].append(loc[2:])
    lists = {str(loc[0]) for loc in wrong} - broken.keys() | ({"qdiscs"} & broken.keys())
    kept = {name: [i for i in range(len(items)) if i not in broken.get(name, ())] for name, items in value.items() if name not in lists}
    for name in ("templates", "rules"):
        for i, locs in broken.get(name, {}).items():
            if isinstance(value[name][i], dict):
                read.broken((name, i), value[name][i], locs)
    return {name: [value[name][i] for i in numbers] for name, numbers in kept.items()}, dict(kept)


def _qdisc(model: yaml_models.Qdisc, place: Place) -> rules.Qdisc:
    return rules.Qdisc(model.device, model.kind, model.ingress_block, model.egress_block, place)


def _hook(model: yaml_models.Hooked) -> Hook:
    return Hook("", "", model.block) if model.block is not None else Hook(model.device, model.direction)


class _Parts(Mapping[str, Place]):
    """Where the parts of a rule are, by their names in Rule.parts; looked up when somebody asks."""

    LOCS: ClassVar[dict[str, Loc]] = {
        "dev": ("device",),
        **{name: (name,) for name in ("block", "protocol", "chain", "prio", "handle")},
        **{name: ("match", name) for name in FIELD_ORDER},
        **{f"action {i}": ("actions", i) for i in range(MAX_ACTIONS)},
    }

    def __init__(self, document: Document, loc: Loc) -> None:
        self._document, self._loc = document, loc

    def __getitem__(self, part: str) -> Place:
        place = self._document.place((*self._loc, *self.LOCS[part]))
        if place is None:
            raise KeyError(part)
        return place

    def __iter__(self) -> Iterator[str]:
        return (part for part, loc in self.LOCS.items() if self._document.place((*self._loc, *loc)) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Reading:
    """Models to rules, and what is wrong with their keys."""

    def __init__(self, document: Document, found: Findings) -> None:
        self.document, self.found = document, found
        self.actions: dict[int, Action] = {}  # by the identity of their models, which outlive this

    def place(self, name: str, i: int) -> Place:
        """Of an item of a list at the top; a list that is an alias has places of its own only where it is looked up."""
        places = self.document.items.get(name)
        return places[i] if places is not None else self.document.find((name, i))[0]

    def template(self, i: int, model: yaml_models.Template) -> rules.Template:
        loc = ("templates", i)
        place, matches = self.place("templates", i), self.matches(model, loc)
        return rules.Template(_hook(model), model.protocol, model.chain, matches, place, _Parts(self.document, loc))

    def rule(self, i: int, model: yaml_models.Rule) -> rules.Rule:
        loc = ("rules", i)
        place, matches = self.place("rules", i), self.matches(model, loc)
        actions = tuple([self.action(each) for each in model.actions])
        if "protocol" not in model.model_fields_set and drops(actions):
            self.found.warn(place, "", ARP_TOO)
        return rules.Rule(
            _hook(model), model.protocol, matches, actions, model.prio or 0, model.chain, model.handle or 0, model.skip_sw, model.skip_hw,
            place, _Parts(self.document, loc),
        )  # fmt: skip

    def action(self, model: Control | yaml_models.Action) -> Action:
        """Equal ones are one model (yaml_models), and one action."""
        if id(model) not in self.actions:
            self.actions[id(model)] = rules.Gact(model) if isinstance(model, Control) else _ACTIONS[model.kind](getattr(model, model.kind))
        return self.actions[id(model)]

    def broken(self, loc: Loc, item: Mapping[str, Any], wrong: Sequence[Loc]) -> None:
        """What else is wrong with an item: values of keys to match, where those are right that say what they have to be."""
        from datapath.pipeline.yaml_models import Hooked

        given, unread = item.get("match"), {each[1] for each in wrong if each[:1] == ("match",) and len(each) > 1}
        if isinstance(given, dict) and ("protocol",) not in wrong and unread.isdisjoint(_TAGS):
            rest = {name: value for name, value in given.items() if name not in unread}
            self.matches(Hooked.model_validate({"block": 1, "protocol": item.get("protocol", "all"), "match": rest}), loc)

    def matches(self, model: yaml_models.Hooked, loc: Loc) -> tuple[Match, ...]:
        """The keys in the order of FIELDS; tags are read first, since they say of what kind addresses are."""
        given: BaseModel = model.match
        inner = model.protocol
        done: dict[str, Match] = {}
        for name in sorted(given.model_fields_set, key=_READ_ORDER.__getitem__):
            try:
                text = getattr(given, name)
                done[name] = read_key(name, text, inner, PLAIN)
                if "/" in text and (said := behind_prefix(done[name], text, inner)):
                    self.found.warn(*self.document.find((*loc, "match", name)), said)
                if name in _TAGS:
                    inner = innermost(model.protocol, done.values())
            except Expected as error:
                self.found.error(*self.document.find((*loc, "match", name)), str(error))
        return tuple(sorted(done.values(), key=_order))


def _order(match: Match) -> int:
    return FIELD_ORDER[match.name]


_TAGS = ("vlan_ethtype", "cvlan_ethtype")
_READ_ORDER = {name: (name not in _TAGS, order) for name, order in FIELD_ORDER.items()}


def _ct(model: yaml_models.Ct) -> rules.Ct:
    nat = None
    if model.nat is not None:
        kind = "src" if model.nat.src else "dst" if model.nat.dst else ""
        low, high = model.nat.src or model.nat.dst or (None, None)
        nat = rules.CtNat(kind, low, high, model.nat.port)
    return rules.Ct(model.zone, model.mark, model.label, model.commit, model.force, model.clear, nat, model.helper, model.then)


def _mirred(model: yaml_models.Mirred) -> rules.Mirred:
    kind = "redirect" if model.redirect is not None else "mirror"
    return rules.Mirred(kind, getattr(model, kind), model.direction, model.then)


def _csum(model: yaml_models.Csum) -> rules.Csum:
    return rules.Csum(tuple(sorted(set(model.of), key=CSUM_ORDER.index)), model.then)


_ACTIONS: dict[str, Callable[[Any], Action]] = {
    "ct": _ct,
    "mirred": _mirred,
    "pedit": lambda model: rules.Pedit(tuple(model.munge), model.then),
    "csum": _csum,
    "skbedit": lambda model: rules.Skbedit(model.mark, model.priority, model.queue, model.ptype or "", model.then),
    "vlan": lambda model: rules.Vlan(model.kind, model.id, model.protocol, model.priority, model.then),
    "police": lambda model: rules.Police(
        model.rate, model.burst, model.packet_rate, model.packet_burst, model.mtu, model.exceed, model.then
    ),
}  # fmt: skip


# --- rules to text -------------------------------------------------------------------------------------------------------------------------


def dump(ruleset: Ruleset) -> str:
    """The rules as YAML; parse() makes the same rules of it."""
    yaml = libraries()
    names = ("device", "kind", "ingress_block", "egress_block")
    whole = {
        "qdiscs": [_given({name: getattr(each, name) for name in names}) for each in ruleset.qdiscs],
        "templates": [_hooked(each) for each in ruleset.templates],
        "rules": [_rule_value(each) for each in ruleset.rules],
    }
    given = {name: value for name, value in whole.items() if value}
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(given, Dumper=dumper, sort_keys=False, default_flow_style=None, width=120) if given else "rules: []\n"


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """What is there: neither None, nor false, nor an empty text."""
    return {name: value for name, value in values.items() if value is not None and value is not False and value != ""}


def _hooked(each: rules.Rule | rules.Template) -> dict[str, Any]:
    hook, inner = each.hook, innermost(each.protocol, each.matches)
    where = {"block": hook.block} if hook.block is not None else {"device": hook.device, "direction": hook.direction}
    values = {**where, "protocol": ethertype_text(each.protocol), "chain": each.chain}
    return values | ({"match": {match.name: _number_or_text(plain_text(match, inner)) for match in each.matches}} if each.matches else {})


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isdecimal() and text == str(int(text)) else text


def _rule_value(rule: rules.Rule) -> dict[str, Any]:
    flags = {"prio": rule.prio or None, "handle": rule.handle or None, "skip_sw": rule.skip_sw, "skip_hw": rule.skip_hw}
    actions = [_action_value(action) for action in rule.actions]
    return _hooked(rule) | _given(flags) | ({"actions": actions} if actions else {})


def _action_value(action: Action) -> Any:
    if isinstance(action, rules.Gact):
        return tc_print.control_text(action.control)
    kind = type(action).__name__.lower()
    values = _given(_VALUES[kind](action))
    if action.control != (rules.PASS if kind == "police" else PIPE):
        values["then"] = tc_print.control_text(action.control)
    return {kind: values}


def _masked(given: tuple[int, int] | None, bits: int) -> str | None:
    return None if given is None else tc_print.masked_text(given, bits)


def _ct_value(action: rules.Ct) -> dict[str, Any]:
    nat = action.nat
    return {
        "zone": action.zone or None,
        "mark": _masked(action.mark, 32),
        "label": _masked(action.label, 128),
        "commit": action.commit,
        "force": action.force,
        "clear": action.clear,
        "nat": None if nat is None else _given({
            nat.kind or "src": None if nat.low is None else tc_print.range_text(nat.low, nat.high),
            "port": None if nat.ports is None else tc_print.range_text(*nat.ports),
        }),
        "helper": None if action.helper is None else tc_print.helper_text(action.helper),
    }  # fmt: skip


_VALUES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "ct": _ct_value,
    "mirred": lambda action: {action.kind: action.device, "direction": action.direction},
    "pedit": lambda action: {"munge": [tc_print.munge_text(munge) for munge in action.munges]},
    "csum": lambda action: {"of": list(action.of)},
    "skbedit": lambda action: {
        "mark": _masked(action.mark, 32), "priority": action.priority, "queue": action.queue, "ptype": action.ptype,
    },
    "vlan": lambda action: {
        "kind": action.kind, "id": action.id, "protocol": None if action.protocol is None else ethertype_text(action.protocol),
        "priority": action.priority,
    },
    "police": lambda action: {
        "rate": action.rate, "burst": action.burst, "mtu": action.mtu, "packet_rate": action.packet_rate,
        "packet_burst": action.packet_burst, "exceed": tc_print.control_text(action.exceed),
    },
}  # fmt: skip


def schema_text() -> str:
    """The JSON Schema of a rules file, as it is published in docs/rules.schema.json."""
    import json

    libraries()
    from datapath.pipeline.yaml_models import schema

    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"

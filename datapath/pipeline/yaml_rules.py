"""Rules in YAML (1.2, so JSON as well), and back: the same rules as in tc lines, for people who generate them.

The text becomes nodes, which know their places; nodes become plain values, which the models hold against their shape; and these become rules. An
error of any of the three says the line and column of the key that it is about. Aliases are copied, up to a number of nodes that no honest file has.
Needs the extra `rules`. Not here: the shape (yaml_models), which rules make sense together (validate).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from datapath.pipeline import rules, tc_print
from datapath.pipeline.findings import Expected, Findings, rule_error
from datapath.pipeline.flower_keys import PLAIN, ethertype_text, plain_text, read_key
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
from datapath.pipeline.tc_actions import CSUM_ORDER

if TYPE_CHECKING:
    from pydantic import BaseModel

    from datapath.pipeline import yaml_models

MAX_NODES = 4_000_000
MAX_DEPTH = 50
MISSING = "reading and writing YAML needs pydantic and PyYAML: pip install 'ctmirror[rules]'"
_INTEGER = re.compile(r"[-+]?[0-9]{1,50}|0x[0-9a-fA-F]{1,50}|0o[0-7]{1,50}")
_CONSTANTS = {"true": True, "false": False, "null": None, "~": None, "": None}
Loc = tuple[int | str, ...]


def _libraries() -> Any:
    """PyYAML, and the models; what is missing is said in one line."""
    try:
        import pydantic  # noqa: F401
        import yaml
    except ImportError:
        raise RuleError(MISSING) from None
    return yaml


@cache
def _loader(yaml: Any) -> Any:
    """PyYAML's loader without its opinion on what a scalar is: it has that of YAML 1.1, where 12:34:56 is a number."""

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def resolve(self, kind: object, value: object, implicit: object) -> str:
            return ""

    return Loader


# --- text to values -----------------------------------------------------------------------------------------------------------------------


class _Document:
    """The nodes of a file: its values, and where they are."""

    def __init__(self, text: str, name: str) -> None:
        yaml = _libraries()
        self.name, self.count = name, 0
        self.yaml = yaml
        try:
            self.root = yaml.compose(text, Loader=_loader(yaml))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = Place(name, mark.line + 1, mark.column + 1) if mark else Place(name)
            said = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
            raise rule_error(place, "", f"no YAML: {said}") from None
        except RecursionError:
            raise rule_error(Place(name), "", f"expected at most {MAX_DEPTH} levels") from None

    def place(self, node: Any) -> Place:
        return Place(self.name, node.start_mark.line + 1, node.start_mark.column + 1)

    def value(self, node: Any, depth: int = 0) -> Any:
        """A node as plain values. Raises RuleError for keys that come twice, and for more than anybody writes."""
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise rule_error(self.place(node), "", f"expected at most {MAX_DEPTH} levels and {MAX_NODES:,} values, aliases counted")
        if node.tag.startswith("!"):
            raise rule_error(self.place(node), node.tag, "expected no tag")
        if isinstance(node, self.yaml.ScalarNode):
            return _scalar(node)
        if isinstance(node, self.yaml.SequenceNode):
            return [self.value(each, depth + 1) for each in node.value]
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, self.yaml.ScalarNode):
                raise rule_error(self.place(key), "", "expected a word as key")
            if key.value in found:
                raise rule_error(self.place(key), key.value, "expected it once")
            found[key.value] = self.value(value, depth + 1)
        return found

    def find(self, loc: Loc) -> tuple[Place, str]:
        """Where a path of keys leads, as far as it does, and what stands there: the key with its value."""
        node, place, text = self.root, self.place(self.root), ""
        for step in loc:
            if isinstance(node, self.yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                place, text = self.place(node), _shown(node)
            elif isinstance(node, self.yaml.MappingNode):
                pair = next(((key, value) for key, value in node.value if key.value == step), None)
                if pair is None:
                    continue  # the name of a form of the models, not of the file
                node = pair[1]
                place, text = self.place(pair[0]), f"{step}: {_shown(node)}".removesuffix(": ")
        return place, text


def _shown(node: Any) -> str:
    return node.value if isinstance(node.value, str) else ""


def _scalar(node: Any) -> Any:
    """A plain scalar may be a number, true, false or null (YAML 1.2, core schema); all else is text."""
    text = node.value
    if node.style:
        return text
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    return int(text, 0 if text[:2] in ("0x", "0o") else 10) if _INTEGER.fullmatch(text) else text


# --- values to rules ----------------------------------------------------------------------------------------------------------------------


def parse(text: str, name: str, found: Findings) -> Ruleset:
    """The rules of a text in YAML, priorities and handles as written. name: of the file, for places. Errors go to `found`."""
    try:
        document = _Document(text, name)
        value = {} if document.root is None else document.value(document.root)
    except RuleError as error:
        found.errors.append(error)
        return Ruleset()
    from pydantic import ValidationError

    from datapath.pipeline.yaml_models import RulesFile

    try:
        file = RulesFile.model_validate(value)
    except ValidationError as error:
        for each in error.errors(include_url=False, include_input=False):
            found.error(*document.find(each["loc"]), _said(each))
        return Ruleset()
    return Ruleset(
        tuple(_qdisc(each, document.find(("qdiscs", i))[0]) for i, each in enumerate(file.qdiscs)),
        tuple(_template(each, document, ("templates", i), found) for i, each in enumerate(file.templates)),
        tuple(_rule(each, document, ("rules", i), found) for i, each in enumerate(file.rules)),
    )


def _said(error: Mapping[str, Any]) -> str:
    """What pydantic has against a value, as we say it."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        return "no such key here"
    if error["type"] == "missing":
        return f"expected {error['loc'][-1]}"
    return str(error["msg"]).replace("Input should be", "expected").replace("Field required", "expected it")


def _qdisc(model: yaml_models.Qdisc, place: Place) -> rules.Qdisc:
    return rules.Qdisc(model.device, model.kind, model.ingress_block, model.egress_block, place)


def _hook(model: yaml_models.Hooked) -> Hook:
    return Hook("", "", model.block) if model.block is not None else Hook(model.device, model.direction)


def _template(model: yaml_models.Template, document: _Document, loc: Loc, found: Findings) -> rules.Template:
    matches, parts = _matches(model, document, loc, found)
    return rules.Template(_hook(model), model.protocol, model.chain, matches, document.find(loc)[0], parts)


def _rule(model: yaml_models.Rule, document: _Document, loc: Loc, found: Findings) -> rules.Rule:
    matches, parts = _matches(model, document, loc, found)
    actions = []
    for i, each in enumerate(model.actions):
        parts[f"action {i}"] = document.find((*loc, "actions", i))[0]
        actions.append(rules.Gact(each) if isinstance(each, Control) else _ACTIONS[each.kind](getattr(each, each.kind)))
    return rules.Rule(
        _hook(model), model.protocol, matches, tuple(actions), model.prio or 0, model.chain, model.handle or 0,
        model.skip_sw, model.skip_hw, document.find(loc)[0], parts,
    )  # fmt: skip


def _matches(model: yaml_models.Hooked, document: _Document, loc: Loc, found: Findings) -> tuple[tuple[Match, ...], dict[str, Place]]:
    """The keys in the order of FIELDS, and where they are; tags first, since they say of what kind addresses are."""
    given: BaseModel = model.match
    done: list[Match] = []
    named = {"device": "dev", "block": "block", "protocol": "protocol", "chain": "chain", "prio": "prio", "handle": "handle"}
    parts = {part: document.find((*loc, name))[0] for name, part in named.items() if name in model.model_fields_set}
    for name in sorted(given.model_fields_set, key=lambda name: (name not in ("vlan_ethtype", "cvlan_ethtype"), FIELD_ORDER[name])):
        place, text = document.find((*loc, "match", name))
        parts[name] = place
        try:
            done.append(read_key(name, getattr(given, name), innermost(model.protocol, done), PLAIN))
        except Expected as error:
            found.error(place, text, str(error))
    return tuple(sorted(done, key=lambda match: FIELD_ORDER[match.name])), parts


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
    yaml = _libraries()
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

    _libraries()
    from datapath.pipeline.yaml_models import schema

    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"

"""What pydantic has against a value, in the words of whoever wrote the YAML: what was expected, with an example, and no name of a class.

Not here: the shape itself (yaml_models), where the value stands (yaml_text).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from datapath.pipeline.flower_keys import REFUSED_KEYS
from datapath.pipeline.rules import FIELD
from datapath.pipeline.yaml_models import keys_at
from datapath.pipeline.yaml_text import Loc

# What a mapping looks like, by the key that it stands behind, or the list that it is an item of.
MAPPINGS = {
    "match": "`match: {ip_proto: tcp, dst_port: 80}`",
    "ct": "`ct: {zone: 5, commit: true}`",
    "nat": "`nat: {src: 192.0.2.1}`, or `nat: {}` for the mapping there is",
    "mirred": "`mirred: {redirect: eth1}`",
    "pedit": "`pedit: {munge: [ip ttl decrement]}`",
    "csum": "`csum: {of: [ip4h, tcp]}`",
    "skbedit": "`skbedit: {mark: 5}`",
    "vlan": "`vlan: {kind: pop}`",
    "police": "`police: {rate: 10mbit, burst: 100k}`",
    "rules": "`- {device: eth0, protocol: ip, prio: 1, actions: [drop]}`",
    "templates": "`- {device: eth0, protocol: ip, chain: 1, match: {dst_ip: 0.0.0.0/0}}`",
    "qdiscs": "`- {device: eth0, kind: clsact}`",
    "actions": "`- drop` or `- ct: {zone: 5}`",
}
WHOLE = "`rules: [{device: eth0, protocol: ip, prio: 1, actions: [drop]}]`"


def said(error: Mapping[str, Any]) -> str:
    """What is to be said of one of pydantic's errors."""
    loc, kind = error["loc"], error["type"]
    if not loc:
        return f"YAML rules go under `rules:`, as in {WHOLE}"
    if kind == "value_error":
        several = isinstance(error["input"], list | dict) and loc[-2:-1] == ("match",)
        return _one_value(str(loc[-1])) if several else str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        refused = REFUSED_KEYS.get(str(loc[-1])) if loc[-2:-1] == ("match",) else None
        return refused or f"no such key here: {_meant(loc)}"
    if kind == "missing":
        return f"{loc[-1]} is missing: expected it"
    if kind in _SAID:
        return _SAID[kind](error)
    return str(error["msg"]).replace("Input should be", "expected")


def _meant(loc: Loc) -> str:
    """Which keys there are where a path leads to one that is none: the one that looks like it, or else all."""
    known, word = keys_at(loc[:-1]), str(loc[-1])
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


def _one_value(name: str) -> str:
    return "expected one value" + (", or a range, as in 80-90" if FIELD[name].ranged else "") + ": a rule for each"


def _mapping(error: Mapping[str, Any]) -> str:
    """An item of a list is like others of that list."""
    names = [step for step in error["loc"] if step in MAPPINGS]
    return f"expected keys, as in {MAPPINGS[names[-1]]}" if names else "expected keys with values"


def _list(error: Mapping[str, Any]) -> str:
    name, given = str(error["loc"][-1]), error["input"]
    if isinstance(given, str | int) and name in ("actions", "munge", "of"):
        return f"expected a list: `{name}: [{given}]`"
    return f"expected a list, each item of it as in {MAPPINGS[name]}" if name in MAPPINGS else "expected a list"


def _whole(error: Mapping[str, Any]) -> str:
    given = error["input"]
    quoted = isinstance(given, str) and given.isdecimal()
    return f"expected a number without quotes: {given}" if quoted else "expected a whole number"


_SAID = {
    "model_type": _mapping,
    "dict_type": _mapping,
    "model_attributes_type": _mapping,
    "list_type": _list,
    "int_type": _whole,
    "bool_type": lambda error: "expected true or false",
    "too_short": lambda error: "expected at least one",
}

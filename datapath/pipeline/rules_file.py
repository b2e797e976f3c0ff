"""A rules file, whatever it is written in: recognised by content, read, validated.

Not here: tc lines (tc_text), YAML (yaml_rules), what makes sense (validate).
"""

from __future__ import annotations

import gc
import re
import sys

from datapath.export import STDOUT
from datapath.pipeline import tc_text
from datapath.pipeline.findings import Findings, rule_error
from datapath.pipeline.rules import Place, Ruleset
from datapath.pipeline.validate import validate

# How the first line begins that says anything.
_YAML = re.compile(r"""---|%YAML|-\s|-$|[{\[]|["']?[A-Za-z_]+["']?\s*:(\s|$)""")


def load(name: str, found: Findings | None = None) -> Ruleset:
    """The rules of a file, `-`: of stdin. found: where warnings go, lost without it. Raises RuleError for the first thing that is wrong."""
    found = Findings() if found is None else found
    rules = read(name, found)
    found.check()
    return rules


def read(name: str, found: Findings) -> Ruleset:
    """The rules of a file with all that is wrong with them: useless if `found` has errors. Raises RuleError if it cannot be read at all."""
    return parse(_text(name), "stdin" if name == STDOUT else name, found)


def parse(text: str, name: str, found: Findings) -> Ruleset:
    """The same of a text. name: for places.

    The collector of cycles is off meanwhile: there are none, and it would go through all that is read again and again, for half of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        ruleset = _parse(text, name, found)
        if not ruleset.rules and not found.errors:
            found.warn(Place(name), "", "no rules: everything passes untracked")
        return ruleset
    finally:
        if was_on:
            gc.enable()


def _parse(text: str, name: str, found: Findings) -> Ruleset:
    if is_yaml(text):
        from datapath.pipeline.yaml_rules import parse as parse_yaml

        return validate(parse_yaml(text, name, found), found)
    return validate(tc_text.parse(text, name, found), found)


def is_yaml(text: str) -> bool:
    """Whether it is YAML (or JSON); if not, tc lines."""
    lines = (line.strip() for line in text.split("\n"))
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return _YAML.match(first) is not None


def _text(name: str) -> str:
    try:
        if name == STDOUT:
            data = sys.stdin.buffer.read()
        else:
            with open(name, "rb") as file:
                data = file.read()
    except OSError as error:
        raise rule_error(Place(name), "", f"cannot be read: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise rule_error(Place(name, line), "", f"byte {error.start} is no UTF-8: expected tc lines or YAML") from None

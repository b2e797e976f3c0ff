"""YAML (1.2, so JSON as well) as plain values, and where they stand.

The text is read once, event by event, into values; of the items of the lists at the top (rules) the place is kept. Other places are asked for only
where something is wrong: then the text is read again, into nodes, which know theirs. Aliases are values that are there already, but count as if
copied, up to a number of values that no honest file has.
Needs the extra `rules`. Not here: what the values mean (yaml_rules), and their shape (yaml_models).
"""

from __future__ import annotations

import re
from functools import cache, cached_property
from typing import Any, NamedTuple

from datapath.extras import remedy
from datapath.pipeline.findings import rule_error
from datapath.pipeline.rules import Place, RuleError

MAX_VALUES = 4_000_000
MAX_DEPTH = 50
TAB = "a tab: expected spaces, YAML takes no tabs to indent lines"
MISSING = f"reading and writing YAML needs pydantic and PyYAML: {remedy('rules')}"
_INTEGER = re.compile(r"[-+]?[0-9]{1,50}|0x[0-9a-fA-F]{1,50}|0o[0-7]{1,50}")
_CONSTANTS = {"true": True, "false": False, "null": None, "~": None, "": None}
_FIRST = "0123456789+-tfnTFN~"  # how what is no text begins, if it is not empty
Loc = tuple[int | str, ...]


def libraries() -> Any:
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


def _unread(error: Any, text: str, name: str) -> RuleError:
    """What PyYAML has against a text."""
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    if mark and is_tab(text, mark):
        said = TAB
    return rule_error(Place(name, mark.line + 1, mark.column + 1) if mark else Place(name), "", f"no YAML: {said}")


def is_tab(text: str, mark: Any) -> bool:
    """Whether it is a tab that PyYAML stumbled over."""
    return "".join(text.split("\n")[mark.line : mark.line + 1])[mark.column : mark.column + 1] == "\t"


class Document:
    """A file's values. name: of the file, for places.

    value: of the whole, {} if there is nothing; items: the places of what the lists at the top hold, by the lists' names. Raises RuleError for what
    is no YAML, for keys that come twice, and for more than anybody writes.
    """

    def __init__(self, text: str, name: str) -> None:
        yaml = libraries()
        self.name, self._text = name, text
        try:
            reader = _Reader(yaml, text, name)
            self.value = reader.document()
        except yaml.YAMLError as error:
            raise _unread(error, text, name) from None
        self.items = reader.items

    @cached_property
    def _root(self) -> Any:
        yaml = libraries()
        return yaml.compose(self._text, Loader=_loader(yaml))

    def find(self, loc: Loc) -> tuple[Place, str]:
        """Where a path of keys leads, as far as it does, and what stands there: the key with its value."""
        spot = self._spot(loc)
        return spot.place, spot.text

    def place(self, loc: Loc) -> Place | None:
        """The same, if it leads to its end."""
        spot = self._spot(loc)
        return spot.place if spot.steps == len(loc) else None

    def _spot(self, loc: Loc) -> _Spot:
        node, text, steps = self._root, "", 0
        if node is None:
            return _Spot(Place(self.name), "", 0)
        place = _place(self.name, node)
        for step in loc:
            if isinstance(step, int) and node.id == "sequence" and step < len(node.value):
                node = node.value[step]
                place, text = _place(self.name, node), _shown(node)
            elif node.id == "mapping":
                pair = next(((key, value) for key, value in node.value if key.value == step), None)
                if pair is None:
                    continue  # the name of a form of the models, not of the file
                node = pair[1]
                place, text = _place(self.name, pair[0]), f"{step}: {_shown(node)}".removesuffix(": ")
            else:
                break
            steps += 1
        return _Spot(place, text, steps)


class _Spot(NamedTuple):
    """Where a path of keys leads: steps of it that the file has."""

    place: Place
    text: str
    steps: int


def _place(name: str, spot: Any) -> Place:
    """Where a node or an event begins."""
    return Place(name, spot.start_mark.line + 1, spot.start_mark.column + 1)


def _shown(node: Any) -> str:
    """A scalar as it is written: whether in quotes may be what is wrong with it."""
    if not isinstance(node.value, str):
        return ""
    return f"{node.style}{node.value}{node.style}" if node.style in ("'", '"') else node.value


# --- text to values -----------------------------------------------------------------------------------------------------------------------


class _Anchored(NamedTuple):
    """What an alias stands for: the value, how many values it is, how many levels."""

    value: Any
    values: int
    levels: int


class _Reader:
    """Events to values.

    count, deepest: values so far, and the deepest level since an anchor began, those behind aliases as if they were there again; items: see
    Document.
    """

    def __init__(self, yaml: Any, text: str, name: str) -> None:
        self.name, self.kinds = name, yaml.events
        self.next = _loader(yaml)(text).get_event
        self.count = self.deepest = 0
        self.scalars = _Scalars()
        self.anchors = dict[str, _Anchored]()
        self.items = dict[str, list[Place]]()

    def document(self) -> Any:
        """The value of the only document; {} if there is none."""
        self.next()  # the stream begins
        if isinstance(self.next(), self.kinds.StreamEndEvent):
            return {}
        value = self.value(self.next(), 0, "")
        self.next()  # the document ends
        if not isinstance(behind := self.next(), self.kinds.StreamEndEvent):
            raise rule_error(_place(self.name, behind), "", "expected one document")
        return value

    def value(self, event: Any, depth: int, of: str) -> Any:
        """The value that begins with an event. of: the key at the top that it belongs to. Raises RuleError."""
        if event.anchor:
            return self.alias(event, depth) if type(event) is self.kinds.AliasEvent else self.anchored(event, depth, of)
        return self.bare(event, depth, of)

    def bare(self, event: Any, depth: int, of: str) -> Any:
        """A value, whatever its anchor."""
        if event.tag and event.tag.startswith("!"):
            raise rule_error(_place(self.name, event), event.tag, "expected no tag")
        kind = type(event)
        if kind is self.kinds.ScalarEvent:
            return event.value if event.style else self.scalars[event.value]
        if depth > self.deepest:
            self.deepest = depth
            self.check(event)
        found = self.mapping(depth, of) if kind is self.kinds.MappingStartEvent else self.sequence(depth, of)
        self.count += len(found)
        return found

    def check(self, event: Any) -> None:
        if self.count > MAX_VALUES or self.deepest >= MAX_DEPTH:
            raise rule_error(_place(self.name, event), "", f"expected at most {MAX_DEPTH} levels and {MAX_VALUES:,} values, aliases counted")

    def sequence(self, depth: int, of: str) -> list[Any]:
        end, following, found = self.kinds.SequenceEndEvent, self.next, list[Any]()
        places = self.items.setdefault(of, []) if depth == 1 else None
        while type(event := following()) is not end:
            if places is not None:
                places.append(_place(self.name, event))
            found.append(self.value(event, depth + 1, of))
        return found

    def mapping(self, depth: int, of: str) -> dict[str, Any]:
        """The keys and their values. What nearly all values are, a bare scalar, is read on the spot."""
        end, scalar, following, known, found = self.kinds.MappingEndEvent, self.kinds.ScalarEvent, self.next, self.scalars, dict[str, Any]()
        while type(key := following()) is not end:
            if type(key) is not scalar:
                raise rule_error(_place(self.name, key), "", "expected a word as key")
            name = key.value
            if name in found:
                raise rule_error(_place(self.name, key), name, "expected it once")
            event = following()
            if type(event) is scalar and not event.tag and not event.anchor:
                found[name] = event.value if event.style else known[event.value]
            else:
                found[name] = self.value(event, depth + 1, of if depth else name)
        return found

    def anchored(self, event: Any, depth: int, of: str) -> Any:
        """A value that aliases may stand for, with how much it is."""
        before, outer, self.deepest = self.count, self.deepest, depth
        value = self.bare(event, depth, of)
        self.anchors[event.anchor] = _Anchored(value, self.count - before, self.deepest - depth)
        self.deepest = max(self.deepest, outer)
        return value

    def alias(self, event: Any, depth: int) -> Any:
        """What its anchor has, which has to be whole by then."""
        meant = self.anchors.get(event.anchor)
        if meant is None:
            raise rule_error(_place(self.name, event), f"*{event.anchor}", "expected an anchor of this name before it")
        self.count += meant.values
        self.deepest = max(self.deepest, depth + meant.levels)
        self.check(event)
        return meant.value


class _Scalars(dict[str, Any]):
    """Plain scalars by their text, of which most come again: numbers, true, false and null (YAML 1.2, core schema); all else is text."""

    def __missing__(self, text: str) -> Any:
        self[text] = value = _scalar(text)
        return value


def _scalar(text: str) -> Any:
    if text[:1] not in _FIRST:
        return text
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    return int(text, 0 if text[:2] in ("0x", "0o") else 10) if _INTEGER.fullmatch(text) else text

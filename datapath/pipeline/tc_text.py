"""A script of tc lines, verbatim, as rules: `tc qdisc|filter|chain add|replace ...`, one after the other.

    tc qdisc add dev eth0 clsact
    tc filter add dev eth0 ingress protocol ip prio 2 chain 0 flower ct_state -trk ip_proto tcp action ct zone 5 pipe action goto chain 1

Words may be cut short as in tc if only one word begins so. The order of keys does not matter, though it does to tc: what we print is in tc's order.
`tc` itself may be left out, as in the files of `tc -batch`. All errors of a script are found, each in one line with its place; a command with one is
left out. Not here: what the lines mean together (validate), words (shell_words), keys and actions (flower_keys, tc_actions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datapath.pipeline import quantities
from datapath.pipeline.doubts import ARP_TOO, drops
from datapath.pipeline.findings import Expected, Findings, rule_error
from datapath.pipeline.flower_keys import KEYS, REFUSED_KEYS, TC, behind_prefix, device, read_key
from datapath.pipeline.quantities import keyword, number
from datapath.pipeline.rules import (
    ETH_ALL,
    FIELD_ORDER,
    Action,
    Hook,
    Match,
    Place,
    Police,
    Qdisc,
    Rule,
    RuleError,
    Ruleset,
    Template,
    innermost,
)
from datapath.pipeline.shell_words import Cursor, Parts, Word, commands, fail
from datapath.pipeline.tc_actions import MAX_CHAIN, read_actions

OBJECTS = ("qdisc", "filter", "chain")
VERBS = ("add", "replace")
# Classifiers and qdiscs by the numbers of their hooks: major ffff, and the kernel's TC_H_MIN_INGRESS and _EGRESS.
PARENTS = {"ffff:": "ingress", "ffff:0": "ingress", "ffff:fff1": "ingress", "ffff:fff2": "ingress", "ffff:fff3": "egress"}
FLAGS = ("skip_sw", "skip_hw", "verbose")


@dataclass
class _Script:
    """What has been read so far, by what makes an object that `replace` finds again."""

    qdiscs: dict[object, Qdisc] = field(default_factory=dict)
    templates: dict[object, Template] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    numbered: dict[object, int] = field(default_factory=dict)  # rules that have a prio and a handle, by their places in the list
    # Actions by their words, and which words they begin with, by their names in Rule.parts.
    done: dict[tuple[str, ...], tuple[tuple[Action, ...], dict[str, int]]] = field(default_factory=dict)


def parse(text: str, name: str, found: Findings) -> Ruleset:
    """The rules of a script, priorities and handles as written. name: of the file, for places. Errors go to `found`."""
    script = _Script()
    for cursor in commands(text, name, found):
        try:
            _command(cursor, script, found)
        except RuleError as error:
            found.errors.append(error)
    return Ruleset(tuple(script.qdiscs.values()), tuple(script.templates.values()), tuple(script.rules))


def _command(cursor: Cursor, script: _Script, found: Findings) -> None:
    first = cursor.next("tc")
    tc = first.text == "tc" or first.text.endswith("/tc")
    kind = cursor.value(first, ", ".join(OBJECTS)) if tc else first
    name = keyword(kind.text, OBJECTS)
    if name is None:
        known = "expected tc qdisc, tc filter or tc chain"
        raise fail(kind, f"{known} add or replace" if tc else f"no tc line: a rules file has nothing else of a script; {known}")
    verb = cursor.value(kind, "add or replace")
    chosen = keyword(verb.text, VERBS)
    if chosen is None:
        raise rule_error(kind.place, f"{kind.text} {verb.text}", "a rules file says what is there: expected add or replace")
    _COMMANDS[name](cursor, cursor.places.first, chosen == "replace", script, found)


# --- what comes before the kind of a qdisc, filter or chain ------------------------------------------------------------------------------


class _Head:
    """Options by name, each once, and which words they are."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.values: dict[str, Any] = {}
        self.at: dict[str, int] = {}

    def put(self, name: str, at: int, value: Any) -> None:
        """What the word at `at` says."""
        if name in self.values:
            other = " (ingress, egress and parent say the same)" if name == "direction" else ""
            raise fail(self.cursor.word(at), f"expected {name} once{other}")
        self.values[name], self.at[name] = value, at

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def word(self, name: str) -> Word:
        return self.cursor.word(self.at[name])

    def hook(self, place: Place) -> Hook:
        """The hook that the options name together."""
        dev, block, direction = self.get("dev"), self.get("block"), self.get("direction")
        if block is not None:
            if dev is not None or direction is not None:
                raise fail(
                    self.word("dev" if dev is not None else "direction"), "a shared block has neither device nor direction: expected block N alone"
                )
            return Hook("", "", block)
        if dev is None:
            raise rule_error(place, "", "expected dev DEVICE or block N")
        if direction is None:
            raise rule_error(self.word("dev").place, f"dev {dev}", "expected ingress or egress behind it")
        return Hook(dev, direction)


def _u32(what: str, high: int = 0xFFFFFFFF, low: int = 0) -> Callable[[str], int]:
    return lambda text: number(text, 0, high, what, low)


def _parent(text: str) -> str:
    if text.lower() not in PARENTS:
        raise Expected("classful queueing is not done here: expected ffff: for ingress, ffff:fff2 or ffff:fff3 for those of clsact")
    return PARENTS[text.lower()]


_OPTIONS: dict[str, tuple[str, str, Callable[[str], Any]]] = {  # word: name of the option, what it takes, how that is read
    "dev": ("dev", "a device", device),
    "block": ("block", "a number", _u32("a block", low=1)),
    "parent": ("direction", "ffff:", _parent),
    "handle": ("handle", "a number", _u32("a handle")),
    "preference": ("prio", "a number", _u32("a priority", 0xFFFF)),
    "priority": ("prio", "a number", _u32("a priority", 0xFFFF)),
    "protocol": ("protocol", "a protocol", quantities.ethertype),
    "chain": ("chain", "a number", _u32("a chain", MAX_CHAIN)),
}


def _head(cursor: Cursor) -> tuple[_Head, Word | None]:
    """The options up to the kind of classifier, and that."""
    head = _Head(cursor)
    while (text := cursor.peek()) is not None:
        at = cursor.at
        cursor.at += 1
        if text in ("ingress", "egress"):
            head.put("direction", at, text)
        elif text != "flower" and (name := keyword(text, _OPTIONS)) is not None:
            option, what, read = _OPTIONS[name]
            head.put(option, at, cursor.read(what, read))
        elif text in ("root", "estimator"):
            raise fail(cursor.last(), "queueing is not done here: expected ingress or egress")
        else:
            return head, cursor.last()
    return head, None


def _flower(word: Word) -> None:
    if word.text != "flower":
        raise fail(word, f"expected flower behind dev, ingress, egress, block, protocol, prio, handle and chain{_classifier(word.text)}")


def _classifier(name: str) -> str:
    return "; of tc's classifiers only flower is known here" if name in ("u32", "matchall", "bpf", "fw", "basic", "cgroup", "flow", "route") else ""


# --- the three kinds of lines -----------------------------------------------------------------------------------------------------------


def _qdisc(cursor: Cursor, place: Place, replace: bool, script: _Script, found: Findings) -> None:
    head, kind = _Head(cursor), None
    blocks = ("ingress_block", "egress_block")
    while kind is None:
        word = cursor.next("ingress or clsact")
        if word.text in ("ingress", "clsact"):
            kind = word
        elif word.text in blocks:
            head.put(word.text, word.at, cursor.read("a number", _u32("a block", low=1)))
        elif word.text == "dev":
            head.put("dev", word.at, cursor.read("a device", device))
        elif word.text in ("handle", "parent"):
            head.put(word.text, word.at, cursor.read("ffff:", _qdisc_handle))
        else:
            raise fail(word, "queueing is not done here: expected dev, handle ffff:, ingress_block, egress_block, and then ingress or clsact")
    if kind.text == "ingress" and cursor.peek() == "handle":
        word = cursor.next("handle")
        head.put("handle", word.at, cursor.read("ffff:", _qdisc_handle))
    if cursor.peek() is not None:
        word = cursor.next("nothing")
        hint = ", which tc wants before it" if word.text in (*blocks, "dev") else ""
        raise fail(word, f"expected nothing behind {kind.text}{hint}")
    if "dev" not in head.values:
        raise rule_error(place, "", "expected dev DEVICE")
    qdisc = Qdisc(head.get("dev"), kind.text, head.get("ingress_block"), head.get("egress_block"), place)
    if qdisc.device in script.qdiscs and not replace:
        raise rule_error(head.word("dev").place, f"dev {qdisc.device}", "has a qdisc already: expected one ingress or clsact for each device")
    script.qdiscs[qdisc.device] = qdisc


def _qdisc_handle(text: str) -> str:
    if text.lower() not in ("ffff:", "ffff:0", "ffff:fff1"):
        raise Expected("expected ffff: of ingress and clsact")
    return text


def _filter(cursor: Cursor, place: Place, replace: bool, script: _Script, found: Findings) -> None:
    head, kind = _head(cursor)
    if kind is None:
        raise rule_error(cursor.end, "", "the line ends: expected flower")
    _flower(kind)
    hook, protocol = head.hook(place), head.get("protocol", ETH_ALL)
    matches, flags, at = _matches(cursor, protocol, found)
    actions = _actions(cursor, at, script)
    parts = Parts(cursor.places, at | head.at)
    rule = Rule(
        hook, protocol, matches, actions, head.get("prio", 0), head.get("chain", 0), head.get("handle", 0),
        "skip_sw" in flags, "skip_hw" in flags, place, parts,
    )  # fmt: skip
    if "protocol" not in head.values and drops(actions):
        found.warn(place, "", ARP_TOO)
    key = (hook, rule.chain, rule.prio, rule.handle)
    if rule.prio and rule.handle:
        known = script.numbered.get(key)
        if known is not None and replace:
            script.rules[known] = rule
            return
        script.numbered.setdefault(key, len(script.rules))
    script.rules.append(rule)


def _actions(cursor: Cursor, parts: dict[str, int], script: _Script) -> tuple[Action, ...]:
    """The actions, if `action` is what comes next; which words they begin with goes to parts. What many rules do is read once."""
    if cursor.peek() is None:
        return ()
    cursor.next("action")
    start = cursor.at
    texts = tuple(cursor.texts[start:])
    done = script.done.get(texts)
    if done is None:
        numbers = {place: i for i, place in enumerate(cursor.places)}
        read = read_actions(cursor)
        done = tuple(action for action, _ in read), {f"action {i}": numbers[place] - start for i, (_, place) in enumerate(read)}
        if not any(isinstance(action, Police) for action in done[0]):  # each has a bucket of its own, and who it is tells which
            script.done[texts] = done
    for name, at in done[1].items():
        parts[name] = start + at
    return done[0]


def _chain(cursor: Cursor, place: Place, replace: bool, script: _Script, found: Findings) -> None:
    head, kind = _head(cursor)
    for name in ("handle", "prio"):
        if name in head.at:
            raise fail(head.word(name), f"a chain has no {name}: expected protocol, chain and flower with the template")
    hook, protocol, chain = head.hook(place), head.get("protocol", ETH_ALL), head.get("chain", 0)
    if kind is None:
        return  # a chain without template and rules does nothing
    _flower(kind)
    matches, flags, at = _matches(cursor, protocol, found)
    if cursor.peek() is not None or flags:
        raise rule_error(kind.place, "flower", "a template has keys only: expected neither flags nor actions")
    key = (hook, chain)
    if key in script.templates and not replace:
        raise rule_error(place, f"chain {chain}", "has a template already: expected one for each chain")
    script.templates[key] = Template(hook, protocol, chain, matches, place, Parts(cursor.places, at))


_COMMANDS: dict[str, Callable[[Cursor, Place, bool, _Script, Findings], None]] = {"qdisc": _qdisc, "filter": _filter, "chain": _chain}


_WORDS = dict.fromkeys((*KEYS, *FLAGS, *REFUSED_KEYS, "action"))
_TYPES = frozenset(("vlan_ethtype", "cvlan_ethtype"))
_READ_ORDER = {name: (name not in _TYPES, order) for name, order in FIELD_ORDER.items()}


def _matches(cursor: Cursor, protocol: int, found: Findings) -> tuple[tuple[Match, ...], set[str], dict[str, int]]:
    """The keys up to `action`, in the order of FIELDS; flags; which word is each key. Read twice: what an address is hangs on other keys."""
    written: dict[str, int] = {}
    flags: set[str] = set()
    while (text := cursor.peek()) is not None:
        name = keyword(text, _WORDS)
        if name == "action":
            break
        at = cursor.at
        cursor.at += 1
        if name is None:
            raise fail(cursor.last(), "expected a key of flower, skip_sw, skip_hw or action" + _near(text))
        if name in REFUSED_KEYS:
            raise fail(cursor.last(), REFUSED_KEYS[name])
        if name in FLAGS:
            flags.add(name)
        elif name in written:
            raise fail(cursor.last(), f"expected {name} once")
        else:
            cursor.read(KEYS[name].form, str)
            written[name] = at
    done: list[Match] = []
    inner = protocol
    for name in sorted(written, key=_READ_ORDER.__getitem__):
        at = written[name]
        text, value = cursor.texts[at], cursor.texts[at + 1]
        try:
            done.append(read_key(name, value, inner, TC))
        except Expected as error:
            raise rule_error(cursor.places[at], f"{text} {value}", str(error)) from None
        if "/" in value and (said := behind_prefix(done[-1], value, inner)):
            found.warn(cursor.places[at], f"{text} {value}", said)
        if name in _TYPES:
            inner = innermost(protocol, done)
        elif name == "ip_proto" and value.isdecimal() and int(value) > 9:
            said = f"tc reads it in hexadecimal, as {int(value, 16)}; {int(value)} is {int(value):#x}"
            found.warn(cursor.places[at], f"{text} {value}", said)
    if not _TYPES.isdisjoint(written):
        done.sort(key=lambda match: FIELD_ORDER[match.name])
    return tuple(done), flags, written


def _near(text: str) -> str:
    """The keys that begin with the word, or the words that it resembles."""
    from difflib import get_close_matches

    begun = [name for name in KEYS if text and name.startswith(text)]
    near = begun or get_close_matches(text, [*KEYS, *FLAGS, "action"], 2)
    return f"; {' or '.join(near)}?" if near else ""

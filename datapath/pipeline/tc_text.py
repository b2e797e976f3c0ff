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
from datapath.pipeline.findings import Expected, Findings, rule_error
from datapath.pipeline.flower_keys import KEYS, REFUSED_KEYS, TC, device, read_key
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
from datapath.pipeline.shell_words import Cursor, Word, commands, fail
from datapath.pipeline.tc_actions import MAX_CHAIN, read_actions, read_value

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
    done: dict[tuple[str, ...], list[tuple[Action, int]]] = field(default_factory=dict)  # actions by their words: each, and which word it is


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
    _COMMANDS[name](cursor, first.place, chosen == "replace", script, found)


# --- what comes before the kind of a qdisc, filter or chain ------------------------------------------------------------------------------


class _Head:
    """Options by name, each once. Their places are kept."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.words: dict[str, Word] = {}

    def put(self, name: str, word: Word, value: Any) -> None:
        if name in self.values:
            other = " (ingress, egress and parent say the same)" if name == "direction" else ""
            raise fail(word, f"expected {name} once{other}")
        self.values[name], self.words[name] = value, word

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def hook(self, place: Place) -> Hook:
        """The hook that the options name together."""
        dev, block, direction = self.get("dev"), self.get("block"), self.get("direction")
        if block is not None:
            if dev is not None or direction is not None:
                other = self.words["dev" if dev is not None else "direction"]
                raise fail(other, "a shared block has neither device nor direction: expected block N alone")
            return Hook("", "", block)
        if dev is None:
            raise rule_error(place, "", "expected dev DEVICE or block N")
        if direction is None:
            raise rule_error(self.words["dev"].place, f"dev {dev}", "expected ingress or egress behind it")
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
    head = _Head()
    while cursor.peek() is not None:
        word = cursor.next("an option")
        name = keyword(word.text, _OPTIONS)
        if word.text in ("ingress", "egress"):
            head.put("direction", word, word.text)
        elif name is not None:
            option, what, read = _OPTIONS[name]
            head.put(option, word, read_value(cursor, word, what, read))
        elif word.text in ("root", "estimator"):
            raise fail(word, "queueing is not done here: expected ingress or egress")
        else:
            return head, word
    return head, None


def _flower(word: Word) -> None:
    if word.text != "flower":
        raise fail(word, f"expected flower behind dev, ingress, egress, block, protocol, prio, handle and chain{_classifier(word.text)}")


def _classifier(name: str) -> str:
    return "; of tc's classifiers only flower is known here" if name in ("u32", "matchall", "bpf", "fw", "basic", "cgroup", "flow", "route") else ""


# --- the three kinds of lines -----------------------------------------------------------------------------------------------------------


def _qdisc(cursor: Cursor, place: Place, replace: bool, script: _Script, found: Findings) -> None:
    head, kind = _Head(), None
    blocks = ("ingress_block", "egress_block")
    while kind is None:
        word = cursor.next("ingress or clsact")
        if word.text in ("ingress", "clsact"):
            kind = word
        elif word.text in blocks:
            head.put(word.text, word, read_value(cursor, word, "a number", _u32("a block", low=1)))
        elif word.text == "dev":
            head.put("dev", word, read_value(cursor, word, "a device", device))
        elif word.text in ("handle", "parent"):
            head.put(word.text, word, read_value(cursor, word, "ffff:", _qdisc_handle))
        else:
            raise fail(word, "queueing is not done here: expected dev, handle ffff:, ingress_block, egress_block, and then ingress or clsact")
    if kind.text == "ingress" and cursor.peek() == "handle":
        word = cursor.next("handle")
        head.put("handle", word, read_value(cursor, word, "ffff:", _qdisc_handle))
    if cursor.peek() is not None:
        word = cursor.next("nothing")
        hint = ", which tc wants before it" if word.text in (*blocks, "dev") else ""
        raise fail(word, f"expected nothing behind {kind.text}{hint}")
    if "dev" not in head.values:
        raise rule_error(place, "", "expected dev DEVICE")
    qdisc = Qdisc(head.get("dev"), kind.text, head.get("ingress_block"), head.get("egress_block"), place)
    if qdisc.device in script.qdiscs and not replace:
        raise rule_error(head.words["dev"].place, f"dev {qdisc.device}", "has a qdisc already: expected one ingress or clsact for each device")
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
    matches, flags, parts = _matches(cursor, protocol, found)
    actions = _actions(cursor, parts, script)
    parts |= {name: word.place for name, word in head.words.items()}
    rule = Rule(
        hook, protocol, matches, actions, head.get("prio", 0), head.get("chain", 0), head.get("handle", 0),
        "skip_sw" in flags, "skip_hw" in flags, place, parts,
    )  # fmt: skip
    key = (hook, rule.chain, rule.prio, rule.handle)
    if rule.prio and rule.handle:
        at = script.numbered.get(key)
        if at is not None and replace:
            script.rules[at] = rule
            return
        script.numbered.setdefault(key, len(script.rules))
    script.rules.append(rule)


def _actions(cursor: Cursor, parts: dict[str, Place], script: _Script) -> tuple[Action, ...]:
    """The actions, if `action` is what comes next; their places go to parts. What many rules do is read once."""
    if cursor.peek() is None:
        return ()
    cursor.next("action")
    rest = cursor.words[cursor.at :]
    texts = tuple(word.text for word in rest)
    done = script.done.get(texts)
    if done is None:
        at = {word.place: i for i, word in enumerate(rest)}
        done = [(action, at[place]) for action, place in read_actions(cursor)]
        if not any(isinstance(action, Police) for action, _ in done):  # each has a bucket of its own, and who it is tells which
            script.done[texts] = done
    parts |= {f"action {i}": rest[at].place for i, (_, at) in enumerate(done)}
    return tuple(action for action, _ in done)


def _chain(cursor: Cursor, place: Place, replace: bool, script: _Script, found: Findings) -> None:
    head, kind = _head(cursor)
    for name in ("handle", "prio"):
        if name in head.words:
            raise fail(head.words[name], f"a chain has no {name}: expected protocol, chain and flower with the template")
    hook, protocol, chain = head.hook(place), head.get("protocol", ETH_ALL), head.get("chain", 0)
    if kind is None:
        return  # a chain without template and rules does nothing
    _flower(kind)
    matches, flags, parts = _matches(cursor, protocol, found)
    if cursor.peek() is not None or flags:
        raise rule_error(kind.place, "flower", "a template has keys only: expected neither flags nor actions")
    key = (hook, chain)
    if key in script.templates and not replace:
        raise rule_error(place, f"chain {chain}", "has a template already: expected one for each chain")
    script.templates[key] = Template(hook, protocol, chain, matches, place, parts)


_COMMANDS: dict[str, Callable[[Cursor, Place, bool, _Script, Findings], None]] = {"qdisc": _qdisc, "filter": _filter, "chain": _chain}


_WORDS = dict.fromkeys((*KEYS, *FLAGS, *REFUSED_KEYS, "action"))


def _matches(cursor: Cursor, protocol: int, found: Findings) -> tuple[tuple[Match, ...], set[str], dict[str, Place]]:
    """The keys up to `action`, in the order of FIELDS; flags; where each key is. Read twice: addresses are of the version that other keys say."""
    written: dict[str, tuple[Word, Word]] = {}
    flags: set[str] = set()
    while (text := cursor.peek()) is not None:
        name = keyword(text, _WORDS)
        if name == "action":
            break
        word = cursor.next("a key")
        if name is None:
            raise fail(word, "expected a key of flower, skip_sw, skip_hw or action" + _near(text))
        if name in REFUSED_KEYS:
            raise fail(word, REFUSED_KEYS[name])
        if name in FLAGS:
            flags.add(name)
        elif name in written:
            raise fail(word, f"expected {name} once")
        else:
            written[name] = (word, cursor.value(word, KEYS[name].form))
    done: list[Match] = []
    for name in sorted(written, key=lambda name: (name not in ("vlan_ethtype", "cvlan_ethtype"), FIELD_ORDER[name])):
        word, value = written[name]
        try:
            done.append(read_key(name, value.text, innermost(protocol, done), TC))
        except Expected as error:
            raise rule_error(word.place, f"{word.text} {value.text}", str(error)) from None
        if name == "ip_proto" and value.text.isdecimal() and int(value.text) > 9:
            said = f"tc reads it in hexadecimal, as {int(value.text, 16)}; {int(value.text)} is {int(value.text):#x}"
            found.warn(word.place, f"{word.text} {value.text}", said)
    ordered = tuple(sorted(done, key=lambda match: FIELD_ORDER[match.name]))
    return ordered, flags, {name: word.place for name, (word, _) in written.items()}


def _near(text: str) -> str:
    """The keys that begin with the word, or that it resembles."""
    from difflib import get_close_matches

    begun = [name for name in KEYS if text and name.startswith(text)]
    near = begun or get_close_matches(text, KEYS, 2)
    return f"; {' or '.join(near)}?" if near else ""

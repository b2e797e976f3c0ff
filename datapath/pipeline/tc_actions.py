"""The actions of a filter as tc writes them: `action ct zone 5 pipe action goto chain 1`.

Each kind of action has a reader that takes its words from a cursor and leaves what is not its own. What tc would take to mean that an action is
shared, or is a hardware's (index, cookie, hw_stats), is refused with a sentence. What follows an action where nothing is written is as in tc of
iproute2: pass for pedit and csum, pipe for the others. Source: tc-ct(8), tc-mirred(8), tc-pedit(8), tc-csum(8), tc-skbedit(8), tc-vlan(8),
tc-police(8), and the messages that tc 6.1 sends. Not here: which actions make sense together (validate).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from datapath.pipeline import quantities
from datapath.pipeline.findings import Expected, rule_error
from datapath.pipeline.flower_keys import device
from datapath.pipeline.quantities import keyword, masked, number
from datapath.pipeline.rules import (
    MOST_VLAN,
    PASS,
    PIPE,
    RECLASSIFY,
    Action,
    Control,
    Csum,
    Ct,
    CtNat,
    Gact,
    Mirred,
    Munge,
    Pedit,
    Place,
    Police,
    Skbedit,
    Vlan,
    goto,
)
from datapath.pipeline.shell_words import Cursor, Word, fail
from datapath.pipeline.tc_pedit import munge

MAX_CHAIN = (1 << 28) - 1  # TC_ACT_EXT_VAL_MASK: the rest of the number says `goto`
MAX_ACTIONS = 32  # TCA_ACT_MAX_PRIO

CONTROL_WORDS = {
    "pass": "pass", "ok": "pass", "pipe": "pipe", "drop": "drop", "shot": "drop", "continue": "continue", "reclassify": "reclassify", "goto": "goto",
    "jump": "jump", "trap": "trap",
}  # fmt: skip
REFUSED_CONTROLS = {
    "jump": "jump skips actions, which no chain needs: expected goto chain N, or the actions one after the other",
    "trap": "trap is for switches that have a CPU behind them: expected pass, drop, pipe, continue, reclassify or goto chain N",
}
FOREIGN = {"accept": "pass", "allow": "pass", "permit": "pass", "deny": "drop", "reject": "drop", "discard": "drop", "redirect": "mirred"}
CSUM_WORDS = {"ip4h": "ip4h", "iph": "ip4h", "ip": "ip4h", "ipv4h": "ip4h"} | {
    name: name for name in ("icmp", "igmp", "tcp", "udp", "udplite", "sctp")
}  # fmt: skip
CSUM_ORDER = ("ip4h", "icmp", "igmp", "tcp", "udp", "udplite", "sctp")
PTYPES = ("host", "otherhost", "broadcast", "multicast")
SHARED = {
    "index": "actions that are shared by number are not supported: expected the action itself in each rule",
    "cookie": "cookies are not supported: expected the next action",
    "hw_stats": "how hardware counts is not said here: expected the next action",
    "no_percpu": "where counters lie is not said here: expected the next action",
    "skip_sw": "a flag of the action; expected it before `action`, for the rule",
    "skip_hw": "a flag of the action; expected it before `action`, for the rule",
    "verbose": "a flag of the rule; expected it before `action`",
    "random": "chance is not supported: expected the next action",
    "classid": "classes are for queueing, which is not done here: expected the next action",
    "flowid": "classes are for queueing, which is not done here: expected the next action",
}


def read_control(cursor: Cursor, default: Control) -> Control:
    """What follows an action, if it is written."""
    word = cursor.peek()
    return default if word is None or keyword(word, CONTROL_WORDS) is None else control(cursor)


def control(cursor: Cursor) -> Control:
    """pass, drop, ..., goto chain N."""
    word = cursor.next("what follows")
    name = keyword(word.text, CONTROL_WORDS)
    if name is None:
        raise fail(word, f"expected {', '.join(name for name in CONTROL_WORDS if name not in REFUSED_CONTROLS)} chain N")
    kind = CONTROL_WORDS[name]
    if kind in REFUSED_CONTROLS:
        raise fail(word, REFUSED_CONTROLS[kind])
    if kind != "goto":
        return Control(kind)
    chain = cursor.value(word, "chain N")
    if keyword(chain.text, ["chain"]) is None:
        raise rule_error(word.place, f"{word.text} {chain.text}", "expected goto chain N")
    return goto(cursor.read("a chain", lambda text: number(text, 10, MAX_CHAIN, "a chain")))


def read_actions(cursor: Cursor) -> list[tuple[Action, Place]]:
    """All actions up to the end of the command, the cursor being behind the first `action`."""
    done: list[tuple[Action, Place]] = []
    while True:
        word = cursor.peek()
        if word == "action" and done:
            cursor.next("action")
            word = cursor.peek()
        elif word is None and done:
            return done
        if word is None:
            cursor.next(f"an action: {', '.join(ACTIONS)}, pass, drop, goto chain N")
        place = cursor.places[cursor.at]
        done.append((_action(cursor, word or ""), place))
        if len(done) > MAX_ACTIONS:
            raise rule_error(place, word or "", f"expected at most {MAX_ACTIONS} actions")


def _action(cursor: Cursor, word: str) -> Action:
    if word in ACTIONS:
        cursor.next(word)
        return ACTIONS[word](cursor)
    if keyword(word, CONTROL_WORDS) is not None:
        return Gact(control(cursor))
    found = cursor.next("an action")
    known = f"expected {', '.join(ACTIONS)}, pass, drop, pipe, continue or goto chain N"
    raise fail(found, SHARED.get(word, f"no action known here: {known}{near_action(word, ACTIONS)}"))


def near_action(word: str, kinds: Iterable[str] = ()) -> str:
    """The question which action was meant, or what other languages call one; nothing if it is like none. kinds: of actions that may be meant."""
    words = {name: name for name in (*kinds, *CONTROL_WORDS) if name not in REFUSED_CONTROLS} | FOREIGN
    near = get_close_matches(word, words, n=1, cutoff=0.7)
    return f"; did you mean {words[near[0]]}?" if near else ""


def _options(cursor: Cursor, table: dict[str, Callable[[Word], Any]], same: dict[str, str] | None = None) -> dict[str, Any]:
    """Options of an action, each once, in any order, up to a word that is none. same: other words for options."""
    found: dict[str, Any] = {}
    while (text := cursor.peek()) is not None:
        name = keyword(text, [*table, *(same or {})])
        begun = [each for each in table if each.startswith(text)]
        if name is None and len(begun) > 1:  # and no word for what follows the action: tc would take one of these
            raise fail(cursor.next(text), f"expected {' or '.join(begun)}, in full")
        if name is None:
            break
        word, name = cursor.next(text), (same or {}).get(name, name)
        if name in found:
            raise fail(word, f"expected {name} once")
        found[name] = table[name](word)
    return found


# --- one reader for each kind, the cursor being behind its name -------------------------------------------------------------------------


def _gact(cursor: Cursor) -> Gact:
    return Gact(control(cursor))


def _ct(cursor: Cursor) -> Ct:
    def said(word: Word) -> bool:
        return True

    start = cursor.last()
    found = _options(cursor, {
        "zone": lambda word: cursor.read("a zone", lambda text: number(text, 0, 0xFFFF, "a zone")),
        "mark": lambda word: cursor.read("MARK[/MASK]", lambda text: masked(text, 0, 32, "a mark")),
        "label": lambda word: cursor.read("LABEL[/MASK]", quantities.label),
        "commit": said,
        "force": said,
        "clear": said,
        "nat": lambda word: _nat(cursor, word),
        "helper": lambda word: cursor.read("FAMILY-PROTOCOL-NAME", helper),
    })  # fmt: skip
    if found.get("clear") and {"commit", "force", "nat"} & found.keys():
        raise rule_error(start.place, "ct clear", "expected neither commit, force nor nat with it")
    return Ct(**found, control=read_control(cursor, PIPE))


def _nat(cursor: Cursor, word: Word) -> CtNat:
    kind = cursor.peek()
    if kind not in ("src", "dst"):
        return CtNat()
    side = cursor.next(kind)
    if keyword(cursor.peek() or "", ["addr"]) is None:
        raise rule_error(word.place, f"{word.text} {kind}", "expected addr A[-B] behind it")
    cursor.next("addr")
    low, high = cursor.read("A[-B]", quantities.addresses)
    ports = None
    if keyword(cursor.peek() or "", ["port"]):
        cursor.next("port")
        ports = cursor.read("P[-Q]", quantities.ports)
    if cursor.peek() == "nat":
        raise fail(cursor.next("nat"), f"one translation for each connection, and nat {side.text} is there: expected nothing more of it")
    return CtNat(kind, low, high, ports)


def helper(text: str) -> tuple[str, int, int]:
    """FAMILY-PROTOCOL-NAME, as in ipv4-tcp-ftp: (name, family, protocol)."""
    family, _, rest = text.partition("-")
    proto, _, name = rest.partition("-")
    known = quantities.PROTOCOLS.get(proto)
    if known is None and proto:
        known = number(proto, 0, 0xFF, "a protocol in FAMILY-PROTOCOL-NAME")
    if family not in ("ipv4", "ipv6") or known is None or not name.replace("_", "").isalnum() or not name.isascii() or len(text) >= 32:
        raise Expected("expected FAMILY-PROTOCOL-NAME, as in ipv4-tcp-ftp")
    return name, int(family[-1]), known


def _mirred(cursor: Cursor) -> Mirred:
    direction, kind = cursor.next("egress or ingress"), cursor.peek()
    way = keyword(direction.text, ["egress", "ingress"])
    if way is None:
        raise fail(direction, "expected egress or ingress")
    what = keyword(kind or "", ["redirect", "mirror"])
    if what is None:
        raise rule_error(direction.place, f"{direction.text} {kind or ''}".rstrip(), "expected redirect or mirror behind it")
    cursor.next("redirect or mirror")
    dev = cursor.next("dev DEVICE")
    if dev.text in ("index", "blockid"):
        raise fail(dev, SHARED.get(dev.text, "copies to all of a block are not supported: expected dev DEVICE"))
    if keyword(dev.text, ["dev"]) is None:
        raise fail(dev, "expected dev DEVICE")
    to = cursor.read("a device", device)
    # Behind a redirect a word like `drop` begins the next action, which nothing reaches: that is how tc reads it.
    return Mirred(what, to, way, PIPE if what == "redirect" else read_control(cursor, PIPE))


def _pedit(cursor: Cursor) -> Pedit:
    extended = False
    done: list[Munge] = []
    while (text := cursor.peek()) is not None:
        if keyword(text, ["ex"]) and not done:
            extended = bool(cursor.next("ex"))
        elif keyword(text, ["munge"]):
            cursor.next("munge")
            done.append(munge(cursor, extended))
        elif text != "pedit":
            break
        else:
            cursor.next("pedit")
    if not done:
        word = cursor.last()
        raise fail(word, "expected munge HEADER FIELD set VALUE behind it")
    return Pedit(tuple(done), read_control(cursor, PASS))


def _csum(cursor: Cursor) -> Csum:
    start, of = cursor.last(), set()
    while (text := cursor.peek()) is not None:
        meant = {CSUM_WORDS[text]} if text in CSUM_WORDS else {name for word, name in CSUM_WORDS.items() if word.startswith(text)}
        if text not in ("and", "or", "+") and len(meant) != 1:
            break
        cursor.next(text)
        of |= meant if len(meant) == 1 else set()
    if not of:
        raise fail(start, f"expected {', '.join(CSUM_ORDER)} behind it")
    return Csum(tuple(sorted(of, key=CSUM_ORDER.index)), read_control(cursor, PASS))


def ptype(text: str) -> str:
    if text not in PTYPES:
        raise Expected(f"expected {', '.join(PTYPES)}")
    return text


def _skbedit(cursor: Cursor) -> Skbedit:
    start = cursor.last()
    if cursor.peek() == "inheritdsfield":
        raise fail(cursor.next("an option"), "priorities by DSCP are not supported: expected mark, priority, queue_mapping or ptype")
    found = _options(cursor, {
        "mark": lambda word: cursor.read("MARK[/MASK]", lambda text: masked(text, 0, 32, "a mark")),
        "priority": lambda word: cursor.read("MAJOR:MINOR", quantities.class_id),
        "queue_mapping": lambda word: cursor.read("a queue", lambda text: number(text, 10, 0xFFFF, "a queue")),
        "ptype": lambda word: cursor.read("a type of packet", ptype),
    })  # fmt: skip
    if not found:
        raise fail(start, "expected mark, priority, queue_mapping or ptype behind it")
    return Skbedit(queue=found.pop("queue_mapping", None), **found, control=read_control(cursor, PIPE))


def vlan_protocol(text: str) -> int:
    found = quantities.ETHERTYPES.get(text.lower())
    if found not in (quantities.ETH_VLAN, quantities.ETH_QINQ):
        raise Expected("expected 802.1Q or 802.1ad")
    return found


def _vlan(cursor: Cursor) -> Vlan:
    kind = cursor.next("push, pop or modify")
    does = keyword(kind.text, ("push", "pop", "modify"))
    if does is None:
        refused = "Ethernet headers are neither added nor removed: " if kind.text in ("push_eth", "pop_eth") else ""
        raise fail(kind, f"{refused}expected push, pop or modify")
    found: dict[str, Any] = {}
    if does != "pop":
        found = _options(cursor, {
            "id": lambda word: cursor.read("a VLAN id", lambda text: number(text, 0, MOST_VLAN, "a VLAN id")),
            "protocol": lambda word: cursor.read("802.1Q or 802.1ad", vlan_protocol),
            "priority": lambda word: cursor.read("a priority", lambda text: number(text, 0, 7, "a priority")),
        })  # fmt: skip
        if "id" not in found:
            raise fail(kind, "expected id ID behind it")
    return Vlan(does, **found, control=read_control(cursor, PIPE))


def _police(cursor: Cursor) -> Police:
    start = cursor.last()

    def size(word: Word) -> int:
        return cursor.read("bytes", quantities.size)

    def packets(word: Word) -> int:
        return cursor.read("packets", lambda text: number(text, 10, 0xFFFFFFFF, "packets"))

    found = _options(cursor, {
        "rate": lambda word: cursor.read("a rate", quantities.rate),
        "burst": size,
        "mtu": size,
        "pkts_rate": packets,
        "pkts_burst": packets,
        "conform-exceed": lambda word: _conform_exceed(cursor),
    }, {"buffer": "burst", "maxburst": "burst", "minburst": "mtu"})  # fmt: skip
    exceed, conform = found.pop("conform-exceed", (RECLASSIFY, PASS))
    names = {"pkts_rate": "packet_rate", "pkts_burst": "packet_burst"}
    word = cursor.peek()
    if word in ("peakrate", "avrate", "overhead", "linklayer", "mpu", "estimator"):
        raise fail(cursor.next("an option"), "of tc's police, rate, burst, mtu, pkts_rate, pkts_burst and conform-exceed are supported")
    if not found:
        raise fail(start, "expected rate RATE burst BYTES, or pkts_rate N pkts_burst N behind it")
    return Police(**{names.get(name, name): value for name, value in found.items()}, exceed=read_control(cursor, exceed), control=conform)


def _conform_exceed(cursor: Cursor) -> tuple[Control, Control]:
    """EXCEED[/NOTEXCEED], or with blanks around the slash, which is how `goto chain N` is written."""
    word = cursor.peek() or ""
    if "/" in word and word != "/":
        both = cursor.next("EXCEED/NOTEXCEED")
        parts = [keyword(part, CONTROL_WORDS) or "" for part in both.text.split("/")]
        if len(parts) != 2 or any(CONTROL_WORDS.get(part, "goto") in ("goto", "jump", "trap") for part in parts):
            raise fail(both, "expected EXCEED/NOTEXCEED of pass, pipe, drop, continue, reclassify; goto chain N has blanks around the slash")
        return Control(CONTROL_WORDS[parts[0]]), Control(CONTROL_WORDS[parts[1]])
    exceed, conform = control(cursor), PASS
    if cursor.peek() == "/":
        cursor.next("/")
        conform = control(cursor)
    return exceed, conform


ACTIONS: dict[str, Callable[[Cursor], Action]] = {
    "ct": _ct,
    "mirred": _mirred,
    "pedit": _pedit,
    "csum": _csum,
    "skbedit": _skbedit,
    "vlan": _vlan,
    "police": _police,
    "gact": _gact,
}

"""The words behind =>: what is expected of a packet's record.

    => established ESTABLISHED 432000 reply assured !seq-adjust conn 0 reason ok tcp.original.end=101 out.src=192.0.2.1

Only what is named is compared. The words may come in any order.
Not here: comparing (run).
"""

from __future__ import annotations

import re
from typing import Any

from ctcore import spec
from ctcore.reasons import NAMES as REASON_NAMES
from ctcore.types import Reason
from datapath.fields import DIR_NAMES, OUT_NAMES, STATE_NAMES, STATUS_NAMES, VERDICT_NAMES
from datapath.scenario.cursor import Cursor, seconds_text
from datapath.scenario.steps import NO_CONN, Expect

LONG, SHORT = (1 << 32) - 1, (1 << 16) - 1
LONGEST_TIMEOUT = LONG
MOST_CONNS = (1 << 31) - 1
STATES = tuple(STATE_NAMES.values())
L4STATES = tuple(dict.fromkeys((*spec.tcp().states, *spec.sctp().states)))
DIRS = tuple(DIR_NAMES.values())
VERDICTS = tuple(name for name in VERDICT_NAMES.values() if name)
STATUS = tuple(STATUS_NAMES.values())
REASONS = tuple(REASON_NAMES[reason] for reason in Reason if reason != Reason.N_REASONS)
SIDE_VARIABLES, VARIABLES = ("end", "maxend", "maxwin", "maxack", "scale", "flags"), ("last_dir", "last_index", "retrans")
TCP_NAMES = (*(f"tcp.{d}.{name}" for d in DIRS for name in SIDE_VARIABLES), *(f"tcp.{name}" for name in VARIABLES))
ENDS = OUT_NAMES
OF_PACKET = ("out", *(f"out.{name}" for name in ENDS))  # of the packet's record; the others are of its connection's
NAMES = (*TCP_NAMES, *OF_PACKET, *(f"reply.{name}" for name in ENDS), "master", "helper")
VALUE = re.compile(r"[a-z0-9,.:-]{1,200}\Z")
EXPECTED = (
    "a state (new, established, related, invalid, untracked, not-seen), a protocol state, seconds, original or reply, a status word (!word: without),"
    " status[...], accept, drop, held, conn N, reason NAME, zone N, mark N, or NAME=VALUE with tcp.SIDE.NAME, out.NAME, reply.NAME, master or helper"
)


def read_expectation(cursor: Cursor) -> Expect:
    """The words up to the line's end, at least one."""
    draft: dict[str, Any] = {}
    cursor.take(EXPECTED)
    cursor.at -= 1
    while cursor.peek is not None:
        name, value = _read(cursor, cursor.take(EXPECTED))
        if name in ("has", "lacks"):
            value = draft.get(name, frozenset()) | value
        elif name == "variables":
            if any(value[0] == other for other, _ in draft.get(name, ())):
                cursor.fail("each variable once")
            value = (*draft.get(name, ()), value)
        elif name in draft:
            cursor.fail(f"{name} to be given once")
        draft[name] = value
    return Expect(**draft)


def _read(cursor: Cursor, word: str) -> tuple[str, Any]:
    """One word: the field of Expect, and its value."""
    for name, words in (("state", STATES), ("l4state", L4STATES), ("dir", DIRS), ("verdict", VERDICTS)):
        if word in words:
            return name, word
    if word in STATUS:
        return "has", frozenset((word,))
    if word.startswith("!") and word[1:] in STATUS:
        return "lacks", frozenset((word[1:],))
    if word.startswith("status["):
        return "status", _status(cursor, word)
    if word[0] in "0123456789":
        return "timeout", cursor.seconds(word, LONGEST_TIMEOUT, "432000 or 119.996")
    if word == "conn":
        return word, NO_CONN if cursor.peek == "none" and cursor.take("") else cursor.number(0, MOST_CONNS)
    if word == "reason":
        return word, cursor.one_of(REASONS, "a reason (ctmirror states --reasons)")
    if word in ("zone", "mark"):
        return word, cursor.number(0, SHORT if word == "zone" else LONG)
    name, equals, value = word.partition("=")
    if name in NAMES and equals and VALUE.match(value):
        return "variables", (name, value)
    if equals or name.startswith("tcp."):
        cursor.fail(f"a variable and its value, NAME=VALUE, the name one of {', '.join(NAMES)}")
    cursor.fail(EXPECTED)


def _status(cursor: Cursor, word: str) -> frozenset[str]:
    names = word.removeprefix("status[").removesuffix("]").split()
    if not word.endswith("]") or not set(names) <= set(STATUS):
        cursor.fail(f"status[...] with words of {', '.join(STATUS)}")
    return frozenset(names)


def expectation_text(expect: Expect) -> str:
    """What read_expectation() reads."""
    words = [word for word in (expect.state, expect.l4state) if word]
    words += [seconds_text(expect.timeout)] if expect.timeout is not None else []
    words += [expect.dir] if expect.dir else []
    words += [name for name in STATUS if name in expect.has] + [f"!{name}" for name in STATUS if name in expect.lacks]
    words += [f"status[{' '.join(name for name in STATUS if name in expect.status)}]"] if expect.status is not None else []
    words += [expect.verdict] if expect.verdict else []
    for name in ("conn", "reason", "zone", "mark"):
        value = getattr(expect, name)
        if value is not None:
            words.append(f"{name} {'none' if name == 'conn' and value == NO_CONN else value}")
    return " ".join([*words, *(f"{name}={value}" for name, value in expect.variables)])

"""Bytes of attributes as values, by the tables of attributes: strict, and bounded by how many bytes there are.

Theory of operation: each level is gone through once, and what is in it by its own table; the deepest is six levels down, so no byte is looked at
more than six times, whatever it says. What does not fit is Malformed, with the path to it: a kernel sends nothing of the kind. Attributes that the
tables do not know are kept by their numbers: newer kernels have more, and who asks for equality has to see them.
Not here: what values mean (datapath.commands.tc).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from ctcore.errors import CtmirrorError
from offload.netlink.attributes import BYTES, FLAG, TEXT, Choice, Form, Kind, Level, Many, Record

HEADER = struct.Struct("=HH")
TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
LONGEST_TEXT = 4096
Values = dict[str, Any]  # by name: int, str, bytes, True, or Values, or a list of these; unknown ones as "#NUMBER"


class Malformed(CtmirrorError):
    """Bytes that no kernel sends: the path to them, and what was expected."""


def attributes(data: bytes, where: str) -> Iterator[tuple[int, bytes]]:
    """Number and payload of each attribute of a level. Raises Malformed if one does not fit."""
    at, end = 0, len(data)
    while at < end:
        if at + HEADER.size > end:
            raise Malformed(f"{where}: {end - at} bytes at the end: expected an attribute of 4 or more")
        length, number = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > end:
            raise Malformed(f"{where}: attribute {number & TYPE} says {length} bytes: expected 4 to {end - at}")
        yield number & TYPE, data[at + HEADER.size : at + length]
        at += length + 3 & ~3


def read(level: Level, data: bytes, where: str = "") -> Values:
    """All attributes of a level; of several with one number the last counts, as for the kernel. Raises Malformed."""
    where = where or level.name
    found: Values = {}
    later: list[tuple[str, Choice, bytes]] = []
    for number, payload in attributes(data, where):
        name, kind = level.attributes.get(number, (f"#{number}", BYTES))
        if isinstance(kind, Choice):
            later.append((name, kind, payload))
        else:
            found[name] = _value(kind, payload, f"{where}.{name}")
    for name, choice, payload in later:
        of = choice.levels.get(found.get(choice.by, ""))
        found[name] = payload if of is None else read(of, payload, f"{where}.{name}")
    return found


def _value(kind: Kind, data: bytes, where: str) -> Any:
    if isinstance(kind, Form):
        if len(data) != kind.size:
            raise Malformed(f"{where}: {len(data)} bytes: expected {kind.size}")
        return int.from_bytes(data, kind.order, signed=kind.name == "s32")  # type: ignore[arg-type]
    if isinstance(kind, Record):
        return _record(kind, data, where)
    if isinstance(kind, Level):
        return read(kind, data, where)
    if isinstance(kind, Many):
        return _many(kind, data, where)
    if kind == TEXT:
        return _text(data, where)
    return True if kind == FLAG else bytes(data)


def _record(kind: Record, data: bytes, where: str) -> Values:
    size = kind.layout.size
    if len(data) < size and not kind.tail:
        raise Malformed(f"{where}: {len(data)} bytes: expected {size} or more")
    return dict(zip(kind.fields, kind.layout.unpack_from(data[:size].ljust(size, b"\0")), strict=True))


def _many(kind: Many, data: bytes, where: str) -> list[Values]:
    """Each of them; where they are numbered, in the order of their numbers, of which the last of each counts."""
    if kind.number is not None:
        return [read(kind.level, payload, f"{where}.{i}") for i, (_, payload) in enumerate(attributes(data, where))]
    by_number = dict(attributes(data, where))
    return [read(kind.level, by_number[number], f"{where}.{number}") for number in sorted(by_number)]


def _text(data: bytes, where: str) -> str:
    """Up to the first zero, in one line; what cannot be printed is shown as escapes."""
    if len(data) > LONGEST_TEXT:
        raise Malformed(f"{where}: {len(data)} bytes of text: expected at most {LONGEST_TEXT}")
    found = data.split(b"\0", 1)[0].decode(errors="backslashreplace")
    return found if found.isprintable() else found.encode("unicode_escape").decode()


def name_at(level: Level, data: bytes, offset: int) -> str:
    """The kernel's name of the attribute whose header is at an offset into a level's bytes, as an answer to a request points to it; "" if there is
    none."""
    at, kind, name = 0, "", ""
    while at + HEADER.size <= len(data):
        length, number = HEADER.unpack_from(data, at)
        if length < HEADER.size:
            return ""
        own, of = level.attributes.get(number & TYPE, (str(number & TYPE), BYTES))
        payload = data[at + HEADER.size : at + length]
        if own == "KIND":
            kind = _text(payload, "")
        if at <= offset < at + length:
            name = level.prefix + own
            return _within(of, payload, offset - at - HEADER.size, kind) or name
        at += length + 3 & ~3
    return name


def _within(kind: Kind, data: bytes, offset: int, chosen: str) -> str:
    """What is at an offset inside of an attribute, if that has a level."""
    if offset < 0:
        return ""
    if isinstance(kind, Choice):
        kind = kind.levels.get(chosen, BYTES)
    if isinstance(kind, Level):
        return name_at(kind, data, offset)
    if isinstance(kind, Many):
        at = 0
        while at + HEADER.size <= len(data):
            length, _ = HEADER.unpack_from(data, at)
            if length < HEADER.size:
                return ""
            if at <= offset < at + length:
                return name_at(kind.level, data[at + HEADER.size : at + length], offset - at - HEADER.size) if offset > at else ""
            at += length + 3 & ~3
    return ""

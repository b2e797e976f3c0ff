"""The words for packets: for each field of a protocol the words that set it, and how it is written.

One table serves the reader and the writer, so that they cannot disagree. A field at its default is not written.
Not here: what stands around a packet in its line (text), expectations (expectation), bytes (build).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ctcore.model import sctp
from datapath import craft
from datapath.scenario.cursor import Cursor, bytes_text, endpoint_text
from datapath.scenario.steps import L4, Chunk, Ends, Ext, Gre, Icmp, Ip, Option, Other, Sctp, Tcp, Udp, UdpLite

BYTE, SHORT, LONG = (1 << 8) - 1, (1 << 16) - 1, (1 << 32) - 1
MOST_DATA = 65000
Read = Callable[[Cursor, Any], Any]  # the line behind the word, and the field's value so far


@dataclass(frozen=True)
class Field:
    """words: what sets it; write: its value as these words; many: whether they may come more than once."""

    name: str
    words: Mapping[str, Read]
    write: Callable[[Any], str]
    many: bool = False


def number(name: str, low: int, high: int, word: str = "") -> Field:
    word = word or name
    return Field(name, {word: lambda cursor, _: cursor.number(low, high)}, lambda value: f"{word} {value}")


def flag(name: str, **values: Any) -> Field:
    """Words that stand for values."""

    def constant(value: Any) -> Read:
        return lambda cursor, _: value

    words = {word: constant(value) for word, value in values.items()}
    return Field(name, words, lambda value: next(word for word, meant in values.items() if meant == value))


def checksum(high: int = SHORT, bad: str = "badsum", value: str = "sum", udp: bool = False) -> Field:
    """badsum is wrong, sum N is N; udpsum is UDP-Lite's as Linux wants it."""
    words: dict[str, Read] = {bad: lambda cursor, _: "bad", value: lambda cursor, _: cursor.number(0, high)}
    if udp:
        words["udpsum"] = lambda cursor, _: "udp"
    return Field("checksum", words, lambda meant: {"bad": bad, "udp": "udpsum"}.get(meant, f"{value} {meant}"))


def payload(name: str, zeros: str, given: str) -> Field:
    """So many zeros, or these bytes."""
    words: dict[str, Read] = {zeros: lambda cursor, _: cursor.number(0, MOST_DATA), given: lambda cursor, _: cursor.octets()}
    return Field(name, words, lambda value: f"{given} {bytes_text(value)}" if isinstance(value, bytes) else f"{zeros} {value}")


DATA = payload("data", "len", "data")


# --- TCP -------------------------------------------------------------------------------------------------------------------------------


def _sack(cursor: Cursor, options: tuple[Option, ...]) -> tuple[Option, ...]:
    expected = "blocks of sequence numbers, as in 501-601,701-801"
    edges = cursor.take(expected).replace("-", ",").split(",")
    if len(edges) % 2 or not all(edge.isascii() and edge.isdigit() and len(edge) <= 10 and int(edge) <= LONG for edge in edges):
        cursor.fail(expected)
    return (*options, Option("sack", tuple(map(int, edges))))


def _numbers(name: str, *most: int) -> Read:
    return lambda cursor, options: (*options, Option(name, tuple(cursor.number(0, high) for high in most)))


def _option_text(option: Option) -> str:
    if isinstance(option.values, bytes):
        return f"opt {bytes_text(option.values)}"
    if option.name == "sack":
        pairs = zip(option.values[::2], option.values[1::2], strict=True)
        return "sack " + ",".join(f"{left}-{right}" for left, right in pairs)
    return " ".join((option.name, *map(str, option.values)))


OPTIONS = Field(
    "options",
    {
        "mss": _numbers("mss", SHORT),
        "wscale": _numbers("wscale", BYTE),
        "sackok": _numbers("sackok"),
        "sack": _sack,
        "timestamp": _numbers("timestamp", LONG, LONG),
        "nop": _numbers("nop"),
        "eol": _numbers("eol"),
        "opt": lambda cursor, options: (*options, Option("raw", cursor.octets())),
    },
    lambda options: " ".join(map(_option_text, options)),
    many=True,
)


def flags_of(word: str) -> str | None:
    """ "SA", or "none" for no flag at all; None if these are no flags."""
    if word == "none":
        return ""
    return word if word and set(word) <= set(craft.FLAG_BITS) and len(set(word)) == len(word) else None


# --- ICMP ------------------------------------------------------------------------------------------------------------------------------

ICMP_TYPES = {
    "echo": 8, "echo-reply": 0, "unreachable": 3, "source-quench": 4, "redirect": 5, "time-exceeded": 11, "parameter-problem": 12, "timestamp": 13,
    "timestamp-reply": 14, "information": 15, "information-reply": 16, "address-mask": 17, "address-mask-reply": 18,
}  # fmt: skip
ICMPV6_TYPES = {
    "unreachable": 1, "too-big": 2, "time-exceeded": 3, "parameter-problem": 4, "echo": 128, "echo-reply": 129, "listener-query": 130,
    "listener-report": 131, "listener-done": 132, "router-solicitation": 133, "router-advertisement": 134, "neighbour-solicitation": 135,
    "neighbour-advertisement": 136, "redirect": 137, "node-information": 139, "node-information-reply": 140, "listener-report-v2": 143,
}  # fmt: skip


def _about(cursor: Cursor, _: Any) -> int | str:
    expected = "the step that is quoted: #N, counted from 0, or its label"
    word = cursor.take(expected)
    if word.startswith("#"):
        if not (word[1:].isascii() and word[1:].isdigit() and len(word) < 10):
            cursor.fail(expected)
        return int(word[1:])
    if not is_label(word):
        cursor.fail(expected)
    return word


def is_label(word: str) -> bool:
    return word.isascii() and word.replace("-", "_").isidentifier()


def _ends(cursor: Cursor, _: Any) -> Ends:
    expected = "the ends of the quoted packet in one word, as in 192.0.2.1:40000>B:80"
    source, _, target = cursor.take(expected).partition(">")
    src, sport = cursor.endpoint(source, expected)
    dst, dport = cursor.endpoint(target, expected)
    return Ends(src, dst, sport, dport)


def _ends_text(ends: Ends) -> str:
    return f"as {endpoint_text(ends.src, ends.sport)}>{endpoint_text(ends.dst, ends.dport)}"


def _about_text(step: int | str) -> str:
    return f"about #{step}" if isinstance(step, int) else f"about {step}"


# --- SCTP ------------------------------------------------------------------------------------------------------------------------------

CHUNK_TYPES = {"data": sctp.DATA, "sack": 3, **{event: kind for kind, event in sctp.EVENT.items()}}
CHUNK_NAMES = {kind: name for name, kind in CHUNK_TYPES.items()}
CHUNK = (
    flag("flags", T=sctp.T_FLAG),
    number("flags", 0, BYTE),
    number("tag", 0, LONG, "itag"),
    payload("body", "len", "body"),
    number("length", 0, SHORT),
)


def _chunk(kind: int | None) -> Read:
    """A chunk and the words that belong to it: all that follow it and are no word for the packet."""

    def read(cursor: Cursor, chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        draft: dict[str, Any] = {"type": cursor.number(0, BYTE) if kind is None else kind}
        while cursor.peek is not None and _lookup(CHUNK, cursor.peek):
            read_word(cursor, ((CHUNK, draft),))
        return (*chunks, Chunk(**draft))

    return read


def _chunk_text(chunk: Chunk) -> str:
    name = CHUNK_NAMES.get(chunk.type, f"chunk {chunk.type}")
    wanted = [field for field in CHUNK if field.name != "flags"]
    flags = [] if not chunk.flags else ["T"] if chunk.flags == sctp.T_FLAG else [f"flags {chunk.flags}"]
    return " ".join([name, *flags, *write_fields(wanted, chunk)])


CHUNKS = Field(
    "chunks",
    {**{name: _chunk(kind) for name, kind in CHUNK_TYPES.items()}, "chunk": _chunk(None)},
    lambda chunks: " ".join(map(_chunk_text, chunks)),
    many=True,
)


# --- IP --------------------------------------------------------------------------------------------------------------------------------

EXT_TYPES = {"hop-by-hop": craft.HOP_BY_HOP, "routing": craft.ROUTING, "ah": craft.AH, "no-next": craft.NO_NEXT, "destination": craft.DESTINATION}
EXT_NAMES = {kind: name for name, kind in EXT_TYPES.items()}


def _ext(cursor: Cursor, exts: tuple[Ext, ...]) -> tuple[Ext, ...]:
    expected = f"an extension header: {', '.join(EXT_TYPES)} or a number, with its bytes behind a colon if need be, as in 43:00020000"
    kind, colon, digits = cursor.take(expected).partition(":")
    if kind not in EXT_TYPES and not (kind.isascii() and kind.isdigit() and len(kind) <= 3 and int(kind) <= BYTE):
        cursor.fail(expected)
    if colon and (len(digits) % 2 or set(digits) - set("0123456789abcdefABCDEF")):
        cursor.fail(expected)
    return (*exts, Ext(EXT_TYPES[kind] if kind in EXT_TYPES else int(kind), bytes.fromhex(digits) if colon else None))


def _ext_text(ext: Ext) -> str:
    return f"ext {EXT_NAMES.get(ext.type, ext.type)}" + ("" if ext.body is None else f":{ext.body.hex()}")


def _frag(cursor: Cursor, _: Any) -> tuple[int, int | None]:
    expected = "a slice of the datagram: OFFSET+SIZE or OFFSET+, the offset a multiple of 8"
    offset, plus, size = cursor.take(expected).partition("+")
    if not (plus and all(not part or (part.isascii() and part.isdigit() and len(part) <= 5) for part in (offset, size)) and offset):
        cursor.fail(expected)
    if int(offset) % 8 or int(offset) > SHORT:
        cursor.fail(expected)
    return int(offset), int(size) if size else None


def _at(cursor: Cursor, _: Any) -> int:
    expected = "the offset that the fragment says it has, a multiple of 8 up to 65528"
    word = cursor.take(expected)
    if not (word.isascii() and word.isdigit() and len(word) <= 5) or int(word) % 8 or int(word) > SHORT:
        cursor.fail(expected)
    return int(word)


IP = (
    number("ttl", 0, BYTE),
    number("tos", 0, BYTE),
    number("ident", 0, LONG, "ipid"),
    flag("df", df=True),
    Field("options", {"ipopt": lambda cursor, _: cursor.octets()}, lambda value: f"ipopt {bytes_text(value)}"),
    Field("ext", {"ext": _ext}, lambda exts: " ".join(map(_ext_text, exts)), many=True),
    Field("frag", {"frag": _frag}, lambda v: f"frag {v[0]}+{'' if v[1] is None else v[1]}"),
    flag("more", more=True, last=False),
    Field("at", {"fragat": _at}, lambda v: f"fragat {v}"),
    number("cut", 0, SHORT),
    number("pad", 0, SHORT),
    number("version", 0, 15, "ipver"),
    number("ihl", 0, 15),
    number("length", 0, SHORT, "iplen"),
    checksum(bad="badipsum", value="ipsum"),
    number("zone", 0, SHORT),
)
# Words in the order in which people read them: flags, numbers, options, payload, then what is wrong.
FIELDS: dict[type, tuple[Field, ...]] = {
    Tcp: (
        number("seq", 0, LONG), number("ack", 0, LONG), number("win", 0, SHORT), number("urg", 0, SHORT), OPTIONS, DATA, number("doff", 0, 15),
        checksum(),
    ),
    Udp: (DATA, number("length", 0, SHORT), checksum()),
    UdpLite: (DATA, number("coverage", 0, SHORT), checksum(udp=True)),
    Icmp: (
        number("code", 0, BYTE), number("id", 0, SHORT), number("seq", 0, SHORT), Field("about", {"about": _about}, _about_text),
        Field("ends", {"as": _ends}, _ends_text), number("quote", 0, SHORT), DATA, checksum(),
    ),
    Sctp: (
        number("tag", 0, LONG), CHUNKS, Field("tail", {"tail": lambda cursor, _: cursor.octets()}, lambda v: f"tail {bytes_text(v)}"), checksum(LONG),
    ),
    Gre: (number("proto", 0, SHORT), number("call", 0, SHORT), number("flags", 0, BYTE), DATA),
    Other: (DATA,),
}  # fmt: skip


# --- reading and writing by the tables -------------------------------------------------------------------------------------------------


def _lookup(table: tuple[Field, ...], word: str) -> Field | None:
    return next((field for field in table if word in field.words), None)


def read_word(cursor: Cursor, tables: tuple[tuple[tuple[Field, ...], dict[str, Any]], ...]) -> None:
    """One word and what belongs to it, into the draft beside the first table that has it. A draft holds a dataclass's arguments."""
    word = cursor.take("a word of the packet")
    for table, draft in tables:
        field = _lookup(table, word)
        if field is None:
            continue
        if field.name in draft and not field.many:
            cursor.fail(f"{field.name} to be given once")
        draft[field.name] = field.words[word](cursor, draft.get(field.name, ()))
        return
    known = [word for table, _ in tables for field in table for word in field.words]
    cursor.fail(f"one of {' '.join(known)}, or => and what is expected")


def read_fields(cursor: Cursor, kind: type, draft: dict[str, Any]) -> tuple[Any, Ip]:
    """The words up to =>, of a transport protocol and of IP."""
    ip: dict[str, Any] = {}
    while cursor.peek not in (None, "=>"):
        read_word(cursor, ((FIELDS[kind], draft), (IP, ip)))
    return kind(**draft), Ip(**ip)


def write_fields(table: tuple[Field, ...] | list[Field], value: Any) -> list[str]:
    """The words for all fields that are not at their defaults."""
    defaults = {field.name: field.default for field in fields(value)}
    return [field.write(getattr(value, field.name)) for field in table if not _same(getattr(value, field.name), defaults[field.name])]


def _same(value: Any, default: Any) -> bool:
    """0 zeros and no bytes are told apart, as are False and None."""
    return type(value) is type(default) and value == default


def _named(names: Mapping[str, int], value: int) -> str:
    return next((name for name, number in names.items() if number == value), str(value))


def read_protocol(cursor: Cursor) -> tuple[L4, Ip]:
    """A packet from its protocol on."""
    expected = "TCP flags as in SA (or none), or udp, udplite, icmp, icmpv6, sctp, gre, proto"
    word = cursor.take(expected)
    flags = flags_of(word)
    if flags is not None:
        return read_fields(cursor, Tcp, {"flags": flags})
    plain = {"udp": Udp, "udplite": UdpLite, "sctp": Sctp}
    if word in plain:
        return read_fields(cursor, plain[word], {})
    if word in ("icmp", "icmpv6"):
        names, v6 = (ICMPV6_TYPES, True) if word == "icmpv6" else (ICMP_TYPES, False)
        kind = names[cursor.take("")] if cursor.peek in names else _icmp_type(cursor, names)
        return read_fields(cursor, Icmp, {"type": kind, "v6": v6})
    if word == "gre":
        version = cursor.one_of([f"v{n}" for n in range(8)], "GRE's version")
        return read_fields(cursor, Gre, {"version": int(version[1:])})
    if word == "proto":
        return read_fields(cursor, Other, {"proto": cursor.number(0, BYTE)})
    cursor.fail(expected)


def _icmp_type(cursor: Cursor, names: Mapping[str, int]) -> int:
    expected = f"a type, 0 to {BYTE} or {', '.join(names)}"
    text = cursor.take(expected)
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= BYTE):
        cursor.fail(expected)
    return int(text)


def write_protocol(l4: L4, ip: Ip) -> str:
    """What read_protocol() reads."""
    heads: dict[type, Callable[[Any], str]] = {
        Tcp: lambda tcp: tcp.flags or "none",
        Udp: lambda _: "udp",
        UdpLite: lambda _: "udplite",
        Sctp: lambda _: "sctp",
        Icmp: lambda icmp: f"icmpv6 {_named(ICMPV6_TYPES, icmp.type)}" if icmp.v6 else f"icmp {_named(ICMP_TYPES, icmp.type)}",
        Gre: lambda gre: f"gre v{gre.version}",
        Other: lambda other: f"proto {other.proto}",
    }
    return " ".join([heads[type(l4)](l4), *write_fields(FIELDS[type(l4)], l4), *write_fields(IP, ip)])

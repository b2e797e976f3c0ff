"""FTP in the model (RFC 959, RFC 2428): the data connections that PORT, EPRT and the answers to PASV and EPSV announce.

A command is looked for only where a line is known to begin: behind an earlier segment that ended in a newline. So the first one of a side is never
seen. What is cut off, or cannot be understood, drops its segment; the sender brings it again.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ctcore.model.conn import MASK32
from ctcore.model.expectations import Expectation
from ctcore.model.helpers.aid import Aid
from ctcore.model.helpers.text import read_ip6
from ctcore.model.seqadj import later
from ctcore.types import Dir, Proto, Reason, State

REMEMBERED = 2  # beginnings of lines, of each direction
NUMBERS = re.compile(rb"([0-9]*),([0-9]*),([0-9]*),([0-9]*),([0-9]*),([0-9]*)(?=[^0-9,])", re.DOTALL)
DOTTED = re.compile(rb"([0-9]*)\.([0-9]*)\.([0-9]*)\.([0-9]*)")
PORT = re.compile(rb"[0-9]*")


@dataclass
class Memory:
    """Where lines are known to begin, by direction."""

    lines: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))


class Found(NamedTuple):
    """What a command says: the span that names the place, the address if it names one, the port. form: how it is said, with {} for each part."""

    start: int
    end: int
    address: bytes | None
    port: int
    form: str


class Partial(Exception):
    """The command is cut off, or makes no sense."""


def help(aid: Aid) -> int:
    """One packet."""
    if aid.state != State.ESTABLISHED or not aid.payload:
        return Reason.R_OK
    memory = aid.ext.memory = aid.ext.memory or Memory()
    lines = memory.lines[aid.dir]
    reason: int = Reason.R_OK
    if aid.packet.seq in lines:
        try:
            found = find(aid.payload, aid.dir, aid.packet.key.family)
        except Partial:
            return Reason.R_HELPER_PARTIAL
        if found:
            reason = expect_data(aid, found)
    if aid.payload.endswith(b"\n"):
        remember(lines, (aid.packet.seq + len(aid.payload)) & MASK32)
    return reason


def expect_data(aid: Aid, found: Found) -> int:
    """Only to the sender itself: another address would open a way to a third party."""
    sender, back = aid.conn.key[aid.dir], aid.conn.key[1 - aid.dir]
    named = sender.src if found.address is None else found.address + sender.src[len(found.address) :]
    if named != sender.src:
        return Reason.R_OK
    draft = aid.draft(back.src, back.dst, Proto.PROTO_TCP, found.port)
    return rewrite_place(aid, found, draft) if aid.translated else aid.announce_or_drop(draft)


def rewrite_place(aid: Aid, found: Found, draft: Expectation) -> int:
    """Expect the connection where the sender is seen from the other side, and say so."""
    announced = aid.announce_at_port(aid.followed(draft, 1 - aid.dir, found.port))
    if not announced:
        return Reason.R_HELPER_REFUSED
    address, port, family = aid.conn.key[1 - aid.dir].dst, announced.key.dport, aid.packet.key.family
    place = ".".join(map(str, address[:4])) if family == 4 else ipaddress.IPv6Address(address).exploded
    text = found.form.format(family=1 if family == 4 else 2, place=place, commas=place.replace(".", ","), port=port, high=port >> 8, low=port & 255)
    size = found.end - found.start
    if not aid.edit(found.start, size, text.encode()):
        aid.office.withdraw(aid.conn, announced)
        return Reason.R_HELPER_REFUSED
    aid.move_sequence(len(text) - size)
    return Reason.R_OK


def remember(lines: list[int], seq: int) -> None:
    """A line begins at seq. Of three the earliest is forgotten, unless it is this one."""
    if seq in lines:
        return
    if len(lines) < REMEMBERED:
        lines.append(seq)
        return
    older = 0 if later(lines[1], lines[0]) else 1
    if later(seq, lines[older]):
        lines[older] = seq


# --- commands --------------------------------------------------------------------------------------------------------------------------


def find(text: bytes, d: int, family: int) -> Found | None:
    """The command that the text begins with, or None. Raises Partial."""
    for word, read in COMMANDS[d]:
        if word.startswith(text.upper()[: len(word)]) and len(text) <= len(word):
            raise Partial
        if text[: len(word)].upper() == word:
            return read(text, len(word), family)
    return None


def read_port_command(text: bytes, at: int, family: int) -> Found:
    return numbers(text, behind(text, at, b" "), b"\r")


def read_passive(text: bytes, at: int, family: int) -> Found:
    """RFC 1123 4.1.2.6: the numbers begin with the first digit, in parentheses or not."""
    digit = re.compile(rb"[0-9]").search(text, at)
    if not digit:
        raise Partial
    return numbers(text, digit.start(), None)


def read_extended_port(text: bytes, at: int, family: int) -> Found:
    """|1|132.235.1.2|6275| or |2|1080::8:800:200C:417A|5282| (RFC 2428 2)."""
    start = behind(text, at, b" ")
    delimiter = delimiter_at(text, start)
    if text[start + 1 : start + 3] != (b"1" if family == 4 else b"2") + delimiter:
        raise Partial
    if family == 4:
        dotted = DOTTED.match(text, start + 3) if delimiter != b"." else None
        if not dotted or text[dotted.end() : dotted.end() + 1] != delimiter:
            raise Partial
        address, stop = address_of(dotted.groups()), dotted.end()
    else:
        found = read_ip6(text, start + 3, delimiter)
        if not found:
            raise Partial
        address, stop = found
    port, end = port_at(text, stop + 1, delimiter)
    return Found(start, end, address, port, "|{family}|{place}|{port}|")


def read_extended_passive(text: bytes, at: int, family: int) -> Found:
    """|||6446| (RFC 2428 3)."""
    start = behind(text, at, b"(")
    delimiter = delimiter_at(text, start)
    if text[start : start + 3] != delimiter * 3:
        raise Partial
    port, end = port_at(text, start + 3, delimiter)
    return Found(start, end, None, port, "|||{port}|")


Reader = Callable[[bytes, int, int], Found]
COMMANDS: dict[int, tuple[tuple[bytes, Reader], ...]] = {
    Dir.ORIG: ((b"PORT", read_port_command), (b"EPRT", read_extended_port)),
    Dir.REPLY: ((b"227 ", read_passive), (b"229 ", read_extended_passive)),
}


def behind(text: bytes, at: int, mark: bytes) -> int:
    found = text.find(mark, at)
    if found < 0:
        raise Partial
    return found + 1


def numbers(text: bytes, at: int, end: bytes | None) -> Found:
    """h1,h2,h3,h4,p1,p2, and then `end`, or anything. What does not fit a byte spills into its neighbour, as it always did."""
    match = NUMBERS.match(text, at)
    if not match or (end is not None and text[match.end() : match.end() + 1] != end):
        raise Partial
    high, low = (int(each or b"0") & MASK32 for each in match.groups()[4:])
    return Found(at, match.end(), address_of(match.groups()[:4]), (high << 8 | low) & 0xFFFF, "{commas},{high},{low}")


def address_of(parts: tuple[bytes, ...]) -> bytes:
    a, b, c, d = (int(each or b"0") for each in parts)
    return ((a << 24 | b << 16 | c << 8 | d) & MASK32).to_bytes(4, "big")


def delimiter_at(text: bytes, at: int) -> bytes:
    """RFC 2428 2: a printable character that is no digit; and three more characters behind it."""
    delimiter = text[at : at + 1]
    if len(text) - at <= 3 or not re.fullmatch(rb"[!-~]", delimiter) or delimiter.isdigit():
        raise Partial
    return delimiter


def port_at(text: bytes, at: int, delimiter: bytes) -> tuple[int, int]:
    """A port (modulo 2^16, but not 0) with its delimiter, and the place behind them."""
    match = PORT.match(text, at)
    assert match
    port = int(match.group() or b"0") & 0xFFFF
    if text[match.end() : match.end() + 1] != delimiter or port == 0:
        raise Partial
    return port, match.end() + 1

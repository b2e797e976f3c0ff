"""Reading of SIP (RFC 3261) and SDP (RFC 4566) in the model: as leniently as Linux reads them.

A header begins a line, a line that begins with a blank goes on with the one before. Each search takes a message and a place, and gives a span or
None; what is there and makes no sense raises Misread, with the place from which to look for another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ctcore.model.conn import MASK32
from ctcore.model.helpers.text import read_ip4, read_ip6

DEFAULT_PORT, PORTS = 5060, range(1024, 65536)
LETTER = rb"A-Za-z\xc0-\xd6\xd8-\xf6\xf8-\xff"  # of Latin-1, as the kernel has it
LETTERS, DIGITS = re.compile(rb"[%b]*" % LETTER), re.compile(rb"[0-9]*")
NEWLINE = re.compile(rb"\r\n?|\n")
GOES_ON = re.compile(rb"(?:\r\n?|\n)[ \t]+")
BLANKS = re.compile(rb"[ \t]*")
MEDIA = re.compile(rb"[%b]* [0-9]*" % LETTER)


class Misread(Exception):
    """It is there, and makes no sense. at: where to look for another one."""

    def __init__(self, at: int = 0):
        super().__init__(at)
        self.at = at


class Span(NamedTuple):
    start: int
    end: int


class Uri(NamedTuple):
    """An address with or without a port, and where both stand."""

    span: Span
    address: bytes
    port: int


class Header(NamedTuple):
    """names: long and compact; before: text in front of the value; form: of the value."""

    name: bytes
    compact: bytes
    before: bytes
    form: str


CSEQ = Header(b"cseq", b"", b"", "number")
FROM = Header(b"from", b"f", b"sip:", "uri")
TO = Header(b"to", b"t", b"sip:", "uri")
CONTACT = Header(b"contact", b"m", b"sip:", "uri")
VIA = {17: Header(b"via", b"v", b"udp ", "place"), 6: Header(b"via", b"v", b"tcp ", "place")}
EXPIRES = Header(b"expires", b"", b"", "number")
LENGTH = Header(b"content-length", b"l", b"", "number")


def number_at(text: bytes, at: int) -> int:
    """Modulo 2^32; 0 if there are no digits."""
    digits = DIGITS.match(text, at).group()  # type: ignore[union-attr]
    return int(digits[-32:] or b"0") & MASK32  # 2^32 divides 10^32


def address_at(text: bytes, at: int, family: int, brackets: bool) -> tuple[bytes, int] | None:
    """An address and where it ends. brackets: an IPv6 address must stand in them."""
    if family == 4:
        return read_ip4(text, at, None)
    opened = text[at : at + 1] == b"["
    if brackets and not opened:
        return None
    found = read_ip6(text, at + opened, None)
    if found and text[found[1] : found[1] + 1] == b"]":
        return found[0], found[1] + 1
    return None if brackets else found


def place_at(text: bytes, at: int, family: int) -> Uri | None:
    """An address with or without a port, and something behind it. A port is believed if it has up to five digits."""
    found = address_at(text, at, family, True)
    match = found and re.compile(rb":([0-9]{1,5})(?![0-9])|(?!:)", re.DOTALL).match(text, found[1])
    if not found or not match or match.end() >= len(text):
        return None
    port = int(match.group(1) or DEFAULT_PORT)
    return Uri(Span(at, match.end()), found[0], port) if port in PORTS else None


def behind_user(text: bytes, at: int) -> int:
    match = re.compile(rb"[^@\r\n]*@", re.DOTALL).match(text, at)
    return match.end() if match else at


def value_at(text: bytes, at: int, form: str, family: int) -> Span | None:
    end = at
    if form == "number":
        end = DIGITS.match(text, at).end()  # type: ignore[union-attr]
    elif form in ("uri", "place"):
        at = behind_user(text, at) if form == "uri" else at
        place = place_at(text, at, family)
        end = place.span.end if place else at
    elif form == "address":
        found = read_ip4(text, at, None) if family == 4 else read_ip6(text, at, None)
        end = found[1] if found else at
    else:
        match = MEDIA.match(text, at)
        end = match.end() if match else at
    return Span(at, end) if end > at else None


# --- headers ---------------------------------------------------------------------------------------------------------------------------


def lines(text: bytes, at: int) -> Iterator[int]:
    """Where lines begin behind that of `at`. A newline that is a line's first character ends none."""
    while match := NEWLINE.search(text, at):
        if match.end() >= len(text):
            return
        yield match.end()
        at = match.end() + 1


def skip_blanks(text: bytes, at: int) -> int | None:
    """Behind blanks and at most one continuation; None if the header ends."""
    at = BLANKS.match(text, at).end()  # type: ignore[union-attr]
    if text[at : at + 1] not in (b"\r", b"\n"):
        return at
    match = GOES_ON.match(text, at)
    return match.end() if match else None


def search(text: bytes, at: int, limit: int, word: bytes) -> int | None:
    """A word in the rest of a header, whatever case, with something behind it."""
    limit -= len(word)
    while at < limit:
        if text[at] in b"\r\n":
            match = GOES_ON.match(text, at, limit)
            if not match:
                return None
            at = match.end()
        elif text[at : at + len(word)].lower() == word:
            return at
        at += 1
    return None


def find_header(text: bytes, at: int, header: Header, family: int) -> Span | None:
    """The value of the first one behind the line of `at`. A longer name that begins in the same way hides all that follow."""
    for start in lines(text, at):
        if text[start] in b" \t":
            continue
        if text[start : start + len(header.name)].lower() == header.name:
            return _read_header(text, start + len(header.name), header, family)
        compact = header.compact and text[start : start + 1].lower() == header.compact and start + 2 <= len(text)
        if compact and not LETTERS.match(text, start + 1).group():  # type: ignore[union-attr]
            return _read_header(text, start + 1, header, family)
    return None


def _read_header(text: bytes, at: int, header: Header, family: int) -> Span | None:
    colon = skip_blanks(text, at)
    if colon is None or text[colon : colon + 1] != b":" or colon + 1 >= len(text):
        return None
    start = skip_blanks(text, colon + 1)
    if start is None:
        return None
    value: int | None = start
    if header.before:
        value = search(text, start, len(text), header.before)
        if value is None:
            raise Misread(start)
        value += len(header.before)
    span = value_at(text, value, header.form, family)  # type: ignore[arg-type]
    if not span:
        raise Misread(start)
    return span


def _next_value(text: bytes, at: int, header: Header, family: int) -> Span | None:
    """The next one in a list."""
    comma = search(text, at, len(text), b",")
    value = None if comma is None else search(text, comma, len(text), header.before)
    if value is None:
        return None
    value += len(header.before)
    span = value_at(text, value, header.form, family)
    if not span:
        raise Misread(value)
    return span


class Walk:
    """Through all addresses in headers of a kind; the text may change meanwhile."""

    def __init__(self, header: Header, family: int):
        self.header, self.family, self.at, self.in_header = header, family, 0, False

    def next(self, text: bytes) -> Uri | None:
        """The next one, or None. Raises Misread."""
        span = self._span(text)
        if span is None:
            return None
        uri = read_uri(text, span.start, self.family)
        self.at = uri.span.end
        return uri

    def _span(self, text: bytes) -> Span | None:
        at = self.at
        while True:
            find = _next_value if self.in_header else find_header
            try:
                span = find(text, at, self.header, self.family)
            except Misread as misread:
                at = misread.at
                continue
            if span or not self.in_header:
                self.in_header = span is not None
                return span
            self.in_header = False


def read_uri(text: bytes, at: int, family: int) -> Uri:
    uri = place_at(text, at, family)
    if not uri:
        raise Misread
    return uri


def find_uri(text: bytes, header: Header, family: int) -> Uri | None:
    """The first one. Raises Misread."""
    return Walk(header, family).next(text)


def request_uri(text: bytes, family: int) -> Uri | None:
    """The address in the first line (RFC 3261 7.1), if there is one that can be read."""
    method = LETTERS.match(text)
    assert method
    at = method.end() + 1
    if at == 1 or at >= len(text):
        return None
    while at < len(text) - 4:
        if text[at] in b"\r\n":
            return None
        if text[at : at + 4].lower() == b"sip:":
            at += 4
            break
        at += 1
    at = behind_user(text, at)
    try:
        return read_uri(text, at, family)
    except Misread:
        return None


# --- parameters ------------------------------------------------------------------------------------------------------------------------


def find_param(text: bytes, at: int, name: bytes) -> tuple[int, int] | None:
    """Where its value begins, and the comma, or the end, before which it must have."""
    comma = search(text, at, len(text), b",")
    limit = len(text) if comma is None else comma
    start = search(text, at, limit, name)
    return None if start is None else (start + len(name), limit)


def number_param(text: bytes, at: int, name: bytes) -> tuple[int, Span] | None:
    """A number in digits. Raises Misread."""
    found = find_param(text, at, name)
    if not found:
        return None
    span = value_at(text, found[0], "number", 4)
    if not span:
        raise Misread
    return number_at(text, span.start), span


def address_param(text: bytes, at: int, name: bytes, family: int, brackets: bool) -> tuple[bytes, Span] | None:
    found = find_param(text, at, name)
    read = found and address_at(text[: found[1]], found[0], family, brackets)
    return (read[0], Span(found[0], read[1])) if found and read else None


# --- session descriptions --------------------------------------------------------------------------------------------------------------

SDP_FORMS = {b"v=": "number", b"o=": "address", b"c=": "address", b"m=": "media"}


def find_line(text: bytes, at: int, name: bytes, stop: bytes | None, family: int) -> Span | None:
    """The value of the first line of a name behind that of `at`, and before one that is named stop; None, too, if it makes no sense."""
    for start in lines(text, at):
        here = text[start : start + 2].lower()
        if here == stop:
            return None
        if here != name:
            continue
        value = start + 2
        if SDP_FORMS[name] == "address":
            before = b"IN IP4 " if family == 4 else b"IN IP6 "
            end = NEWLINE.search(text, value)
            value = text.find(before, value, min(end.start() if end else len(text), len(text) - 1))
            if value < 0:
                return None
            value += 7
        return value_at(text, value, SDP_FORMS[name], family)
    return None

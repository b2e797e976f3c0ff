"""SIP in the model (RFC 3261): media that SDP (RFC 4566) announces, and calls to a client that has registered.

Theory of operation: a message is a request or a response with a CSeq, which says what it is about; handlers by method look at its SDP, or at its
contacts. An expectation for media holds for both RTP and RTCP, from the other end of the signalling connection to the address that the SDP names,
if that is the sender's own. A registration is expected silently, and for good, once the registrar has agreed.
Over TCP a segment may hold several messages, each as long as its Content-Length says. Header fields may be continued on lines that begin with a
blank (RFC 3261 7.3.1).
Not here: what a message says beyond that, and translation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ctcore.model.expectations import SIGNALLING, Announced, Kind
from ctcore.model.helpers.aid import Aid
from ctcore.model.helpers.text import read_ip4, read_ip6
from ctcore.types import Proto, Reason, State, Status

LIFETIME = 3600  # seconds that a signalling connection lives after a message
SHORTEST = len(b"SIP/2.0 200")
PORT, LEAST_PORT, MOST_PORT = 5060, 1024, 65535
MASK32 = 0xFFFFFFFF


@dataclass
class Memory:
    """The numbers of the last REGISTER and INVITE that were let through."""

    register: int = 0
    invite: int = 0


class Drop(Exception):
    """The message cannot be understood where it has to be."""


class Place(NamedTuple):
    """A span that names an address, the address, and the port."""

    start: int
    end: int
    address: bytes
    port: int


# --- header fields ---------------------------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """A header field: its names, what stands in front of the value in question, and how to find the value's end."""

    name: bytes
    short: bytes
    mark: bytes
    value: Callable[[Text, int], tuple[int, int] | None]


class Text(NamedTuple):
    """A message, and the family of addresses in it."""

    data: bytes
    family: int

    def at(self, i: int) -> bytes:
        return self.data[i : i + 1]

    def says(self, i: int, word: bytes) -> bool:
        return self.data[i : i + len(word)].upper() == word.upper() if len(self.data) - i >= len(word) else False

    def number(self, i: int) -> tuple[int, int]:
        """Decimal digits, modulo 2^32, and where they end."""
        match = re.compile(rb"[0-9]*").match(self.data, i)
        assert match
        return int(match.group() or b"0") & MASK32, match.end()


def digits(text: Text, i: int) -> tuple[int, int] | None:
    end = text.number(i)[1]
    return (i, end) if end > i else None


def address_at(text: Text, i: int, brackets: bool) -> tuple[bytes, int] | None:
    """An address; of IPv6 in brackets where it is a URI's."""
    if text.family == 4:
        return read_ip4(text.data, i, None)
    inside = text.at(i) == b"["
    if brackets and not inside:
        return None
    found = read_ip6(text.data, i + inside, None)
    if found is None:
        return None
    closed = text.at(found[1]) == b"]"
    return None if brackets and not closed else (found[0], found[1] + closed)


def place_span(text: Text, i: int) -> tuple[int, int] | None:
    """An address and a port."""
    found = address_at(text, i, True)
    if found is None:
        return None
    end = found[1]
    if text.at(end) == b":":
        end = text.number(end + 1)[1]
    return i, end


def user_place_span(text: Text, i: int) -> tuple[int, int] | None:
    """The same behind a user's name, if there is one on this line."""
    match = re.compile(rb"[^@\r\n]*@").match(text.data, i)
    return place_span(text, match.end() if match else i)


CSEQ = Field(b"CSeq", b"", b"", digits)
EXPIRES = Field(b"Expires", b"", b"", digits)
LENGTH = Field(b"Content-Length", b"l", b"", digits)
CONTACT = Field(b"Contact", b"m", b"sip:", user_place_span)


def newline(text: Text, i: int) -> int | None:
    """Behind a line's end at i, CR, LF or both; None where the text ends there."""
    i += 2 if text.at(i) == b"\r" and text.at(i + 1) == b"\n" else 1
    return i if i < len(text.data) else None


def continued(text: Text, i: int, limit: int) -> int | None:
    """From a line's end to what continues it, or None if nothing does. limit: the text ends here for the purpose."""
    after = newline(text, i)
    if after is None or after >= limit or text.at(after) not in (b" ", b"\t"):
        return None
    while after < limit and text.at(after) in (b" ", b"\t"):
        after += 1
    return after


def skip_blanks(text: Text, i: int) -> int | None:
    """Over spaces and continuations; None where the field ends meanwhile."""
    end = len(text.data)
    while i < end and text.at(i) in (b" ", b"\r", b"\n"):
        if text.at(i) == b" ":
            i += 1
            continue
        after = continued(text, i, end)
        if after is None:
            return None
        # One character is passed over behind a continuation: it has been looked at already.
        i = after + 1
    return i


def search(text: Text, i: int, word: bytes, limit: int | None = None) -> int | None:
    """A word within a field's value, over its continuations. It has to end before the limit."""
    limit = (len(text.data) if limit is None else limit) - len(word)
    while i < limit:
        if text.at(i) in (b"\r", b"\n"):
            after = continued(text, i, limit)
            if after is None:
                return None
            i = after + 1
            continue
        if text.says(i, word):
            return i
        i += 1
    return None

"""One line of a scenario, read word by word; every complaint names file, line, column and what was expected.

Invariant: whatever the line holds, reading it ends in values or in a ScenarioError.
Not here: which words there are (words, expectation) and what lines are made of them (text).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple, NoReturn

from datapath.scenario.steps import ScenarioError

# A quoted text, a bracketed set that may hold spaces, or anything up to a space.
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|status\[[^\]]*\]|[^ \t\r]+')
_NUMBER = re.compile(r"(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})\Z")
_SECONDS = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,400})?\Z")
ENDPOINT = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<plain>[^\[\]:>]+))(?::(?P<port>[0-9]{1,5}))?\Z")
MOST_PORT = 65535
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
_SHOWN = 40  # characters of a word in a complaint


class Word(NamedTuple):
    """column: from 1."""

    text: str
    column: int


def split(line: str) -> tuple[list[Word], str]:
    """A line's words, and its comment, which begins with a # that is no number behind `about`."""
    words: list[Word] = []
    for match in _WORD.finditer(line):
        text = match[0]
        if text.startswith("#") and not (words and words[-1].text == "about"):
            return words, line[match.start() + 1 :].strip()
        words.append(Word(text, match.start() + 1))
    return words, ""


class Cursor:
    """The words of a line, from left to right."""

    def __init__(self, name: str, line: int, words: list[Word], end: int) -> None:
        self.name, self.line, self.words, self.end = name, line, words, end
        self.at = 0

    @property
    def peek(self) -> str | None:
        """The next word, None at the end."""
        return self.words[self.at].text if self.at < len(self.words) else None

    def take(self, expected: str) -> str:
        """The next word, which has to be there."""
        if self.at == len(self.words):
            raise ScenarioError(f"{self.name}:{self.line}:{self.end}: the line ends here: expected {expected}")
        self.at += 1
        return self.words[self.at - 1].text

    def fail(self, expected: str) -> NoReturn:
        """Complain about the word taken last."""
        word = self.words[self.at - 1]
        shown = word.text if len(word.text) <= _SHOWN else word.text[:_SHOWN] + "..."
        raise ScenarioError(f"{self.name}:{self.line}:{word.column}: {shown!r}: expected {expected}")

    def one_of(self, choices: Iterable[str], what: str) -> str:
        """The next word, if it is among the choices."""
        text, known = self.take(what), list(choices)
        if text not in known:
            self.fail(f"{what}: {', '.join(known)}")
        return text

    def number(self, low: int, high: int) -> int:
        """A decimal or 0x number between two bounds."""
        expected = f"a number from {low} to {high}"
        text = self.take(expected)
        number = int(text, 0 if text[:2] in ("0x", "0X") else 10) if _NUMBER.match(text) else low - 1
        if not low <= number <= high:
            self.fail(expected)
        return number

    def seconds(self, text: str, most: int, example: str) -> float:
        """The word taken last, or a part of it, as seconds."""
        if not _SECONDS.match(text) or float(text) > most:
            self.fail(f"seconds up to {most:,}, as in {example}")
        return float(text)

    def octets(self) -> bytes:
        """Bytes as pairs of hexadecimal digits, or as a quoted text of ASCII characters; "" is none."""
        expected = 'bytes as hexadecimal digits, or as "text"'
        text = self.take(expected)
        if text[0] == '"':
            return self._quoted(text, expected)
        if not re.fullmatch(r"(?:[0-9a-fA-F]{2})+", text):
            self.fail(expected)
        return bytes.fromhex(text)

    def endpoint(self, text: str, expected: str) -> tuple[str, int | None]:
        """A host and its port, in the word taken last or in a part of it."""
        match = ENDPOINT.match(text)
        port = int(match["port"]) if match and match["port"] else None
        if not match:
            self.fail(expected)
        if port is not None and port > MOST_PORT:
            self.fail(f"a port up to {MOST_PORT}")
        return match["six"] or match["plain"], port

    def _quoted(self, text: str, expected: str) -> bytes:
        if len(text) < 2 or text[-1] != '"' or not text.isascii():
            self.fail(expected)
        plain = re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), text[1:-1])
        return plain.encode("ascii")


def endpoint_text(host: str, port: int | None) -> str:
    """What endpoint() reads."""
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def bytes_text(data: bytes) -> str:
    """What octets() reads: a quoted text where that is readable, else digits."""
    if data and not all(32 <= byte < 127 or byte in b"\r\n\t" for byte in data):
        return data.hex()
    escaped = data.decode("ascii").replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t") + '"'


def seconds_text(seconds: float, decimals: int = 0) -> str:
    """As short as it can be read back exactly, with at least so many decimals."""
    short = f"{seconds:.{decimals}f}"
    return short if float(short) == seconds else f"{Decimal(repr(seconds)):f}"

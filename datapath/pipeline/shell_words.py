"""A script's lines as a shell cuts them into words: quotes, backslashes, comments, lines that continue.

    tc filter add dev eth0 ingress \\
        protocol ip flower ip_proto tcp action drop   # a comment

Only cutting: variables have to be expanded already, and whatever else a shell would do (pipes, redirections, substitutions) is an error that says so.
Invariant: every word has the line and column at which it begins, counted from 1. Not here: what the words mean (tc_text).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from datapath.pipeline.findings import Expected, Findings, rule_error
from datapath.pipeline.rules import Place, RuleError

T = TypeVar("T")
BLANK = " \t\r"
# Most lines are words and blanks alone; most of a word is characters that stand for themselves.
_PLAIN_LINE = re.compile(r"""[^\n'"\\$`|<>&();#]*(?:\n|\Z)""")
_PLAIN_WORD = re.compile(r"[^ \t\r\n]+")
_PLAIN_PART = re.compile(r"""[^ \t\r\n'"\\$`|<>&();]+""")
SEPARATORS = ("&&", ";", "\n")
# What a shell does by itself, and what we say to it.
SHELL = {
    "$": "a variable or substitution: expected what a shell makes of it",
    "`": "a substitution: expected what a shell makes of it",
    "|": "a pipe: expected tc lines alone",
    "<": "a redirection: expected tc lines alone",
    ">": "a redirection: expected tc lines alone",
    "&": "a job in the background: expected tc lines alone",
    "(": "a sub-shell: expected tc lines alone",
    ")": "a sub-shell: expected tc lines alone",
}


class _Line(NamedTuple):
    """A line in which every character stands for itself: its words are where blanks leave them."""

    file: str
    line: int
    text: str


class Places(Sequence[Place]):
    """Where the words of a command begin: found out when it is asked for, since of most words nobody ever does."""

    __slots__ = ("_found", "_parts")

    def __init__(self, parts: list[Place | _Line]) -> None:
        self._parts = parts
        self._found: list[Place] | None = None

    @property
    def first(self) -> Place:
        """Of the first word, without looking for the others."""
        part = self._parts[0]
        return part if isinstance(part, Place) else Place(part.file, part.line, len(part.text) - len(part.text.lstrip(BLANK)) + 1)

    @property
    def found(self) -> list[Place]:
        if self._found is None:
            self._found = []
            for part in self._parts:
                if isinstance(part, Place):
                    self._found.append(part)
                else:
                    self._found += [Place(part.file, part.line, word.start() + 1) for word in _PLAIN_WORD.finditer(part.text)]
        return self._found

    def __getitem__(self, at: Any) -> Any:
        return self.found[at]

    def __len__(self) -> int:
        return len(self.found)


class Parts(Mapping[str, Place]):
    """Places by name, of words by their numbers."""

    __slots__ = ("_at", "_places")

    def __init__(self, places: Places, at: dict[str, int]) -> None:
        self._places, self._at = places, at

    def __getitem__(self, name: str) -> Place:
        place: Place = self._places[self._at[name]]
        return place

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


class Word(NamedTuple):
    """A word, without its quotes, and which one of its command it is."""

    text: str
    places: Places
    at: int

    @property
    def place(self) -> Place:
        place: Place = self.places[self.at]
        return place


@dataclass(slots=True)
class Cursor:
    """The words of one command, and how far they are read. end: where the command ends, for what is missing there."""

    texts: list[str]
    places: Places
    end: Place
    at: int = 0

    def word(self, at: int) -> Word:
        """Any of the words, by its number."""
        return Word(self.texts[at], self.places, at)

    def last(self) -> Word:
        """The word that was read last."""
        return self.word(self.at - 1)

    def peek(self) -> str | None:
        """The next word, None at the end."""
        return self.texts[self.at] if self.at < len(self.texts) else None

    def next(self, expected: str) -> Word:
        """The next word, which has to be there. expected: what it is, for the error."""
        at = self.at
        if at == len(self.texts):
            raise rule_error(self.end, "", f"the line ends: expected {expected}")
        self.at = at + 1
        return Word(self.texts[at], self.places, at)

    def value(self, of: Word, expected: str) -> Word:
        """The value behind a word: both make the excerpt of an error."""
        if self.at == len(self.texts):
            raise rule_error(of.place, of.text, f"expected {expected} behind it")
        return self.next(expected)

    def read(self, what: str, read: Callable[[str], T]) -> T:
        """The value behind the word that was read last, as `read` makes it of its text; the error for one that it does not expect repeats both."""
        at = self.at
        if at == len(self.texts):
            raise rule_error(self.places[at - 1], self.texts[at - 1], f"expected {what} behind it")
        self.at = at + 1
        try:
            return read(self.texts[at])
        except Expected as error:
            raise rule_error(self.places[at - 1], f"{self.texts[at - 1]} {self.texts[at]}", str(error)) from None


def fail(word: Word, expected: str) -> RuleError:
    return rule_error(word.place, word.text, expected)


class _Scanner:
    """Goes through a text once. A command that cannot be cut is skipped to the end of its line, and the error is kept."""

    def __init__(self, text: str, name: str, found: Findings) -> None:
        self.text, self.name, self.found = text, name, found
        self.at, self.line, self.start = 0, 1, 0  # start: where the line begins

    def place(self) -> Place:
        return Place(self.name, self.line, self.at - self.start + 1)

    def step(self, count: int = 1) -> str:
        """Passes over characters, counting lines; what was passed."""
        passed = self.text[self.at : self.at + count]
        self.at += len(passed)
        if "\n" in passed:
            self.line += passed.count("\n")
            self.start = self.at - (len(passed) - 1 - passed.rindex("\n"))
        return passed

    def ahead(self, *texts: str) -> str | None:
        return next((text for text in texts if self.text.startswith(text, self.at)), None)

    def commands(self) -> Iterator[Cursor]:
        """All commands of the text that have words, as they are cut."""
        texts: list[str] = []
        parts: list[Place | _Line] = []
        while self.at < len(self.text):
            if self.at == self.start and (plain := _PLAIN_LINE.match(self.text, self.at)):
                texts += self.plain(plain.group(), parts)
            if self.at == len(self.text):
                break
            here = self.text[self.at]
            if separator := here if here == "\n" else self.ahead(*SEPARATORS):
                if texts:
                    yield Cursor(texts, Places(parts), self.place())
                texts, parts = [], []
                self.step(len(separator))
            elif here in BLANK or self.ahead("\\\n", "\\\r\n"):
                self.step(len(self.ahead("\\\r\n", "\\\n") or here))
            elif here == "#":
                self.to_end()
            else:
                place = self.place()
                try:
                    texts.append(self.word())
                    parts.append(place)
                except Expected as error:
                    self.found.error(place, self.text[self.at : self.at + 40].partition("\n")[0] or "end of file", str(error))
                    self.to_end()
                    texts, parts = [], []
        if texts:
            yield Cursor(texts, Places(parts), self.place())

    def plain(self, line: str, parts: list[Place | _Line]) -> list[str]:
        """The words of a line in which every character stands for itself; to its line break, which is not passed."""
        parts.append(_Line(self.name, self.line, line))
        self.at += len(line) - line.endswith("\n")
        return _PLAIN_WORD.findall(line)

    def to_end(self) -> None:
        """To the end of the line, which is not passed."""
        end = self.text.find("\n", self.at)
        self.step((len(self.text) if end < 0 else end) - self.at)

    def word(self) -> str:
        """One word, from its first character on. Raises Expected at what a shell would have to do."""
        parts: list[str] = []
        while self.at < len(self.text):
            if plain := _PLAIN_PART.match(self.text, self.at):
                parts.append(plain.group())
                self.at = plain.end()
                continue
            here = self.text[self.at]
            if here in BLANK or self.ahead(*SEPARATORS):
                break
            if here in SHELL:
                raise Expected(SHELL[here])
            if here == "'":
                parts.append(self.single())
            elif here == '"':
                parts.append(self.double())
            elif continued := self.ahead("\\\r\n", "\\\n"):
                self.step(len(continued))
            else:
                self.step()
                parts.append(self.step())
        return "".join(parts)

    def single(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise Expected("a quote that does not end: expected another one")
        return self.step(end + 1 - self.at)[1:-1]

    def double(self) -> str:
        """In double quotes a backslash stands for itself but before what would be special (POSIX, Shell Command Language, 2.2.3)."""
        end = self.at + 1
        while end < len(self.text) and self.text[end] != '"':
            if self.text[end] in "$`":
                self.step(end - self.at)
                raise Expected(SHELL[self.text[end]])
            end += 2 if self.text[end] == "\\" else 1
        if end >= len(self.text):
            raise Expected("a quote that does not end: expected another one")
        inside, out, i = self.step(end + 1 - self.at)[1:-1], [], 0
        while i < len(inside):
            special = inside[i] == "\\" and inside[i + 1 : i + 2] in ("$", "`", '"', "\\", "\n")
            out.append("" if special and inside[i + 1] == "\n" else inside[i + 1] if special else inside[i])
            i += 2 if special else 1
        return "".join(out)


def commands(text: str, name: str, found: Findings) -> Iterator[Cursor]:
    """The commands of a script, one after the other. name: of the file, for places. What cannot be cut goes to `found`, and its line is left out."""
    return _Scanner(text, name, found).commands()

"""A script's lines as a shell cuts them into words: quotes, backslashes, comments, lines that continue.

    tc filter add dev eth0 ingress \\
        protocol ip flower ip_proto tcp action drop   # a comment

Only cutting: variables have to be expanded already, and whatever else a shell would do (pipes, redirections, substitutions) is an error that says so.
Invariant: every word has the line and column at which it begins, counted from 1. Not here: what the words mean (tc_text).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from datapath.pipeline.findings import Expected, Findings, rule_error
from datapath.pipeline.rules import Place, RuleError

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


class Word(NamedTuple):
    """A word, without its quotes, and where it begins: of most of them nobody ever asks for the place."""

    text: str
    file: str
    line: int
    column: int

    @property
    def place(self) -> Place:
        return Place(self.file, self.line, self.column)


@dataclass(slots=True)
class Cursor:
    """The words of one command, and how far they are read. end: where the command ends, for what is missing there."""

    words: list[Word]
    end: Place
    at: int = 0

    def peek(self) -> str | None:
        """The next word, None at the end."""
        return self.words[self.at].text if self.at < len(self.words) else None

    def next(self, expected: str) -> Word:
        """The next word, which has to be there. expected: what it is, for the error."""
        if self.at == len(self.words):
            raise rule_error(self.end, "", f"the line ends: expected {expected}")
        self.at += 1
        return self.words[self.at - 1]

    def value(self, of: Word, expected: str) -> Word:
        """The value behind a word: both make the excerpt of an error."""
        if self.at == len(self.words):
            raise rule_error(of.place, of.text, f"expected {expected} behind it")
        return self.next(expected)


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
        words: list[Word] = []
        while self.at < len(self.text):
            if self.at == self.start and (plain := _PLAIN_LINE.match(self.text, self.at)):
                words += self.plain(plain.group())
            if self.at == len(self.text):
                break
            here = self.text[self.at]
            if separator := self.ahead(*SEPARATORS):
                if words:
                    yield Cursor(words, self.place())
                words = []
                self.step(len(separator))
            elif here in BLANK or self.ahead("\\\n", "\\\r\n"):
                self.step(len(self.ahead("\\\r\n", "\\\n") or here))
            elif here == "#":
                self.to_end()
            else:
                place = self.place()
                try:
                    words.append(Word(self.word(), *place))
                except Expected as error:
                    self.found.error(place, self.text[self.at : self.at + 40].partition("\n")[0] or "end of file", str(error))
                    self.to_end()
                    words = []
        if words:
            yield Cursor(words, self.place())

    def plain(self, line: str) -> list[Word]:
        """The words of a line in which every character stands for itself; to its line break, which is not passed."""
        name, number = self.name, self.line
        found = [Word(word.group(), name, number, word.start() + 1) for word in _PLAIN_WORD.finditer(line)]
        self.at += len(line) - line.endswith("\n")
        return found

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

"""A script is cut into words as a shell cuts it, and each word knows its place."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.pipeline.findings import Findings
from datapath.pipeline.shell_words import commands


def cut(text: str) -> list[list[str]]:
    found = Findings()
    done = list(commands(text, "f", found))
    assert not found.errors, found.errors
    return [cursor.texts for cursor in done]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tc a\ntc b\n", [["tc", "a"], ["tc", "b"]]),
        ("tc a \\\n  b", [["tc", "a", "b"]]),
        ("tc a\\\nb", [["tc", "ab"]]),
        ("tc a\r\ntc b\r\n", [["tc", "a"], ["tc", "b"]]),
        ("# a comment\n\n  tc a # and another\n", [["tc", "a"]]),
        ("tc a#b", [["tc", "a#b"]]),
        ("tc a; tc b && tc c", [["tc", "a"], ["tc", "b"], ["tc", "c"]]),
        ("tc 'a b' \"c d\" e\\ f", [["tc", "a b", "c d", "e f"]]),
        ('tc "a\\"b\\$c\\d" \'e\\\'', [["tc", 'a"b$c\\d', "e\\"]]),
        ("tc ''", [["tc", ""]]),
        ("tc 'a\nb' c", [["tc", "a\nb", "c"]]),
        ("", []),
        (" \n\t\n;;", []),
    ],
)
def test_words_are_those_of_a_shell(text, expected):
    assert cut(text) == expected


def test_every_word_has_its_line_and_column():
    places = [
        [(text, place.line, place.column) for text, place in zip(cursor.texts, cursor.places, strict=True)]
        for cursor in commands("tc a \\\n  'b\nc' d\n  tc e", "f", Findings())
    ]
    assert places == [[("tc", 1, 1), ("a", 1, 4), ("b\nc", 2, 3), ("d", 3, 4)], [("tc", 4, 3), ("e", 4, 6)]]


@pytest.mark.parametrize("text", ["tc a", " \t tc  a", "  'tc' a", "\\\n tc a"])
def test_the_first_place_is_known_without_the_others(text):
    (cursor,) = commands(text, "f", Findings())
    assert cursor.places.first == cursor.places[0] == cursor.word(0).place
    assert [cursor.next("tc").text, cursor.next("a").place] == ["tc", cursor.places[1]]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("tc $DEV", "f:1:4: '$DEV': a variable or substitution: expected what a shell makes of it"),
        ('tc "a$b"', "f:1:4: '$b\"': a variable or substitution: expected what a shell makes of it"),
        ("tc `a`", "f:1:4: '`a`': a substitution: expected what a shell makes of it"),
        ("tc a 2>/dev/null", "f:1:6: '>/dev/null': a redirection: expected tc lines alone"),
        ("tc a | b", "f:1:6: '| b': a pipe: expected tc lines alone"),
        ("tc a &", "f:1:6: '&': a job in the background: expected tc lines alone"),
        ("( tc a )", "f:1:1: '( tc a )': a sub-shell: expected tc lines alone"),
        ("tc 'a", "f:1:4: ''a': a quote that does not end: expected another one"),
        ('tc "a\\"', "f:1:4: '\"a\\\"': a quote that does not end: expected another one"),
    ],
)
def test_the_rest_of_a_shell_is_an_error_that_says_so(text, error):
    found = Findings()
    assert list(commands(f"{text}\n", "f", found)) == []
    assert [str(each) for each in found.errors] == [error]


def test_a_line_that_cannot_be_cut_does_not_hide_the_next_one():
    found = Findings()
    assert [cursor.texts[0] for cursor in commands("a $b\nc\nd | e\nf", "f", found)] == ["c", "f"]
    assert [error.place.line for error in found.errors] == [1, 3]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1))
def test_quoted_words_come_back(words):
    """Whatever shlex quotes, we cut into the same words."""
    assert cut(shlex.join(words)) == [words]

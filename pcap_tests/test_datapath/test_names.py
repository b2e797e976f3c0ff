"""Names of files as they are shown: text, on one line, and as a word that a shell takes back."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.names import printable, quoted

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"office.pcap", "office.pcap"),
        ("büro 1.pcap".encode(), "büro 1.pcap"),
        (b"b\xfcro.pcap", r"b\xfcro.pcap"),
        (b"two\nlines\t", r"two\x0alines\x09"),
        (b"\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31m\u2028".encode(), r"\u009b31m\u2028"),
        (b"back\\slash", "back\\slash"),
    ],
)
def test_names_in_print(name, shown):
    assert printable(os.fsdecode(name)) == shown


@given(st.lists(NAMES, min_size=1, max_size=20))
def test_every_name_is_one_line_of_unicode_and_a_word_for_the_shell(names):
    for name in names:
        shown = printable(os.fsdecode(name))
        assert shown.encode().decode() == shown
        assert len(f"a{shown}b".splitlines()) == 1
    script = "printf '%s\\0' " + " ".join(quoted(os.fsdecode(name)) for name in names)
    assert script.encode().decode() == script
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout == b"".join(name + b"\0" for name in names)


def test_plain_names_are_quoted_as_ever():
    for name in ("office.pcap", "my office.pcap", "it's.pcap"):
        assert quoted(name) == shlex.quote(name)

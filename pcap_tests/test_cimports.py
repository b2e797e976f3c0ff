"""No source cimports a name that it does not use: Cython, unlike ruff for Python, says nothing of these.

Read from the sources with regular expressions. A name counts as used if it stands anywhere in the file's code outside of the cimport itself; an
included .pxi is read as part of the file that includes it. A .pxd passes nothing on: what is cimported from it shall be its own.
Not here: `cimport *`, plain imports (ruff's), which layer may cimport which (test_layers).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for package in ("ctcore", "datapath", "offload") for path in (ROOT / package).rglob("*.p[yx][xd]"))
NOT_CODE = re.compile(r'"""(?:[^\\]|\\.)*?"""|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|#[^\n]*', re.DOTALL)
CIMPORT = re.compile(r"^[ \t]*(?:from[ \t]+[\w.]+[ \t]+)?cimport[ \t]+(\([^)]*\)|(?:[^\n\\]|\\\n)*)", re.MULTILINE)
INCLUDE = re.compile(r'^include "([^"]+)"', re.MULTILINE)
BRACED = re.compile(r"\{([^{}]*)\}")
NAME = re.compile(r"\w+")


def whole(path: Path) -> str:
    """The text of a source with what it includes in its place."""
    return INCLUDE.sub(lambda match: whole(path.parent / match[1]), path.read_text())


def code(text: str) -> str:
    """The text without comments and strings. What a string holds in braces counts as code: it may be an f-string."""
    return NOT_CODE.sub(lambda match: " ".join(("", *BRACED.findall(match[0]), "")) if match[0][0] != "#" else "", text)


def cimported(text: str) -> set[str]:
    """The names that the cimports of a source bind, without those of `cimport *`."""
    names = set()
    for group in CIMPORT.findall(text):
        for part in re.sub(r"[()\\]", " ", group).split(","):
            words = part.split()
            if words and words != ["*"]:
                names.add(words[-1].split(".")[0])
    return names


def unused(text: str) -> set[str]:
    stripped = code(text)
    return cimported(stripped) - set(NAME.findall(CIMPORT.sub("", stripped)))


@pytest.mark.parametrize(
    "text, names",
    [
        ("from a cimport b\nb()", set()),
        ("from a cimport b, c\nb()", {"c"}),
        ("from a cimport (b,\n    c)\nc()", {"b"}),
        ("from a cimport b, \\\n    c\nc()", {"b"}),
        ("from a cimport b as c\nb()", {"c"}),
        ("from a cimport b as c\nc()", set()),
        ("cimport a.b, c\na.b.d()", {"c"}),
        ("from a cimport *\n", set()),
        ("from a cimport b  # b\n'''b'''\nx = 'b' + \"b\"", {"b"}),
        ("from a cimport b\nx = f\"{b}\"", set()),
        ("def f():\n    from a cimport b\n", {"b"}),
    ],
)  # fmt: skip
def test_the_reader_of_cimports_sees_every_form(text, names):
    assert unused(text) == names


def test_there_is_something_to_read():
    assert {"tracker.pyx", "table.pxd", "wire.pyx"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_cimported_name_is_used(path):
    assert not unused(whole(path)), f"{path.relative_to(ROOT)}: cimported and not used: {', '.join(sorted(unused(whole(path))))}"

"""What to type for a library that is missing."""

from __future__ import annotations

import sys

from datapath.doctor import EXTRAS
from datapath.extras import remedy


def test_the_python_at_work_is_named_and_both_ways_of_having_ctmirror(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/home/me/my clone/.venv/bin/python")
    assert remedy("rules") == "'/home/me/my clone/.venv/bin/python' -m pip install 'ctmirror[rules]', in a clone '.[rules]'"


def test_every_extra_that_is_named_is_one():
    import tomllib
    from pathlib import Path

    known = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for name, *_ in EXTRAS.values()} <= set(known)

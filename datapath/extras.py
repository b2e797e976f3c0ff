"""What to type for a library that only some commands need. Not here: which command needs which."""

from __future__ import annotations

import shlex
import sys


def remedy(extra: str) -> str:
    """The command that brings an extra (pyproject.toml) into the Python at work, by the two ways of having ctmirror."""
    return f"{shlex.quote(sys.executable or 'python3')} -m pip install 'ctmirror[{extra}]', in a clone '.[{extra}]'"

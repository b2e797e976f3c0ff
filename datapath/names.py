"""Names of files as people and programs get to read them: to the system a name is bytes, which need be neither UTF-8 nor free of line breaks.

Python holds such names as text with lone surrogates, which no output takes. Files are opened by the name as it came; whatever is shown, recorded
or suggested passes through here. Not here: opening.
"""

from __future__ import annotations

import os
import re
import shlex

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BYTE = range(0xDC80, 0xDD00)  # what Python makes of a byte that is not UTF-8 (PEP 383)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code & 0xFF:02x}" if code in _BYTE or code < 0x80 else f"\\u{code:04x}"


def printable(name: str) -> str:
    r"""A name, or a text with names in it, on one line of sound Unicode: bytes that are not UTF-8 and control characters as \xff, all else as is."""
    return _UNPRINTABLE.sub(_escaped, name)


def quoted(name: str) -> str:
    """A name as a word to be copied into a shell; where it cannot be printed, in the quotes of bash, zsh and POSIX 2024 that take escapes."""
    if printable(name) == name:
        return shlex.quote(name)
    word = name.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _UNPRINTABLE.sub(lambda match: "".join(f"\\x{byte:02x}" for byte in os.fsencode(match.group())), word) + "'"

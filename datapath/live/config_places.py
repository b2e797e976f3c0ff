"""Where in a TOML file a setting stands: lines by path, for errors. tomllib tells values, and no places.

A path is what leads to a value: ("iface", 0, "name"). Not here: what is wrong with a value (config).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Path = tuple[Any, ...]


def toml_error(text: str, name: str) -> str:
    """tomllib ends with the place: put it in front."""
    found = re.search(r" \(at line ([0-9]+), column ([0-9]+)\)$", text)
    if not found:
        return f"{name}: {text}"
    return f"{name}:{found[1]}:{found[2]}: {text[: found.start()]}"


def place(name: str, lines: dict[Path, int], path: Path) -> str:
    """File, line and key: of the key itself, or of the nearest section around it that is written down."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return f"{name}:{lines[path[:end]]}: {_spelled(path)}: "
    return f"{name}: {_spelled(path)}: "


def _spelled(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def lines_of(text: str) -> Iterator[tuple[Path, int]]:
    """Path and line of each section and each key at the beginning of a line. Of keys in inline tables there is the line of the table."""
    section: Path = ()
    counts: dict[Path, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if found := re.match(r"\s*\[\[\s*([\w.\-]+)\s*\]\]", line):
            base = _inside(tuple(found[1].split(".")), counts)
            counts[base] = counts.get(base, -1) + 1
            section = (*base, counts[base])
            yield section, number
        elif found := re.match(r"\s*\[\s*([\w.\-]+)\s*\]", line):
            section = _inside(tuple(found[1].split(".")), counts)
            yield section, number
        elif found := re.match(r"\s*([\w.\-]+)\s*=", line):
            yield (*section, *found[1].split(".")), number


def _inside(path: tuple[str, ...], counts: dict[Path, int]) -> Path:
    """A section's path, with the number of the array's element that it belongs to."""
    whole: Path = ()
    for i, part in enumerate(path):
        whole = (*whole, part)
        if whole in counts and i + 1 < len(path):
            whole = (*whole, counts[whole])
    return whole

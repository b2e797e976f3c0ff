"""Imports point down only (ARCHITECTURE.md, layers): read from the sources, so that an import inside a function counts too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+(?:\s*,\s*[\w.]+)*))", re.MULTILINE)
COMPOSITION = ("app", "cli", "commands")  # the modules of datapath that may know offload
# What the core must not touch: I/O, clocks, and libraries that are slow to load or not its business.
FORBIDDEN_IN_CORE = {
    "socket", "os", "io", "mmap", "fcntl", "select", "selectors", "subprocess", "threading", "multiprocessing", "asyncio", "time", "datetime",
    "numba", "scapy", "pyroute2", "click", "rich", "orjson", "zstandard", "pyarrow", "posix", "pathlib",
}  # fmt: skip


def sources(package: str) -> list[Path]:
    return sorted(path for ending in ("py", "pyx", "pxd", "pxi", "pyi") for path in (ROOT / package).rglob(f"*.{ending}"))


def imported(path: Path) -> set[str]:
    """Whole names of the modules a source imports or cimports."""
    found = set()
    for single, several in IMPORT.findall(path.read_text()):
        found |= {name.strip() for name in (single or several).split(",")}
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_the_reader_of_imports_sees_every_form(tmp_path):
    source = tmp_path / "a.pyx"
    source.write_text("import os, re\nfrom a.b cimport c\ncimport d.e\ndef f():\n    from g import h\n# import i\ntext = 'import j'\n")
    assert imported(source) == {"os", "re", "a.b", "d.e", "g"}


@pytest.mark.parametrize("path", sources("ctcore"), ids=lambda path: path.name)
def test_ctcore_imports_nothing_above_it_and_does_no_io(path):
    assert not tops(path) & ({"datapath", "offload", "bench", "pcap_tests"} | FORBIDDEN_IN_CORE)
    assert not {name for name in imported(path) if name.startswith(("libc.stdio", "libc.time", "posix"))}


@pytest.mark.parametrize("path", sources("datapath"), ids=lambda path: path.name)
def test_datapath_knows_offload_only_where_it_is_put_together(path):
    if path.relative_to(ROOT / "datapath").parts[0].split(".")[0] not in COMPOSITION:
        assert "offload" not in tops(path)
    assert not tops(path) & {"bench", "pcap_tests"}


@pytest.mark.parametrize("path", sources("offload"), ids=lambda path: path.name)
def test_offload_does_not_know_datapath(path):
    assert not tops(path) & {"datapath", "bench", "pcap_tests"}


def test_importing_ctcore_loads_none_of_the_heavy_libraries():
    import subprocess
    import sys

    code = "import sys, ctcore; ctcore.Tracker; print(*sorted({'numba', 'scapy', 'pyroute2', 'rich', 'click', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""

"""Runs a command that will become another user, where that user can reach what the command needs, also below folders that are root's alone.

    python -m pcap_tests.reachable FOLDER... -- COMMAND...

Theory of operation: an interpreter, a checkout or pytest's folders may lie below a folder of mode 0700. In a mount namespace of its own such a folder
is covered by an empty one that everybody may pass, and the folders that are needed are bound into it again. Nothing outside that namespace changes.
Not here: becoming that user (the command does).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), what)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2): mount(8) would look for where a descriptor leads, and that is covered by then."""
    words = [word.encode() or None for word in (source, target, kind)]
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None), f"mount at {target}")


def needed(*folders: Path | str) -> list[str]:
    """Arguments: what Python itself needs, the project, and these."""
    project = Path(__file__).resolve().parents[1]
    search = [entry for entry in sys.path if entry and Path(entry).is_dir()]
    return [*dict.fromkeys(str(Path(each).resolve()) for each in (sys.base_prefix, sys.prefix, project, *search, *folders))]


def command(argv: Sequence[str], *folders: Path | str) -> list[str]:
    """The whole command line."""
    return [sys.executable, "-m", "pcap_tests.reachable", *needed(*folders), "--", *argv]


def closed(path: Path) -> Path | None:
    """The first folder above `path` that others may not pass."""
    return next((above for above in reversed(path.parents) if not os.stat(above).st_mode & 0o001), None)


def uncover(paths: Iterable[Path]) -> None:
    """In this process's mount namespace, everybody may go to these."""
    behind: dict[Path, list[tuple[Path, int]]] = {}
    for path in paths:
        if (above := closed(path)) is not None:
            behind.setdefault(above, []).append((path, os.open(path, os.O_PATH | os.O_DIRECTORY)))
    for above, found in behind.items():
        mount("none", str(above), "tmpfs", 0, "mode=755")
        for path, fd in sorted(found):
            path.mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{fd}", str(path), "", MS_BIND | MS_REC)
            os.close(fd)


def main(argv: Sequence[str]) -> None:
    at = argv.index("--")
    _checked(_libc.unshare(CLONE_NEWNS), "a mount namespace of its own")
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    here = os.getcwd()
    uncover(Path(each) for each in argv[:at])
    os.chdir(here)
    os.execv(argv[at + 1], list(argv[at + 1 :]))


if __name__ == "__main__":
    main(sys.argv[1:])

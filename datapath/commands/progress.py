"""The progress bar of long work: on stderr while that is a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from datapath.app import Progress

LATE = 0.5  # seconds of work behind which a bar is shown: one that only flashes up says nothing
NARROW = 90  # columns below which there is room for a name and a percentage only


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Progress | None]:
    """What to report progress to, or None where no bar is wanted."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    bar = _LateBar()
    try:
        yield bar.report
    finally:
        bar.stop()


class _LateBar:
    """A bar of one line, from LATE seconds on."""

    def __init__(self) -> None:
        self.begin = perf_counter()
        self.bar: Any = None

    def report(self, name: str, done: int, total: int) -> None:
        if self.bar is None and perf_counter() - self.begin < LATE:
            return
        if self.bar is None:
            self.bar = _bar()
            self.bar.start()
            self.bar.add_task("", total=None)
        self.bar.update(self.bar.task_ids[0], description=name, completed=done, total=total or None)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _bar() -> Any:
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    console = Console(stderr=True)
    name = progress.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    columns: tuple[progress.ProgressColumn, ...] = (name, progress.TaskProgressColumn())
    if console.width >= NARROW:
        columns = (name, progress.BarColumn(20), progress.DownloadColumn(), progress.TransferSpeedColumn(), progress.TimeRemainingColumn())
    return progress.Progress(*columns, console=console, transient=True, expand=True)

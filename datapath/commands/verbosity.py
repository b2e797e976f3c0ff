"""--quiet and --verbose, which every sub-command takes. Imports nothing of the datapath: doctor has to start where that cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

NOTHING_TO_SAY = "Changes nothing here: what is printed is the answer."


def verbosity(quiet: str = NOTHING_TO_SAY, verbose: str = NOTHING_TO_SAY) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds both options; the texts say what they mean to the command."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option("--verbose", "-v", is_flag=True, help=verbose)(command)
        return click.option("--quiet", "-q", is_flag=True, help=quiet)(command)

    return add

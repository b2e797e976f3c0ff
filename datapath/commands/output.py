"""-o FILE: where a command's answer goes if not to stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from datapath.export import STDOUT, naming


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds -o; the function gets `output`, None for stdout."""
    return click.option("-o", "output", metavar="FILE", help="Write it to a file instead of stdout.")(command)


@contextmanager
def opened(name: str | None) -> Iterator[TextIO]:
    """The file to write to. Errors of writing say which file they are about."""
    if name in (None, STDOUT):
        yield sys.stdout
        return
    with naming(name), open(name, "w", encoding="utf-8") as file:
        yield file

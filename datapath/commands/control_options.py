"""--socket, which every command that asks a running node takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from datapath.live.message import SOCKET


def socket_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --socket; the function gets `socket`."""
    return click.option("--socket", metavar="PATH", default=SOCKET, show_default=True, help="Where the node listens (control.socket).")(command)

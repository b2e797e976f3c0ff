"""`ctmirror control`: what a running node is told: other rules, another log level."""

from __future__ import annotations

import sys

import click

from datapath.commands.control_options import socket_option
from datapath.commands.verbosity import verbosity

LEVELS = ("debug", "info", "warning", "error")


@click.group("control", short_help="other rules, another log level for a running node")
def command() -> None:
    """Tell a running node something.

    \b
    Examples:
      ctmirror control rules new.tc
      ctmirror control rules new.tc --established reevaluate
      ctmirror control log-level debug
    """


@command.command("rules", short_help="go on with other rules, from one packet to the next")
@click.argument("file")
@click.option(
    "--established",
    type=click.Choice(["keep", "reevaluate"]),
    default="keep",
    show_default=True,
    help="Connections stay; or those go that the new rules would not let begin, and the others leave the flow table.",
)
@socket_option
@verbosity("No warnings, and nothing if it is done.")
def rules(file: str, established: str, socket: str, quiet: bool, verbose: bool) -> None:
    """Go on with the rules of FILE (`-`: stdin), from one packet to the next: none is lost, and none sees half of both.

    The file is read here and sent; a node reads its own file again at SIGHUP and when it starts. If anything is wrong with it, nothing changes.
    """
    from datapath.cli import complain
    from datapath.hints import counted
    from datapath.live.client import Client

    name, text = ("stdin", sys.stdin.read()) if file == "-" else (file, _text(file))
    with Client(socket) as client:
        done = client.load_rules(text, name=name, established=established)
    for line in done["warnings"] if not quiet else ():
        complain(f"warning: {line}")
    if not quiet:
        gone = counted(done["deleted"], "connection")
        deleted = f"; {gone} deleted that they would not let begin" if established == "reevaluate" else ""
        click.echo(f"{counted(done['rules'], 'rule')}{deleted}")


def _text(file: str) -> str:
    from ctcore.errors import CtmirrorError

    try:
        with open(file, encoding="utf-8-sig") as opened:
            return opened.read()
    except OSError as error:
        raise CtmirrorError(f"{file}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise CtmirrorError(f"{file}: byte {error.start} is no UTF-8: expected tc lines or YAML") from None


@command.command("log-level", short_help="log more, or less")
@click.argument("level", type=click.Choice(LEVELS))
@socket_option
@verbosity("Nothing if it is done.")
def log_level(level: str, socket: str, quiet: bool, verbose: bool) -> None:
    """Have the node log more, or less, until it ends."""
    from datapath.live.client import Client

    with Client(socket) as client:
        done = client.ask("log", level=level)
    if not quiet:
        click.echo(f"{done['level']}, was {done['before']}")

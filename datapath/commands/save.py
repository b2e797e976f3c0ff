"""`ctmirror save`: a running node saves its connections, and goes on."""

from __future__ import annotations

import click

from datapath.commands.control_options import socket_option
from datapath.commands.verbosity import verbosity


@click.command("save", short_help="have a running node save its connections")
@socket_option
@verbosity("Nothing if it is done.")
def command(socket: str, quiet: bool, verbose: bool) -> None:
    """Have a running node save its connections, translations and expectations into the file that its configuration names ([state] file).

    The node goes on; packets wait for the copy in memory only, some tenths of a second for a million connections. `ctmirror run --restore` takes
    the file up. A node that stops in order saves by itself.

    \b
    Examples:
      ctmirror save
      ctmirror save && cp /var/lib/ctmirror/node.state backup/
    """
    from datapath.live.client import Client
    from datapath.names import printable
    from datapath.report import count, size_text

    with Client(socket) as client:
        done = client.ask("save")
    if not quiet:
        click.echo(f"{printable(done['file'])}: {count(done['connections'])} connections, {size_text(done['bytes'])}, in {done['seconds']:.3f} s")

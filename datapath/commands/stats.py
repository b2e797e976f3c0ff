"""`ctmirror stats`: what a running node has counted."""

from __future__ import annotations

import click

from datapath.commands.control_options import socket_option
from datapath.commands.verbosity import verbosity


@click.command("stats", short_help="what a running node has counted")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with everything.")
@socket_option
@verbosity()
def command(as_json: bool, socket: str, quiet: bool, verbose: bool) -> None:
    """What a running node has counted since it started: packets by state, verdict and reason, interfaces, the flow table, rules, events.

    \b
    Examples:
      ctmirror stats
      ctmirror stats --json | jq .ifaces
    """
    from datapath.live.client import Client

    with Client(socket) as client:
        stats = client.ask("stats")
    if as_json:
        import orjson

        click.echo(orjson.dumps(stats, option=orjson.OPT_INDENT_2).decode())
        return
    from rich.console import Console

    from datapath.live.shown import stats_parts

    console = Console(soft_wrap=False)
    with console.capture() as captured:
        for part in stats_parts(stats):
            console.print(part, highlight=False)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))

"""`ctmirror top`: the busiest connections of a running node, on a terminal or once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from datapath.commands.control_options import socket_option
from datapath.commands.verbosity import verbosity

if TYPE_CHECKING:
    from datapath.live.client import Client

ROWS_AROUND = 4  # lines of a terminal that are no connections
UNBOUNDED = 10_000  # columns


@click.command("top", short_help="the busiest connections of a running node")
@click.option("-n", "--most", type=click.IntRange(1, 1000), help="How many connections.  [default: as many as fit, 20 in a pipe]")
@click.option("-i", "--interval", type=click.FloatRange(0.1, 10), default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("--by", type=click.Choice(["bytes", "packets"]), default="bytes", show_default=True, help="What they are sorted by.")
@click.option("--once", is_flag=True, help="Look once, print, and end.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a connection, with packet_rate and byte_rate; with --once, or once an interval."
)
@socket_option
@verbosity()
def command(most: int | None, interval: float, by: str, once: bool, as_json: bool, socket: str, quiet: bool, verbose: bool) -> None:
    """Connections by packets or bytes a second, with their state and whether the flow table has them. Ctrl-C ends it.

    \b
    Examples:
      ctmirror top
      ctmirror top --by packets -n 5
      ctmirror top --once | head
    """
    from datapath.live.client import Client

    with Client(socket) as client:
        try:
            _watch(client, {"most": most, "seconds": interval, "by": by}, once=once, as_json=as_json)
        except KeyboardInterrupt:
            return


def _watch(client: Client, asked: dict[str, Any], *, once: bool, as_json: bool) -> None:
    from rich.console import Console

    console = Console(soft_wrap=False)
    if once or as_json or not console.is_terminal:
        while True:
            _print(client.ask("top", **{**asked, "most": asked["most"] or 20}), console, as_json)
            if once:
                return
            _sleep(asked["seconds"])
    _on_screen(client, asked, console)


def _print(answer: dict[str, Any], console: Any, as_json: bool) -> None:
    if as_json:
        import orjson

        for record in answer["top"]:
            sys.stdout.buffer.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.buffer.flush()
        return
    from datapath.live.shown import top_parts

    head, table = top_parts(answer)
    if not console.is_terminal:  # who reads it by a program, or scrolls, wants addresses whole
        console.width = max(console.width, console.measure(table, options=console.options.update(max_width=UNBOUNDED)).maximum)
    with console.capture() as captured:
        console.print(head, table, sep="\n", highlight=False)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _on_screen(client: Client, asked: dict[str, Any], console: Any) -> None:
    from rich.console import Group
    from rich.live import Live

    from datapath.live.shown import top_parts

    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            most = asked["most"] or max(console.height - ROWS_AROUND, 1)
            answer = client.ask("top", **{**asked, "most": min(most, 1000)})
            if answer["offload"] and not asked["most"]:  # a line more
                answer["top"] = answer["top"][: max(most - 1, 1)]
            live.update(Group(*top_parts(answer)), refresh=True)
            _sleep(asked["seconds"])


def _sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)

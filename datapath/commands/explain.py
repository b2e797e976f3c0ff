"""`ctmirror explain`: why a packet was judged as it was, or how a connection went."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

import click

from datapath.app import check_files
from datapath.cli import USAGE, complain
from datapath.commands.options import Number, rules_options, tracking_options
from datapath.commands.output import opened, output_option
from datapath.commands.progress import progress_bar
from datapath.commands.verbosity import verbosity

if TYPE_CHECKING:
    from datapath.app import Progress, Tracking
    from datapath.stages import Line

LIMIT = (1 << 63) - 1


def _print(rows: list[tuple[str, str]], file: TextIO) -> None:
    """Labels in a column of their own. A long text is wrapped on a terminal; elsewhere it stays on its line, to be searched and copied."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file)
    width = max(len(label) for label, _ in rows) + 2
    for label, text in rows:
        head = Text(f"{label:<{width}}", "bold cyan")
        if not console.is_terminal or console.width < 2 * width:
            console.print(Text.assemble(head, text), soft_wrap=True, highlight=False)
            continue
        grid = Table.grid()
        grid.add_column(width=width, no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(head, Text(text))
        console.print(grid, highlight=False)


def _explained(
    captures: Sequence[str], packet: int | None, ordinal: int | None, tracking: Tracking, progress: Progress | None
) -> tuple[Iterable[Line], bytes, str | None]:
    """Lines, the packet's bytes, and what is wrong with the capture, if anything is."""
    from datapath import explain, explain_rules, narrate, narrate_rules, ruled_life

    if packet is None:
        assert ordinal is not None
        life_of = explain.explain_conn if tracking.rules is None else ruled_life.explain_conn
        life = life_of(captures, ordinal, tracking, progress)
        return narrate.life_lines(life, tracking.config.hz), b"", life.damage
    if tracking.rules is not None:
        way = explain_rules.explain_packet(captures, packet, tracking, progress)
        return narrate_rules.rules_lines(way), way.data, None
    it = explain.explain_packet(captures, packet, tracking, progress)
    return narrate.packet_lines(it), it.data, None


@click.command("explain", short_help="one packet, or one connection's life")
@click.argument("captures", nargs=-1, required=True, metavar="CAPTURE...")
@click.option("--packet", type=Number(0, LIMIT), metavar="N", help="The packet's number in the (last) capture, from 0 as in the records of replay.")
@click.option("--frame", type=Number(1, LIMIT), metavar="N", help="The same, from 1 as in Wireshark: --frame 13 is --packet 12.")
@click.option("--conn", "ordinal", type=Number(0, LIMIT), metavar="N", help="The connection's number, as in the records of replay.")
@output_option
@verbosity("No progress bar.", "The settings in force and the packet's bytes as well.")
@tracking_options
@rules_options
def command(captures, packet, frame, ordinal, output, quiet, verbose, tracking) -> int:
    """One packet stage by stage, or one connection's life, with the reason and its RFC or kernel rule.

    The captures are replayed in order; packets are numbered in the last one. Give the options that replay was given. With --rules: the packet's way
    through the rules, one by one, with what each of their actions did; of a connection, where each packet went, by which rule, and what the flow
    table said.

    \b
    Examples:
      ctmirror explain office.pcap --packet 3481
      ctmirror explain office.pcap --frame 3482        the same packet by its number in Wireshark
      ctmirror explain office.pcap --conn 17 -o conn17.txt
      ctmirror explain monday.pcap tuesday.pcap --packet 12 --checksum 0
      ctmirror explain lan.pcap --packet 7 --snat '192.0.2.1:1024-2047'        which rule translated it, and why to this port
      ctmirror explain vm.pcapng --packet 0 --rules rules.tc        which rules it met, which of them matched, and where it went
      ctmirror explain vm.pcapng --conn 0 --rules rules.tc          a connection's packets, each with its rule and device
    """
    from datapath import narrate
    from datapath.app import Outputs

    if [packet, frame, ordinal].count(None) != 2:
        raise click.UsageError("expected one of --packet N, --frame N and --conn N")
    packet = frame - 1 if frame is not None else packet
    for name in captures:  # a capture left out would change what is explained
        check_files([name], Outputs(packets=output))
    with progress_bar(quiet=quiet) as progress:
        lines, data, damage = _explained(captures, packet, ordinal, tracking, progress)
    rows = [*lines, *(narrate.detail_lines(tracking, data) if verbose else ())]
    with opened(output) as file:
        _print(rows, file)
    if damage:
        complain(damage)
    return USAGE if damage else 0

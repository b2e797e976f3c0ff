"""`ctmirror states`: the tables this engine works by."""

from __future__ import annotations

import click

from datapath.commands.output import opened, output_option
from datapath.commands.verbosity import verbosity
from datapath.states import FORMATS, PROTOCOLS, offload_page, reasons_page, states_page


@click.command("states", short_help="the protocol tables")
@click.argument("protocols", nargs=-1, metavar="[tcp|sctp]...", type=click.Choice(PROTOCOLS))
@click.option("--reasons", is_flag=True, help="The reason codes with their sentences and rules, instead of the tables.")
@click.option("--offload", is_flag=True, help="The offload codes of packet records, instead of the tables.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", help="How to print it.  [default: text]")
@output_option
@verbosity()
def command(protocols: tuple[str, ...], reasons: bool, offload: bool, form: str, output: str | None, quiet: bool, verbose: bool) -> None:
    """The protocol tables, timeouts, reason codes and offload codes.

    \b
    Examples:
      ctmirror states tcp                            both directions, with the reason of each contested cell
      ctmirror states --reasons                      what every reason code means
      ctmirror states --offload                      why the flow table does not serve a packet
      ctmirror states --format markdown -o states.md
      ctmirror states sctp --format mermaid          a diagram for a Markdown page
    """
    asked = "--reasons" if reasons else "--offload"
    if reasons and offload:
        raise click.UsageError("--reasons --offload: two lists; expected one of them")
    if (reasons or offload) and form == "mermaid":
        raise click.UsageError(f"{asked}: a list has no diagram; expected --format text or markdown")
    if (reasons or offload) and protocols:
        raise click.UsageError(f"{asked}: the codes are those of all protocols; expected no protocol")
    page = reasons_page(form) if reasons else offload_page(form) if offload else states_page(protocols or PROTOCOLS, form)
    with opened(output) as file:
        click.echo(page, file=file, nl=False)

"""`ctmirror doctor`: what works here."""

from __future__ import annotations

import click

from datapath.commands.verbosity import verbosity
from datapath.doctor import Finding, examine, healthy, uses, whereabouts


def tc_rules() -> Finding:
    from datapath.commands.offload_probe import tc_rules as tried

    return tried()


def eswitches() -> Finding:
    from datapath.commands.offload_devices import eswitches as listed

    return listed()


@click.command("doctor", short_help="what this machine can do")
@verbosity("Only what is missing.", "Where the packages and the interpreter are as well.")
def command(quiet: bool, verbose: bool) -> int:
    """What this machine can do, and what to do about what is missing. Nothing is changed.

    Exit 0 if replay can work, 1 if something it needs is broken.

    \b
    Examples:
      ctmirror doctor
      ctmirror doctor | grep missing
    """
    findings = []
    for finding in examine([tc_rules, eswitches]):
        findings.append(finding)
        if quiet and finding.ok:
            continue
        mark = click.style("ok     ", fg="green") if finding.ok else click.style("missing", fg="red" if finding.needed else "yellow")
        advice = "" if finding.ok or not finding.advice else f" -> {finding.advice}"
        click.echo(f"{mark}  {finding.name:<14} {finding.found}{advice}")
    for name, place in whereabouts() if verbose else ():
        click.echo(f"at       {name:<14} {place}")
    working = healthy(findings)
    if not quiet:
        click.echo(f"\nreplay {'can' if working else 'cannot'} work here")
        for use, missing in uses(findings):
            click.echo(f"{use} cannot work here: {', '.join(missing)}" if missing else f"{use} can work here")
    return 0 if working else 1

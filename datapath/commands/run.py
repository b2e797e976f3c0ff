"""`ctmirror run`: the live datapath, in the foreground, until it is told to stop."""

from __future__ import annotations

import click

from datapath.commands.verbosity import verbosity


@click.command("run", short_help="packets of real interfaces through rules")
@click.option("--config", "name", required=True, metavar="FILE", help="The node's configuration, in TOML.")
@click.option("--check", is_flag=True, help="Only say whether configuration and rules are right.")
@verbosity("Only warnings and errors.", "Whatever happens, in detail.")
def command(name: str, check: bool, quiet: bool, verbose: bool) -> int:
    """Take packets from real interfaces, run them through rules, and send on what passes.

    Stops at SIGTERM and SIGINT; SIGHUP reads the rules again. Needs root, or the capabilities NET_RAW, NET_ADMIN, BPF.

    \b
    Examples:
      ctmirror run --config node.toml
      ctmirror run --config node.toml --check
    """
    from datapath.live import config as configuration

    config = configuration.load(name)
    if check:
        return _checked(config)
    from datapath.live import service

    level = "warning" if quiet else "debug" if verbose else config.log.level
    return service.serve(config, level)


def _checked(config) -> int:
    from datapath.pipeline import rules_file

    ruleset = rules_file.load(config.rules)
    click.echo(f"{len(config.iface)} interfaces, {len(ruleset.rules)} rules: fine")
    return 0

"""`ctmirror run`: the live datapath, in the foreground, until it is told to stop."""

from __future__ import annotations

import click

from datapath.commands.verbosity import verbosity


@click.command("run", short_help="packets of real interfaces through rules")
@click.option("--config", "name", required=True, metavar="FILE", help="The node's configuration, in TOML.")
@click.option("--restore", is_flag=True, help="Take up the connections that were saved when the last node stopped ([state] file).")
@click.option("--adopt-kernel-conntrack", "adopt", is_flag=True, help="Take over the connections that the kernel tracks in this network namespace.")
@click.option("--handover", is_flag=True, help="On exit, give the connections back to the kernel.")
@click.option("--check", is_flag=True, help="Only say whether configuration and rules are right.")
@verbosity("Only warnings and errors.", "Whatever happens, in detail.")
def command(name: str, restore: bool, adopt: bool, handover: bool, check: bool, quiet: bool, verbose: bool) -> int:
    """Take packets from real interfaces, run them through rules, and send on what passes.

    Stops at SIGTERM and SIGINT; SIGHUP reads the rules again. Needs root, or the capabilities NET_RAW, NET_ADMIN, BPF.

    \b
    Examples:
      ctmirror run --config node.toml
      ctmirror run --config node.toml --check
      ctmirror run --config node.toml --restore
      ctmirror run --config node.toml --adopt-kernel-conntrack --handover
    """
    from datapath.live import config as configuration

    config = configuration.load(name)
    if restore and config.state.file is None:
        raise click.UsageError(f"--restore: expected `file` in the section [state] of {name}")
    if check:
        return _checked(config)
    from datapath.live import service
    from datapath.live.succession import Taking

    level = "warning" if quiet else "debug" if verbose else config.log.level
    return service.serve(config, level, Taking(restore, adopt, handover))


def _checked(config) -> int:
    from datapath.live.shared import check_shared
    from datapath.pipeline import rules_file

    ruleset = rules_file.load(config.rules)
    check_shared(ruleset, config.workers)
    click.echo(f"{len(config.iface)} interfaces, {len(ruleset.rules)} rules: fine")
    return 0

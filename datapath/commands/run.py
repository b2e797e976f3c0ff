"""`ctmirror run`: the live datapath, in the foreground, until it is told to stop."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from ctcore.errors import CtmirrorError
from datapath.commands.verbosity import verbosity
from datapath.extras import remedy

if TYPE_CHECKING:
    from datapath.live.config import NodeConfig


@click.command("run", short_help="packets of real interfaces through rules")
@click.option("--config", "name", required=True, metavar="FILE", help="The node's configuration, in TOML.")
@click.option("--restore", is_flag=True, help="Take up the connections that were saved when the last node stopped ([state] file).")
@click.option("--adopt-kernel-conntrack", "adopt", is_flag=True, help="Take over the connections that the kernel tracks in this network namespace.")
@click.option("--handover", is_flag=True, help="On exit, give the connections back to the kernel.")
@click.option("--check", is_flag=True, help="Only say whether configuration and rules are right, and what of them is doubtful. Opens nothing.")
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
    from datapath.commands.offload_backend import checked, factory

    if find_spec("pydantic") is None:
        raise CtmirrorError(f"a node's configuration is read by pydantic: {remedy('live')}")
    from datapath.live import config as configuration
    from offload.devlink.names import Resolver

    resolver = Resolver()
    config = configuration.load(name, checked, resolver.if_there if check else resolver)
    if restore and config.state.file is None:
        raise click.UsageError(f"--restore: expected `file` in the section [state] of {name}")
    if check:
        return _checked(config, quiet)
    from datapath.live import service
    from datapath.live.succession import Taking

    level = "warning" if quiet else "debug" if verbose else config.log.level
    return service.serve(config, level, Taking(restore, adopt, handover), factory(config))


def _checked(config: NodeConfig, quiet: bool) -> int:
    """Errors are raised; what is doubtful is said, and changes nothing of the exit code."""
    from datapath.cli import complain
    from datapath.commands.offload_backend import doubts
    from datapath.hints import counted
    from datapath.live.shared import check_shared
    from datapath.live.wiring import absent, doubts_of
    from datapath.pipeline import rules_file
    from datapath.pipeline.findings import Findings
    from datapath.pipeline.renamed import renamed

    found = Findings()
    ruleset = renamed(rules_file.load(config.rules, found), config.called)
    check_shared(ruleset, config.workers)
    if quiet:
        return 0
    all_doubts = [*found.warnings, *doubts_of(config, ruleset), *absent(config), *doubts(config.offload)]
    for said in all_doubts:
        complain(f"warning: {said}")
    verdict = counted(len(all_doubts), "warning") if all_doubts else "fine"
    click.echo(f"{counted(len(config.iface), 'interface')}, {counted(len(ruleset.rules), 'rule')}: {verdict}")
    return 0

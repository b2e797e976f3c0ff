"""`ctmirror offload install` and `remove`: a rules file in the kernel's TC, and out of it. Not here: what has to be done (tc.install)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ctcore.errors import CtmirrorError
from datapath.cli import complain
from datapath.commands.verbosity import verbosity
from datapath.hints import counted
from datapath.names import printable

if TYPE_CHECKING:
    from datapath.commands.tc.ask import KernelTc, Refusal
    from datapath.commands.tc.install import Plan
    from datapath.pipeline.rules import Ruleset

NOT_DONE = 1
NOT_PERMITTED = "TC cannot be changed: not permitted: expected root, or cap_net_admin"
WAITS = "waiting for Ctrl-C or SIGTERM, to remove all of it"
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print what would be done, as tc lines, and do nothing.")


def _rules(name: str, quiet: bool) -> Ruleset:
    """The rules of a file, at interfaces where it names functions of NICs."""
    from datapath.pipeline.findings import Findings
    from datapath.pipeline.renamed import renamed
    from datapath.pipeline.rules_file import load
    from offload.devlink.names import Resolver

    found = Findings()
    rules = renamed(load(name, found), Resolver())
    for line in found.warnings if not quiet else ():
        complain(f"warning: {line}")
    return rules


@contextmanager
def _kernel(rules: Ruleset | None) -> Iterator[KernelTc]:
    """TC of this network namespace, for these rules. Raises CtmirrorError."""
    from datapath.commands.tc.ask import KernelTc
    from datapath.commands.tc.install import MARK

    with KernelTc(MARK) as kernel:
        try:
            yield kernel
        except KeyError as error:
            raise CtmirrorError(f"{_where(rules, error.args[0])}no interface {error.args[0]} here: expected those of the rules") from None
        except PermissionError:
            raise CtmirrorError(NOT_PERMITTED) from None


def _where(rules: Ruleset | None, device: str) -> str:
    """FILE:LINE: where a device is named first, or nothing."""
    from datapath.pipeline.renamed import named_devices

    places = (str(place) for name, place in (named_devices(rules) if rules is not None else ()) if name == device)
    return next((f"{place}: " for place in places if place), "")


def _in_the_way(plan: Plan) -> bool:
    for line in plan.conflicts:
        complain(line)
    return bool(plan.conflicts)


def _lines(plan: Plan) -> None:
    for step in plan.steps:
        click.echo(printable(step.line()))


def say_refused(refused: Sequence[Refusal]) -> None:
    """On stderr, a line for each reason. What is not permitted is so for all, and is an error."""
    import errno

    from offload.netlink.extack import once

    if any(each.answer.error == errno.EPERM for each in refused):
        raise PermissionError
    for line in once((each.about(), each.answer.advised()) for each in refused):
        complain(line)


@click.command("install", short_help="put a rules file into the kernel's TC")
@click.argument("rules", metavar="RULES")
@DRY_RUN
@click.option("--until-exit", is_flag=True, help="Wait for Ctrl-C or SIGTERM, and then remove all of it.")
@verbosity("Only what is refused.")
def install_command(rules, dry_run, until_exit, quiet, verbose) -> int:
    """Put rules into the kernel's TC as they stand, and through it into NICs that take them; only what differs from what is there is changed.

    What is ours is marked by a cookie on its actions; filters of others are not touched, and one that has a rule's name is an error before anything
    is done. Chains are filled before what leads to them. Exit code 1: the kernel has refused something, or a filter is in the way. Where it has
    refused every rule nothing stays, and nothing is waited for.

    \b
    Examples:
      ctmirror offload install rules.tc --dry-run
      ctmirror offload install rules.yaml
      ip netns exec switch ctmirror offload install rules.tc --until-exit
    """
    wanted = _rules(rules, quiet)
    with _kernel(wanted) as kernel:
        from datapath.commands.tc.install import Keeper

        keeper = Keeper(kernel, wanted, keep=not until_exit)
        if dry_run:
            _lines(keeper.plan)
            return NOT_DONE if _in_the_way(keeper.plan) else 0
        if _in_the_way(keeper.plan):
            return NOT_DONE
        if until_exit:
            with _ending() as ended, keeper:
                _tell(keeper.plan, keeper.refused, quiet)
                if not keeper.in_vain:
                    if not quiet:
                        complain(WAITS)
                    ended.wait()
        else:
            with keeper:
                _tell(keeper.plan, keeper.refused, quiet)
    return NOT_DONE if keeper.refused else 0


def _tell(plan: Plan, refused: Sequence[Refusal], quiet: bool) -> None:
    say_refused(refused)
    if not quiet:
        click.echo(f"rules: {plan.told(refused)}")


@contextmanager
def _ending() -> Iterator[threading.Event]:
    """Set by Ctrl-C and SIGTERM."""
    event = threading.Event()
    before = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command("remove", short_help="take our rules out of the kernel's TC")
@click.argument("rules", metavar="[RULES]", required=False)
@DRY_RUN
@verbosity("Only what is refused.")
def remove_command(rules, dry_run, quiet, verbose) -> int:
    """Take out of the kernel's TC what `offload install` has put there: at the interfaces and blocks of RULES, with the templates of these; without
    RULES everywhere, and without templates. Qdiscs stay, for an empty one does nothing. It takes root, or cap_net_admin; --dry-run does not.

    \b
    Examples:
      ctmirror offload remove --dry-run
      ctmirror offload remove rules.tc
    """
    from datapath.doctor import holds

    given = _rules(rules, quiet) if rules is not None else None
    if not dry_run and not holds("net_admin"):  # the kernel says so only where there is something to remove
        raise CtmirrorError(NOT_PERMITTED)
    with _kernel(given) as kernel:
        from datapath.commands.tc.install import DELETE, carried_out, hooks_of, removal

        there = kernel.listed(hooks_of(given) if given is not None else kernel.hooks())
        plan = removal(there, given.templates if given is not None else ())
        if dry_run:
            _lines(plan)
            return 0
        refused = carried_out(kernel, plan)
        say_refused(refused)
        if not quiet:
            click.echo(f"{counted(plan.without(refused).count(DELETE), 'rule')} removed{f', {len(refused):,} refused' if refused else ''}")
    return NOT_DONE if refused else 0

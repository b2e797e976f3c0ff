"""`ctmirror check`: users' own reference behaviour, as scenarios or as saved packet records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from datapath.cli import USAGE, complain
from datapath.commands.options import rules_options, tracking_options
from datapath.commands.verbosity import verbosity
from datapath.export import STDOUT
from datapath.hints import counted
from datapath.names import printable, quoted
from datapath.scenario.judge import JUDGES

if TYPE_CHECKING:
    from datapath.check import Case

SHOWN = 10  # differing packets of a case that are printed without --verbose


@click.command("check", short_help="scenarios, or captures against saved records")
@click.argument("files", nargs=-1, required=True, metavar="SCENARIO.ct|CAPTURE...")
@click.option("--expect", "saved", metavar="FILE", help="Saved packet records (JSON Lines) of the captures, which continue one another.")
@click.option("--update", is_flag=True, help="Expect what came: writes FILE, or the scenarios where they differ or expect nothing.")
@click.option("--judge", "judges", multiple=True, type=click.Choice([*JUDGES, "all"]), help="Who judges scenarios, repeatable.  [default: engine]")
@click.option("--junit", metavar="FILE", help="Write the results as JUnit XML as well.")
@click.option("-w", "written", metavar="OUT", help="Write a scenario's packets as a capture, for explain and Wireshark.")
@verbosity("Only what differs.", "Every file, and every packet that differs.")
@tracking_options
@rules_options
def command(files, saved, update, judges, junit, written, quiet, verbose, tracking) -> int:
    """Run scenarios, or compare captures with saved packet records. Exit code 1 if anything differs.

    A scenario (*.ct) is traffic as a script with what is expected on the right; docs/scenarios.md describes it. A directory stands for all of them in
    it and below. With --rules, captures go through rules, and their records have where each packet went (to), by which rule, and what the flow table
    said (offload).

    \b
    Examples:
      ctmirror check tests/*.ct
      ctmirror check tests/*.ct --judge all --junit results.xml
      ctmirror check open.ct --update                         expect what came, where it differs
      ctmirror check open.ct -w open.pcapng                   its packets, for: ctmirror explain open.pcapng --packet 3
      ctmirror check office.pcap --expect office.jsonl --update
      ctmirror check office.pcap --expect office.jsonl --tcp-loose 0
      ctmirror check vm.pcap --expect vm.jsonl --rules rules.tc --device eth0        your rules, kept true in CI
    """
    from datapath import check
    from datapath.app import Outputs, check_files
    from datapath.junit import write_junit

    files, empty = check.with_scenarios_below(files)
    inputs = [*files, *([saved] if saved and not update else [])]
    check_files(inputs, Outputs(packets=junit, conns=written, events=saved if update else None))
    if saved and update:
        check.refuse_to_overwrite(saved)
    scenarios, captures, cases = check.sorted_out(files, saved)
    cases += empty
    _refuse(scenarios, captures, saved, judges, written, update)
    if tracking.rules is not None and scenarios:
        raise click.UsageError(f"{scenarios[0]}: --rules: is for captures with --expect: expected no scenario with it")
    chosen = list(JUDGES) if "all" in judges else list(dict.fromkeys(judges)) or ["engine"]
    if written:
        check.write_capture(written, check.read_scenario(scenarios[0])[1])
    for name in scenarios:
        cases += check.check_scenario(name, chosen, tracking, update=update)
    if captures:
        cases.append((check.update_captures if update else check.check_captures)(captures, saved, tracking))
    if junit:
        write_junit(junit, cases)
    data_on_stdout = STDOUT in (junit, written, saved if update else None)
    _print(cases, saved, tracking.flags, stderr=data_on_stdout, quiet=quiet, verbose=verbose)
    for line in dict.fromkeys(case.error for case in cases if case.error is not None):
        complain(line)
    return USAGE if any(case.error is not None for case in cases) else int(any(case.differing for case in cases))


def _refuse(scenarios: list[str], captures: list[str], saved: str | None, judges: tuple[str, ...], written: str | None, update: bool) -> None:
    """What cannot work, before anything is judged."""
    if captures and saved is None:
        raise click.UsageError(f"{captures[0]}: no scenario; expected --expect FILE with what is expected of a capture")
    if saved is not None and not captures:
        raise click.UsageError(f"--expect {saved}: expected a capture whose packets are to be compared")
    if captures and set(judges) - {"engine"}:
        raise click.UsageError("--judge: is for scenarios; expected none with a capture")
    if written and len(scenarios) != 1:
        raise click.UsageError(f"-w {written}: expected one scenario")
    if STDOUT in scenarios and (update or written):
        raise click.UsageError("--update, -w: expected a scenario that is a file")


def _print(cases: list[Case], saved: str | None, given: str, *, stderr: bool, quiet: bool, verbose: bool) -> None:
    """What differs, what to type next, and a line for each judge. given: the tracking options of the command line."""
    from rich.console import Console

    from datapath.differences import print_disagreements

    console = Console(stderr=stderr)

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    for case in cases:
        if case.differing or case.updated or verbose:
            say(f"{printable(case.name)}  {case.judge}: {_outcome(case)}", "red" if case.differing or case.error else "green")
        if case.differing:
            shown = case.shown if verbose else case.shown[:SHOWN]
            print_disagreements(shown, ("expected", case.judge), console)
            if len(shown) < case.differing:
                say(f"  ... and {case.differing - len(shown):,} more" + ("" if verbose else " (--verbose shows more)"))
            for line in _next(case, saved, given and f" {given}"):
                say(f"  {line}", "cyan")
            say("")
    if not quiet:
        for line in _summary(cases):
            say(line)


def _outcome(case: Case) -> str:
    if case.error is not None:
        return "not judged to the end"
    if case.updated:
        return "updated"
    return f"{case.differing:,} of {case.compared:,} packets differ" if case.differing else f"{case.packets:,} packets, {case.expected:,} as expected"


def _next(case: Case, saved: str | None, given: str) -> Iterator[str]:
    """Commands that tell more, or accept what came."""
    first, flags = case.shown[0], f" {case.flags}" if case.flags else ""
    names = " ".join(map(quoted, case.files))
    if case.scenario:
        judge = f" --judge {case.judge}" if case.judge != "engine" else ""
        capture = quoted(os.path.splitext(os.path.basename(case.name))[0] + ".pcapng")
        if case.name != STDOUT:
            yield f"ctmirror check {names} -w {capture}; ctmirror explain {capture} --packet {first.number}{flags}"
            yield f"ctmirror check {names} --update{judge}{given}     # if this is how it should be"
    else:
        upto = case.files[: case.files.index(first.where) + 1] if first.where in case.files else case.files
        yield f"ctmirror explain {' '.join(map(quoted, upto))} --packet {first.number}{flags}"
        yield f"ctmirror check {names} --expect {quoted(saved or '')} --update{flags}     # if this is how it should be"


def _summary(cases: list[Case]) -> Iterator[str]:
    for judge in dict.fromkeys(case.judge for case in cases):
        mine = [case for case in cases if case.judge == judge]
        packets, expected = sum(case.packets for case in mine), sum(case.expected for case in mine)
        differing, failed = sum(bool(case.differing) for case in mine), sum(case.error is not None for case in mine)
        outcome = [f"{counted(differing, 'file')} with differences"] if differing else [] if failed else ["no difference"]
        outcome += [f"{counted(failed, 'file')} not judged to the end"] if failed else []
        yield f"{judge}: {counted(len(mine), 'file')}, {counted(packets, 'packet')}, {counted(expected, 'expectation')}; {'; '.join(outcome)}"

"""`ctmirror diff`: the running kernel as judge."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from ctcore.errors import CtmirrorError
from datapath.app import check_files
from datapath.cli import INTERRUPTED, USAGE, complain
from datapath.commands.options import Number, tracking_options_but_clock
from datapath.commands.progress import progress_bar
from datapath.commands.verbosity import verbosity
from datapath.export import STDOUT
from datapath.names import printable, quoted

if TYPE_CHECKING:
    from rich.console import Console

    from datapath.diff import Chunk, Outcome
    from datapath.export import Writer

DIFFERENT = 1
SHOWN_AT_MOST = 20


def _no_rules(context: click.Context, param: click.Parameter, value: str | None) -> None:
    """Rules are no question for conntrack alone; who asks is told what there is."""
    if value is not None:
        raise click.UsageError(
            "--rules: diff asks the kernel for its conntrack alone, as many kernels lack flower and act_ct: expected no --rules; "
            "`check CAPTURE --expect FILE --rules FILE` compares rules with saved records, `explain --rules` shows a packet's way"
        )


@click.command("diff", short_help="captures through ctmirror and through the running kernel")
@click.argument("captures", nargs=-1, required=True, metavar="CAPTURE...")
@click.option("--jsonl", metavar="FILE", help="Write a record for each packet that differs, with both sides' packet records.")
@click.option("--oracle-only", is_flag=True, help="Print the kernel's packet records (JSON Lines) and compare nothing.")
@click.option(
    "--show", type=Number(0, 1 << 30), default=SHOWN_AT_MOST, help=f"Differing packets to show of each capture.  [default: {SHOWN_AT_MOST}]"
)
@click.option("--rules", metavar="FILE", hidden=True, expose_value=False, callback=_no_rules, help="What diff does not take.")
@verbosity("No table and no progress bar; the exit code is the answer.", "Captures without a difference, too, and why packets were not shown.")
@tracking_options_but_clock
def command(captures, jsonl, oracle_only, show, quiet, verbose, tracking) -> int:
    """Run captures through ctmirror and through this machine's own conntrack, packet by packet, and print where they differ.

    Needs root. The kernel judges the packets in network namespaces of their own, without touching anything else; each capture begins with an empty
    table. Both sides live by the kernel's clock, not by the capture's timestamps. Exit code 1 if any packet differs.

    \b
    Examples:
      sudo ctmirror diff office.pcap
      sudo ctmirror diff *.pcap --tcp-liberal 1 --timeouts udp_timeout=5
      sudo ctmirror diff office.pcap --jsonl differences.jsonl
      sudo ctmirror diff office.pcap --oracle-only > kernel.jsonl     the kernel's opinion alone, to compare with another engine
    """
    from rich.console import Console

    from datapath.app import Outputs
    from datapath.diff import Outcome

    check_files(captures, Outputs(packets=jsonl))
    console = Console(stderr=jsonl == "-" or oracle_only, soft_wrap=False, highlight=False)
    outcomes: list[Outcome] = []
    failure = None
    with ExitStack() as stack, progress_bar(quiet=quiet) as progress:
        writer = _writer(stack, jsonl, oracle_only)
        for name in captures:
            explain = f"ctmirror explain {quoted(name)}{tracking.flags and ' '}{tracking.flags} --packet"
            report = _Report(console, show, explain, silent=quiet or oracle_only)
            try:
                outcomes.append(_compare(name, tracking, _taker(report, writer, oracle_only, named=len(captures) > 1), progress))
            except CtmirrorError as error:
                failure = str(error)
            except KeyboardInterrupt:  # while a namespace was made or taken down
                outcomes.append(Outcome(printable(name), interrupted=True))
            if failure or outcomes[-1].interrupted:
                break
    for line in [outcome.error for outcome in outcomes if outcome.error] + ([failure] if failure else []):
        complain(line)
    if outcomes and not quiet and not oracle_only:
        _summary(console, outcomes, verbose=verbose)
    if outcomes and outcomes[-1].interrupted:
        return INTERRUPTED
    differ = not oracle_only and any(outcome.differ for outcome in outcomes)
    return DIFFERENT if differ else USAGE if failure or any(outcome.error for outcome in outcomes) else 0


def _compare(name: str, tracking: Any, take: Callable[[Chunk], None], progress: Any) -> Outcome:
    """One capture's outcome; one that cannot be read at all does not keep the others from being compared."""
    from ctcore.errors import CaptureError
    from datapath.diff import Outcome, diff

    try:
        return diff(name, tracking, take, progress)
    except CaptureError as error:
        return Outcome(printable(name), error=str(error))


class _Report:
    """Prints what differs as it is found. explain: the command to type next, but for the packet's number."""

    def __init__(self, console: Console, show: int, explain: str, *, silent: bool) -> None:
        self.console, self.left, self.explain, self.silent = console, show, explain, silent

    def take(self, chunk: Chunk) -> None:
        from datapath.differences import print_disagreements

        if self.silent:
            return
        for found in chunk.disagreements():
            if self.left > 0:
                print_disagreements([found], ("ctmirror", f"Linux {platform.release()}"), self.console)
                if found.where != STDOUT:
                    self.console.print(f"  {self.explain} {found.number}", style="cyan", markup=False, soft_wrap=True)
            elif self.left == 0:
                self.console.print("...  more differ; --show N shows more, --jsonl FILE has all")
            self.left -= 1


def _writer(stack: ExitStack, jsonl: str | None, oracle_only: bool) -> Writer | None:
    """Where records go: the file asked for, stdout for the kernel's alone, or nowhere."""
    from datapath.export import open_writer

    name = jsonl or (STDOUT if oracle_only else None)
    if name is None:
        return None
    writer = open_writer("packets", name, "jsonl")
    stack.callback(writer.close)
    return writer


def _taker(report: _Report, writer: Writer | None, oracle_only: bool, *, named: bool) -> Callable[[Chunk], None]:
    """What is to be done with each chunk. named: whether records tell their capture."""

    def take(chunk: Chunk) -> None:
        if writer:
            writer.write(chunk.kernel_records(chunk.name if named else None) if oracle_only else chunk.difference_records())
        report.take(chunk)

    return take


def _summary(console: Console, outcomes: Sequence[Outcome], *, verbose: bool) -> None:
    """A line a capture that differs (or all), and one for all of them."""
    shown, differ = sum(outcome.shown for outcome in outcomes), sum(outcome.differ for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    listed = [outcome for outcome in outcomes if verbose or outcome.differ or outcome.error or len(outcomes) == 1]
    rows = [("capture", "packets", "compared", "differ", "not compared")] if listed else []
    for outcome in listed:
        why = ", ".join(f"{count:,} {name}" for name, count in outcome.unshown.most_common())
        rows.append((outcome.name, f"{outcome.packets:,}", f"{outcome.shown:,}", f"{outcome.differ:,}", why or "-"))
    width = max((len(row[0]) for row in rows), default=0)
    for number, (name, packets, compared, differing, why) in enumerate(rows):
        # Names are never cut: they are to be searched and copied.
        line = f"{name:<{width}}  {packets:>9}  {compared:>9}  {differing:>9}  {why}"
        console.print(line, style="" if number else "bold", markup=False, soft_wrap=True)
    rate = f", {shown / seconds:,.0f} packets/s" if seconds else ""
    captures = f"{len(outcomes)} captures" if len(outcomes) > 1 else "1 capture"
    stopped = "; interrupted" if outcomes[-1].interrupted else ""
    line = f"{differ:,} of {shown:,} packets differ from Linux {platform.release()} ({captures}{rate}){stopped}"
    console.print(line, markup=False, soft_wrap=True)

"""`ctmirror offload`: what a NIC would take of a capture, why a connection is not in hardware, and whether hardware holds what it should.

What needs no capture is asked of a running node: status; why and audit, where none is named. install and remove are the kernel's business
(offload_install), and NICs and their functions devlink's (offload_devices, offload_functions). Not here: the answers (offload_plan, offload_why,
offload_audit; of a node: offload_node).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import click
import orjson
from click.core import ParameterSource

from datapath.app import Outputs, Tracking, check_files, replay
from datapath.cli import INTERRUPTED, USAGE, complain
from datapath.commands.conntrack import FILTERS, NETWORK, NUMBER
from datapath.commands.control_options import socket_option
from datapath.commands.nic_option import KINDS, nic_profile
from datapath.commands.offload_devices import devices_command
from datapath.commands.offload_functions import eswitch_command, function_command
from datapath.commands.offload_install import install_command, remove_command
from datapath.commands.offload_probe import probe_command
from datapath.commands.options import Number, refuse_said_by_rules, rules_options, tracking_options
from datapath.commands.output import opened, output_option
from datapath.commands.progress import progress_bar
from datapath.commands.verbosity import verbosity
from datapath.export import STDOUT, naming
from datapath.names import printable
from offload.mirror_settings import POLICIES

if TYPE_CHECKING:
    from datapath.commands.offload_plan import Outcome

RULES_FILES = (".tc", ".yaml", ".yml")
MOST_TABLE, MOST_RATE = 1 << 28, 1_000_000_000


class Amounts(click.ParamType):
    """Whole numbers from 0 on, separated by commas."""

    name = "N,..."

    def __init__(self, most: int, zero: str) -> None:
        self.most, self.zero = most, zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        parts = value.split(",")
        if not all(part.isascii() and part.isdigit() and len(part) < 16 and int(part) <= self.most for part in parts):
            self.fail(f"'{value}': expected numbers from 0 ({self.zero}) to {self.most:,}, separated by commas", param, ctx)
        return [int(part) for part in parts]


class Policies(click.ParamType):
    """Names of eviction policies, separated by commas."""

    name = "P,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        parts: list[str] = value.split(",")
        for part in parts:
            if part not in POLICIES:
                self.fail(f"'{part}': expected {', '.join(POLICIES)}, separated by commas", param, ctx)
        return parts


@click.group("offload", short_help="what hardware takes, or would take, and why not the rest")
@verbosity()
def command(quiet: bool, verbose: bool) -> None:
    """What a NIC that offloads connections would take of captures, and what stays in software, and why; the same of a running node; and rules in the
    kernel's TC (docs/offload-tc.md).

    \b
    Examples:
      ctmirror offload plan office.pcap --nic connectx-7-hw
      ctmirror offload why office.pcap --conn 17
      ctmirror offload audit office.pcap --nic tiny
      ctmirror offload status
      ctmirror offload why -p tcp --dport 443
      ctmirror offload install rules.tc --dry-run
      ctmirror offload devices
    """


def _given(tracking: Tracking, captures: tuple[str, ...], outputs: Outputs | None = None) -> None:
    """Refuse what cannot work before anything is read. A capture left out would change what is planned."""
    if tracking.rules is None:
        refuse_said_by_rules("--nic")
    for name in captures:
        check_files([name], outputs or Outputs())


command.add_command(install_command)
command.add_command(remove_command)
command.add_command(probe_command)
command.add_command(devices_command)
command.add_command(eswitch_command)
command.add_command(function_command)


# --- plan -------------------------------------------------------------------------------------------------------------------------------


@command.command("plan", short_help="what NICs would take of captures, and why not the rest")
@click.argument("captures", nargs=-1, required=True, metavar="CAPTURE...")
@click.option("--nic", "nics", multiple=True, required=True, metavar="PROFILE", help=f"A kind of NIC: {KINDS}. Repeatable.")
@click.option("--policy", "policies", type=Policies(), default=POLICIES[0], help="Which connection makes room when the NIC is full: first-come, "
              "by-rate, by-bytes.  [default: first-come]")  # fmt: skip
@click.option("--table", "tables", type=Amounts(MOST_TABLE, "no limit"), help="Entries there is room for, instead of the profile's number.")
@click.option("--inserts", type=Amounts(MOST_RATE, "at once"), help="Inserts and deletes a second, instead of the profile's number.")
@click.option("--json", "output", metavar="[OUT]", is_flag=False, flag_value=STDOUT, help="Write all figures as JSON, without a name to stdout.")
@click.option("--plot", metavar="FILE", help="Draw bytes in hardware and entries over time: .png, .svg or .html.")
@verbosity("No table and no progress bar.", "Reasons and load of each scenario by itself.")
@tracking_options
@rules_options
def plan_command(captures, nics, policies, tables, inserts, output, plot, quiet, verbose, tracking) -> int:
    """What NICs would take: of packets, bytes and connections, with how many entries, and why the others stay in software.

    The captures are replayed once for each combination of NIC, policy, size of its table and rate of inserts. Without --rules everything is tracked
    and forwarded. docs/offload.md says how to read a plan.

    \b
    Examples:
      ctmirror offload plan office.pcap --nic connectx-7-hw
      ctmirror offload plan office.pcap --nic tiny --table 16,64,256,0 --policy first-come,by-rate
      ctmirror offload plan office.pcap --nic connectx-6dx-sw --nic connectx-7-hw --inserts 1000,10000,100000 --plot plan.png
      ctmirror offload plan vm.pcapng --nic mine.toml --rules rules.tc --device eth0 --json | jq '.scenarios[].bytes.share'
    """
    _given(tracking, captures, Outputs(packets=output, conns=plot))
    profiles = [nic_profile(name) for name in nics]
    from datapath.commands.offload_plan import rereadable, scenarios, tried

    if plot:
        from datapath.commands.offload_plot import check_plot

        check_plot(plot)
    wanted = scenarios(profiles, policies, tables, inserts)
    rereadable(captures, len(wanted))
    for name in filter(None, (output, plot)):  # replays take long: whether what comes of them can be written is found out before
        if name != STDOUT:
            with naming(name), open(name, "ab"):
                pass
    outcomes: list[Outcome] = []
    interrupted = False
    with progress_bar(quiet=quiet) as progress:
        try:
            for scenario in wanted:
                outcomes.append(tried(captures, tracking, scenario, progress))
        except KeyboardInterrupt:
            interrupted = True
    if outcomes and (outcomes[0].packets or not outcomes[0].errors):
        _tell(outcomes, captures, tracking, output, plot, None if quiet else verbose)
    errors = outcomes[0].errors if outcomes else ()
    for line in errors:
        complain(line)
    return INTERRUPTED if interrupted else USAGE if errors else 0


def _tell(outcomes: list[Outcome], captures: tuple[str, ...], tracking: Tracking, output: str | None, plot: str | None, verbose: bool | None) -> None:
    """verbose: None for no table."""
    from rich.console import Console

    from datapath.commands.offload_plan import document
    from datapath.commands.offload_shown import show

    if verbose is not None:
        show(outcomes, Console(stderr=output == STDOUT), verbose=verbose)
    if output:
        plan = document(captures, tracking.rules.name if tracking.rules else None, outcomes)
        text = orjson.dumps(plan, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        with naming(output):
            if output == STDOUT:
                sys.stdout.buffer.write(text)
            else:
                with open(output, "wb") as file:
                    file.write(text)
    if plot:
        from datapath.commands.offload_plot import draw

        draw(outcomes, plot)


# --- one connection, and an audit -------------------------------------------------------------------------------------------------------


def _write(file: IO[str], document: dict[str, Any]) -> None:
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode(), file=file)


NIC = click.option("--nic", metavar="PROFILE", default="connectx-7-hw", help=f"A kind of NIC: {KINDS}.  [default: connectx-7-hw]")


# conntrack(8)'s words for connections, but -q and --zone, which mean something else here.
WORDS = {
    **FILTERS,
    "reply_dst": click.option("--reply-dst", "reply_dst", help="Destination of the reply.", metavar=NETWORK),
    "zone": click.option("-w", "live_zone", type=NUMBER, help="Zone."),
}
OF_NODES = {*WORDS, "live_zone", "socket", "most", "kernel"} - {"zone"}
OF_BOTH = {"capture", "conn", "as_json", "output", "quiet", "verbose"}


def words_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the words by which connections of a running node are looked for; the function gets them as `words`."""

    @functools.wraps(command)
    def wrapper(**given: Any) -> Any:
        words = {name: given.pop("live_zone" if name == "zone" else name) for name in WORDS}
        return command(words=words, **given)

    for option in reversed(WORDS.values()):
        wrapper = option(wrapper)
    return wrapper


def one_form(command: Callable[..., Any]) -> Callable[..., Any]:
    """Refuses options that belong to the other form of a command: with a capture it is replayed, without one a running node is asked."""

    @functools.wraps(command)
    def wrapper(**given: Any) -> Any:
        context = click.get_current_context()
        for parameter in context.command.params:
            name = parameter.name or ""
            if name in OF_BOTH or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
                continue
            if given.get("kernel") is not None and name not in OF_NODES:
                raise click.UsageError(f"{parameter.opts[0]}: not with --kernel")
            if given["capture"] is None and name not in OF_NODES:
                raise click.UsageError(f"{parameter.opts[0]}: expected a CAPTURE with it: a running node has settings of its own")
            if given["capture"] is not None and name in OF_NODES:
                raise click.UsageError(f"{parameter.opts[0]}: expected no CAPTURE with it: it is for what is asked of a running node")
        return command(**given)

    return wrapper


@command.command("status", short_help="what a running node has in hardware")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with everything.")
@socket_option
@verbosity()
def status_command(as_json, socket, quiet, verbose) -> None:
    """What a running node has in hardware: entries, jobs on their way, the share of packets, and why the rest is in software.

    \b
    Examples:
      ctmirror offload status
      ctmirror offload status --json | jq .software_flows
    """
    from datapath.commands.offload_node import show_status
    from datapath.live.client import Client

    with Client(socket) as client:
        show_status(client, as_json=as_json)


@command.command("why", short_help="why a connection is not in hardware, or was not")
@one_form
@click.argument("capture", required=False)
@click.option(
    "--conn", type=Number(0, (1 << 63) - 1), metavar="N", help="The connection's number, as in records of replay --nic, or conntrack -o id."
)
@words_option
@click.option("--most", type=Number(1, 1000), default=20, metavar="N", help="Most connections of a running node that are shown.  [default: 20]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with everything; of a running node one for each connection.")
@socket_option
@NIC
@output_option
@verbosity("No progress bar.")
@tracking_options
@rules_options
def why_command(capture, conn, words, most, as_json, socket, nic, output, quiet, verbose, tracking) -> int:
    """Why connections are not in hardware, or were not: without CAPTURE, those of a running node, by their number or as conntrack -L looks for them.

    Of a capture: when one connection was offloaded and left, what kept its packets in software, what hardware has counted. Codes are those of
    docs/offload-reasons.md, with the item of the contract that says so. What nobody can know is called unknown.

    \b
    Examples:
      ctmirror offload why office.pcap --conn 17
      ctmirror offload why vm.pcapng --conn 0 --rules rules.tc --nic connectx-6dx-sw
      ctmirror offload why office.pcap --conn 17 --json | jq .why.code
      ctmirror offload why -p tcp -s 10.0.0.0/8 --dport 443
      ctmirror offload why --conn 4711 --json
    """
    if capture is None:
        from datapath.commands.offload_node import show_why
        from datapath.live.client import Client
        from datapath.live.conntrack_words import which_of

        with Client(socket) as client, opened(output) as file:
            show_why(client, which_of(words, updating=False), conn, most, file, as_json=as_json)
        return 0
    if conn is None:
        raise click.UsageError("--conn: expected it with a CAPTURE: the number of one connection")
    _given(tracking, (capture,), Outputs(packets=output))
    profile = nic_profile(nic)
    from datapath.commands.offload_documents import why_document
    from datapath.commands.offload_why import followed, lines

    with progress_bar(quiet=quiet) as progress:
        found, errors = followed(capture, tracking, profile, conn, progress)
    rows = list(lines(found))
    width = max(len(label) for label, _ in rows) + 2
    with opened(output) as file:
        if as_json:
            _write(file, why_document(found, [capture]))
        for label, text in () if as_json else rows:
            click.echo(printable(f"{label:<{width}}{text}"), file=file)
    for line in errors:
        complain(line)
    return USAGE if errors else 0


def _kernel_audited(rules: str, socket: str | None, output: str | None, *, quiet: bool, as_json: bool) -> int:
    from datapath.commands.offload_drift import document, found_in_kernel, lines
    from datapath.pipeline.findings import Findings
    from datapath.pipeline.rules_file import load

    if click.get_current_context().get_parameter_source("socket") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--kernel: expected no --socket with it: no node is asked")
    said = Findings()
    wanted = load(rules, said)
    for line in said.warnings if not quiet else ():
        complain(f"warning: {line}")
    found, zones, same = found_in_kernel(wanted)
    if not quiet:
        with opened(output) as file:
            if as_json:
                _write(file, document(found, zones, same, rules))
            for line in () if as_json else lines(found, zones, same, len(wanted.rules)):
                click.echo(printable(line), file=file)
    return int(any(finding.drift for finding in found))


@command.command("audit", short_help="what hardware holds against what it should hold")
@one_form
@click.argument("capture", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with everything.")
@click.option("--kernel", metavar="RULES", help="Instead: this network namespace's TC and conntrack against a rules file.")
@socket_option
@NIC
@output_option
@verbosity("Only the exit code.")
@tracking_options
@rules_options
def audit_command(capture, as_json, kernel, socket, nic, output, quiet, verbose, tracking) -> int:
    """Hold what hardware has against what it should have: rules that should not be there, that lack, that say something else. Of a running node, of
    a NIC behind CAPTURE, or of the kernel's TC, where `offload install` has put RULES.

    Exit code 0: they agree, 1: something differs. Connections with a job on its way are left out of that, not of the numbers; so are connections that
    no flow table of the kernel has, for those without packets are in none.

    \b
    Examples:
      ctmirror offload audit office.pcap
      ctmirror offload audit vm.pcapng --rules rules.tc --nic tiny
      ctmirror offload audit office.pcap --json | jq .rules
      ctmirror offload audit
      ctmirror offload audit --kernel rules.tc
    """
    if kernel is not None:
        return _kernel_audited(kernel, socket, output, quiet=quiet, as_json=as_json)
    if capture is None:
        from datapath.commands.offload_node import show_audit
        from datapath.live.client import Client

        with Client(socket) as client, opened(output) as file:
            return show_audit(client, file, quiet=quiet, as_json=as_json)
    _given(tracking, (capture,), Outputs(packets=output))
    profile = nic_profile(nic)
    from datapath.commands.offload_audit import audited, lines
    from datapath.commands.offload_documents import audit_document
    from datapath.commands.offloaded_run import NicGiven, behind_nic

    tracking, kind = behind_nic(tracking, NicGiven(profile, framed=True))
    with progress_bar(quiet=quiet) as progress:
        result = replay([capture], tracking, Outputs(), summary=False, progress=progress, kind=kind)
    found = audited(result.nic)
    if not quiet and (result.stats["total_packets"] or not result.errors):
        with opened(output) as file:
            if as_json:
                _write(file, audit_document(result.nic, found, [capture]))
            for line in () if as_json else lines(result.nic, found):
                click.echo(printable(line), file=file)
    for line in result.errors:
        complain(line + (f" (a rules file? --kernel {printable(capture)})" if capture.endswith(RULES_FILES) else ""))
    return INTERRUPTED if result.interrupted else USAGE if result.errors else int(len(found) > 0)

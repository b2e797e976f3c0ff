"""`ctmirror conntrack`: conntrack(8)'s options and output, for the connections of a running node."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from ctcore.errors import CtmirrorError
from datapath.commands.control_options import socket_option

if TYPE_CHECKING:
    from datapath.live.client import Client

FOUND_NONE = 1
COMMANDS = {
    "list": ("-L", "--dump", "List the connections."),
    "get": ("-G", "--get", "Show one: -s, -d and -p, with ports where the protocol has them."),
    "delete": ("-D", "--delete", "Delete connections, and show which."),
    "update": ("-U", "--update", "Change connections: -m, -t, -u, -l, --label-add and --label-del are what is to be set."),
    "events": ("-E", "--event", "Print what happens until Ctrl-C."),
    "flush": ("-F", "--flush", "Delete all connections."),
    "counters": ("-S", "--stats", "The tracker's counters."),
    "count": ("-C", "--count", "How many connections there are."),
}
FILTER = (
    "src",
    "dst",
    "reply_src",
    "reply_dst",
    "sport",
    "dport",
    "reply_sport",
    "reply_dport",
    "proto",
    "family",
    "zone",
    "l4state",
    "src_nat",
    "dst_nat",
    "any_nat",
)
CHANGE = ("timeout", "label_add", "label_del")
SHARED = ("mark", "label", "status")  # conditions, of -U what is to be set
TAKES: dict[str, tuple[str, ...]] = {
    "list": (*FILTER, *SHARED, "output"), "get": (*FILTER, "output"), "delete": (*FILTER, *SHARED, "output"),
    "update": (*FILTER, *SHARED, *CHANGE, "output"), "events": (*FILTER, *SHARED, "output", "kinds", "resync"), "flush": ("family",), "counters": (),
    "count": (),
}  # fmt: skip
EXPECT_TAKES: dict[str, tuple[str, ...]] = {"list": ("output",), "count": ()}
DONE = {"list": "shown", "get": "shown", "delete": "deleted", "update": "updated", "events": "shown"}


NUMBER, NETWORK = click.IntRange(0, 65535), "ADDRESS[/BITS]"
FILTERS = {
    "src": click.option("-s", "--src", "--orig-src", "src", help="Source of the original direction.", metavar=NETWORK),
    "dst": click.option("-d", "--dst", "--orig-dst", "dst", help="Destination of the original direction.", metavar=NETWORK),
    "reply_src": click.option("-r", "--reply-src", "reply_src", help="Source of the reply.", metavar=NETWORK),
    "reply_dst": click.option("-q", "--reply-dst", "reply_dst", help="Destination of the reply.", metavar=NETWORK),
    "proto": click.option("-p", "--proto", "proto", metavar="PROTO", help="Protocol, by name or number."),
    "sport": click.option("--sport", "--orig-port-src", "sport", type=NUMBER, help="Port of the original source."),
    "dport": click.option("--dport", "--orig-port-dst", "dport", type=NUMBER, help="Port of the original destination."),
    "reply_sport": click.option("--reply-port-src", "reply_sport", type=NUMBER, help="Port of the reply's source."),
    "reply_dport": click.option("--reply-port-dst", "reply_dport", type=NUMBER, help="Port of the reply's destination."),
    "l4state": click.option("--state", "l4state", metavar="STATE", help="State of TCP or SCTP, as ESTABLISHED."),
    "family": click.option("-f", "--family", "family", type=click.Choice(["ipv4", "ipv6"]), help="Family of addresses."),
    "mark": click.option("-m", "--mark", "mark", metavar="VALUE[/MASK]", help="Mark."),
    "label": click.option("-l", "--label", "label", metavar="BITS", help="Labels that are all set, by numbers or names."),
    "zone": click.option("-w", "--zone", "zone", type=NUMBER, help="Zone."),
    "status": click.option("-u", "--status", "status", metavar="STATUS,...", help="ASSURED, SEEN_REPLY, UNREPLIED, FIXED_TIMEOUT, OFFLOAD, ..."),
    "src_nat": click.option("-n", "--src-nat", "src_nat", metavar="[ADDRESS]", is_flag=False, flag_value="", help="Source is translated (to it)."),
    "dst_nat": click.option("-g", "--dst-nat", "dst_nat", metavar="[ADDRESS]", is_flag=False, flag_value="", help="The destination is (to it)."),
    "any_nat": click.option("-j", "--any-nat", "any_nat", metavar="[ADDRESS]", is_flag=False, flag_value="", help="Either is."),
}  # fmt: skip


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, in the order of the help."""
    filters = [option for name, option in FILTERS.items() if name not in ("zone", "status", "src_nat", "dst_nat", "any_nat")]
    options = [
        *(click.option(*names[:2], name, is_flag=True, help=names[2]) for name, names in (("do_" + name, names) for name, names in COMMANDS.items())),
        *filters,
        click.option("--label-add", metavar="BITS", help="With -U: labels to set."),
        click.option("--label-del", metavar="[BITS]", is_flag=False, flag_value="", help="With -U: labels to clear; without any, all."),
        *(FILTERS[name] for name in ("zone", "status", "src_nat", "dst_nat", "any_nat")),
        click.option("-t", "--timeout", "timeout", type=click.IntRange(0, 1 << 31), metavar="SECONDS", help="With -U: the timeout to set."),
        click.option("-e", "--event-mask", "kinds", metavar="NEW,UPDATES,DESTROY|ALL", help="With -E: which events."),
        click.option("--resync", is_flag=True, help="With -E: list the connections first, and again whenever events were lost."),
        click.option("-o", "--output", "output", metavar="FORMAT,...", multiple=True, help="json, extended, timestamp, id, labels."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command("conntrack", short_help="conntrack(8) for a running node")
@_options
@click.argument("table", required=False, metavar="[conntrack|expect]")
@socket_option
@click.option("--quiet", is_flag=True, help="No summary on stderr.")
@click.option("--verbose", is_flag=True, help="Changes nothing here: what is printed is the answer.")
def command(table: str | None, socket: str, quiet: bool, verbose: bool, **given: Any) -> int:
    """The connections of a running node, with the options and the output of conntrack(8).

    Exit code 1 where -D, -U or -G find nothing.

    \b
    Examples:
      ctmirror conntrack -L -p tcp --dport 443 -u UNREPLIED
      ctmirror conntrack -L -o json | jq .original
      ctmirror conntrack -L expect
      ctmirror conntrack -E -e NEW,DESTROY -o timestamp
      ctmirror conntrack -D -s 10.0.0.0/8
      ctmirror conntrack -U -p udp -m 0x10/0xf0
    """
    from datapath.live.client import Client
    from datapath.live.conntrack_words import outputs_of

    do = _command_of(given)
    if table not in (None, "conntrack", "expect"):
        raise click.UsageError(f"{table}: expected the table conntrack or expect: others are not shown")
    if table == "expect" and do not in EXPECT_TAKES:
        raise click.UsageError(f"{COMMANDS[do][0]} expect: expected -L or -C: expectations are made and removed by helpers")
    _check(do, given, EXPECT_TAKES if table == "expect" else TAKES)
    outputs = outputs_of(given["output"])
    with Client(socket) as client:
        if table == "expect":
            if others := sorted(outputs - {"json"}):
                raise click.UsageError(f"-L expect -o {others[0]}: expected json, or nothing")
            return _expectations(do, client, outputs, quiet)
        if do in ("count", "counters", "flush"):
            return _numbers(do, client, given, quiet)
        if do == "events":
            return _events(client, given, outputs, quiet)
        return _conns(do, client, given, outputs, quiet)


def _command_of(given: dict[str, Any]) -> str:
    chosen = [name for name in COMMANDS if given[f"do_{name}"]]
    if len(chosen) != 1:
        raise click.UsageError(f"expected one of {', '.join(names[0] for names in COMMANDS.values())}")
    return chosen[0]


def _check(do: str, given: dict[str, Any], takes: dict[str, tuple[str, ...]]) -> None:
    """No option that means nothing here."""
    for name, value in given.items():
        if not name.startswith("do_") and value not in (None, (), False) and name not in takes[do]:
            raise click.UsageError(f"{COMMANDS[do][0]}: takes no --{'event-mask' if name == 'kinds' else name.replace('_', '-')}")
    if do == "get":
        missing = [option for option, name in (("-s", "src"), ("-d", "dst"), ("-p", "proto")) if given[name] is None]
        if missing:
            raise click.UsageError(f"-G: expected {', '.join(missing)}: what names one connection")
        _check_ports(given)


def _check_ports(given: dict[str, Any]) -> None:
    """A connection of a protocol with ports is named by these as well: without, several would be shown."""
    from datapath.fields import WITH_PORTS
    from datapath.live.conntrack_words import proto_number

    missing = [f"--{name}" for name in ("sport", "dport") if given[name] is None]
    if missing and proto_number(given["proto"]) in WITH_PORTS:
        raise click.UsageError(f"-G -p {given['proto']}: expected {', '.join(missing)}: what names one connection")


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        from importlib.metadata import version

        click.echo(f"ctmirror v{version('ctmirror')} (conntrack): {text}", err=True)


def _numbers(do: str, client: Client, given: dict[str, Any], quiet: bool) -> int:
    from datapath.live.conntrack_words import which_of

    if do == "flush":
        client.ask("flush", which=which_of(given, updating=False))
        _say("connection tracking table has been emptied.", quiet)
    elif do == "count":
        click.echo(client.ask("count")["count"])
    else:
        counters = client.ask("counters")["counters"]
        click.echo("cpu=0   \t" + " ".join(f"{name}={number}" for name, number in counters.items()))
    return 0


def _expectations(do: str, client: Client, outputs: set[str], quiet: bool) -> int:
    """What helpers expect, as lines or as JSON."""
    import orjson

    from datapath.live.expected import expect_line

    parts = client.parts("expectations")
    if do == "count":
        click.echo(sum(len(part["expectations"]) for part in parts))
        return 0
    for part in parts:
        for record in part["expectations"]:
            click.echo(orjson.dumps(record).decode() if "json" in outputs else expect_line(record))
    _say(f"{client.end['count']} expectations have been shown.", quiet)
    return 0


def _conns(do: str, client: Client, given: dict[str, Any], outputs: set[str], quiet: bool) -> int:
    """Connections, as they come."""
    from datapath.live.conntrack_words import change_of, which_of

    which = which_of(given, updating=do == "update")
    if do == "get":
        which.setdefault("zone", 0)
    more = {"change": change_of(given)} if do == "update" else {}
    asked = client.conns("list" if do == "get" else do, which=which, **more)
    shown = _print(asked, outputs)
    if do == "get" and not shown:
        click.echo("ctmirror: Operation failed: such conntrack doesn't exist", err=True)
        return FOUND_NONE
    _say(f"{shown} flow entries have been {DONE[do]}.", quiet)
    return FOUND_NONE if do != "list" and not shown else 0


def _print(records: Iterable[dict[str, Any]], outputs: set[str]) -> int:
    """To stdout; how many they were."""
    import orjson

    from datapath.live.conntrack_words import label_names, line_of

    names = {bit: name for name, bit in label_names().items()} if "labels" in outputs else {}
    shown, out = 0, sys.stdout.buffer
    for record in records:
        shown += 1
        if "json" in outputs:
            out.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        else:
            out.write(line_of(record, outputs, names).encode() + b"\n")
    out.flush()
    return shown


def _events(client: Client, given: dict[str, Any], outputs: set[str], quiet: bool) -> int:
    """Until Ctrl-C, or the node ends. What was lost is told on stderr."""
    from datapath.live.client import NoNode
    from datapath.live.conntrack_words import kinds_of, which_of

    which, shown = which_of(given, updating=False), 0
    try:
        for part in client.events(which=which, kinds=kinds_of(given["kinds"] or "ALL")):
            if "events" in part:
                shown += len(part["events"])  # before: Ctrl-C may come between the last line and whatever follows it
                _print(part["events"], outputs)
            elif "lost" in part:
                hint = "" if given["resync"] else "; --resync lists what is there"
                click.echo(f"ctmirror: {part['lost']} events were lost (numbers {part['seq']} to {part['past'] - 1}){hint}", err=True)
            if given["resync"] and "events" not in part:
                _resync(client.path, which, outputs, quiet)
    except KeyboardInterrupt:
        pass
    except NoNode as error:
        raise CtmirrorError(f"{error}; {shown} events were shown") from None
    _say(f"{shown} flow events have been shown.", quiet)
    return 0


def _resync(path: str, which: dict[str, Any], outputs: set[str], quiet: bool) -> None:
    """All there is, by a connection of its own: events wait meanwhile."""
    from datapath.live.client import Client

    with Client(path) as other:
        shown = _print(other.conns("list", which=which), outputs)
        if not quiet:
            click.echo(f"ctmirror: {shown} connections listed, as of event {other.end['seq']}", err=True)

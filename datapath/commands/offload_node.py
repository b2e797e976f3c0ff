"""`ctmirror offload status`, and `why` and `audit` without a capture: asked of a running node.

Not here: options (offload), the node's side (live.offload_desk).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import click
import orjson

from ctcore.errors import CtmirrorError
from datapath.app import end_text
from datapath.commands.offload_audit import verdict
from datapath.commands.offload_said import cited
from datapath.hints import counted
from datapath.names import printable
from datapath.report import count, size_text
from offload.drift import OF_AUDIT, Drift, Finding

if TYPE_CHECKING:
    from datapath.live.client import Client

Rows = Iterator[tuple[str, str]]
DIRECTIONS = ("original", "reply")
AUDITED = ("held", "wanted", "differ", "pending", "differences", "drift", "findings", "entries")
JOBS = {"add": "to add", "del": "to remove", "stats": "to count"}


def _print(rows: Iterable[tuple[str, str]], file: IO[Any]) -> None:
    told = list(rows)
    width = max((len(label) for label, _ in told), default=0) + 2
    for label, text in told:
        click.echo(printable(f"{label:<{width}}{text}".rstrip()), file=file)


# --- status -----------------------------------------------------------------------------------------------------------------------------


def show_status(client: Client, *, as_json: bool) -> None:
    told = client.ask("offload")
    if as_json:
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        return
    _print(_status(told), sys.stdout)
    for title, flows in (
        ("connections that should be in hardware and are not, and why", told["software_flows"]),
        ("packets that stayed in software, and why", told["software_packets"]),
        ("rules that hardware has refused, and why", told["refused"]),
    ):
        codes = sorted(((n, code) for code, n in flows.items() if n), key=lambda each: (-each[0], each[1]))
        if codes:
            click.echo(f"\n{title}")
        for n, code in codes:
            click.echo(f"  {n:>12,}  {cited(code)}")


def _status(told: Mapping[str, Any]) -> Rows:
    flows, queue, workers = told["flows"], told["queue"], told["workers"]
    shares = f", its limits divided among {workers} workers" if workers > 1 else ""
    profile = "" if told["profile"] is None else f", profile {told['profile']}"
    yield "backend", f"{told['backend']}{profile}, policy {told['policy']}{shares}"
    yield from _tc(told["tc"])
    yield "entries", count(told["entries"]) + (" (no limit)" if told["capacity"] is None else f" of {count(told['capacity'])}")
    yield "connections", f"{count(flows['installed'])} in hardware, {count(flows['wanted'])} that should be; {counted(told['rules'], 'rule')}"
    yield "jobs", ", ".join(f"{count(told['jobs'][job])} {what}" for job, what in JOBS.items())
    yield "queue", f"{counted(queue['mirror'], 'command')} not taken by hardware, {count(queue['hardware'])} not answered"
    (packets, all_packets), (size, all_bytes) = ((told[what]["hardware"], sum(told[what].values())) for what in ("packets", "bytes"))
    yield "packets", f"{_percent(packets, all_packets)} of {count(all_packets)} in hardware"
    yield "bytes", f"{_percent(size, all_bytes)} of {size_text(all_bytes)} in hardware"
    syns = "unknown: this hardware does not tell how many were" if told["syns"] is None else count(told["syns"])
    yield "SYNs", f"{syns} forwarded in hardware as if of an established connection (A4.27)"
    yield "since then", f"{counted(told['evictions'], 'eviction')}, {counted(told['resets'], 'reset')} of hardware"


def _tc(told: Mapping[str, Any] | None) -> Rows:
    """How the kernel is given connections, and what is wrong with that."""
    if told is None:
        return
    yield "way", f"{told['way']} in {told['where']}: {', '.join(told['devices'])}"
    for line in told["why"]:
        yield "", line
    threads, rules = told["threads"], told["rules"]
    states = ", ".join(f"{n} {state}" for state, n in threads.items() if n)
    yield "threads", f"{states}; {counted(told['failures'], 'failure')}, {counted(told['waiting'], 'command')} waiting"
    for line in dict.fromkeys(told["said"]):
        yield "", line
    if rules is not None:
        refused = f", {rules['refused']:,} refused" if rules["refused"] else ""
        state = "as they should be" if rules["whole"] else "not as they should be, so connections are software's"
        yield "TC rules", f"{rules['rules']:,}{refused}: {state}; changed {rules['changes']:,} and put back {counted(rules['repairs'], 'time')}"
        if rules["ahead"]:
            yield "", f"{counted(rules['ahead'], 'filter')} of others before them: see `ctmirror offload audit`"
    for device, what in told["idle"].items():
        yield what.partition(" ")[0], f"{device}: {what.partition(' ')[2]}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


# --- one connection ---------------------------------------------------------------------------------------------------------------------


def show_why(client: Client, which: Mapping[str, Any], conn: int | None, most: int, file: IO[Any], *, as_json: bool) -> None:
    """Raises CtmirrorError if there is no such connection."""
    first = True
    for record in client.conns("offload_why", which=which, most=most, **({} if conn is None else {"conn": conn})):
        if as_json:
            click.echo(orjson.dumps(record), file=file)
            continue
        if not first:
            click.echo(file=file)
        _print(_why(record), file)
        first = False
    if not client.end["count"]:
        raise CtmirrorError("no such connection" if conn is None else f"connection {conn}: there is none, or it has ended")
    if client.end["count"] > client.end["shown"] and not as_json:
        click.echo(f"\n{count(client.end['count'] - client.end['shown'])} more: see --most", err=True)


def _why(record: Mapping[str, Any]) -> Rows:
    told, flow = record["offload"], record["original"]
    yield "connection", f"{record['conn']}  {record['proto']} {end_text(flow, 'src', 'sport')} > {end_text(flow, 'dst', 'dport')}"
    code = told["code"]
    if told["hardware"]:
        leaving = f", and about to leave: {cited(code)}" if code else ""
        yield "state", f"in hardware: {' and '.join(told['hardware'])} direction{'s' * (len(told['hardware']) > 1)}{leaving}"
    else:
        yield "state", f"not in hardware: {cited(code)}" if code else "not in hardware: nothing keeps it, its next packet is its admission"
    if told["job"]:
        yield "on its way", f"a job: {told['job']}"
    if told["kernel"]:
        yield "kernel", told["kernel"]
    if told["refusals"]:
        yield "refused", counted(told["refusals"], "time") + (f", tried again in {told['retry']:.1f} s" if told["retry"] else "")
    if told["missed"]:
        yield "to software", f"packets of it came to software, last for: {cited(told['missed'])}"
    if told["hardware"]:
        yield "counted", _counted(told["counted"])
    if told["syns"]:
        yield "SYN", f"{counted(told['syns'], 'SYN')} forwarded in hardware as if of the established connection; software has seen none (A4.27)"


def _counted(told: Mapping[str, Any]) -> str:
    """What hardware has told last; what nobody knows is no 0."""
    if told["both"] is None:
        return "unknown: hardware has told of no packet"
    if told["original"] is None:
        return f"{_amount(told['both'])} in both directions; of each: unknown, since one counter serves both (A6.50)"
    return ", ".join(f"{name} {_amount(told[name])}" for name in DIRECTIONS) + ", as hardware told last"


def _amount(each: Mapping[str, int]) -> str:
    return f"{counted(each['packets'], 'packet')} of {each['bytes']:,} bytes"


# --- audit ------------------------------------------------------------------------------------------------------------------------------


def show_audit(client: Client, file: IO[Any], *, quiet: bool, as_json: bool) -> int:
    """The exit code."""
    told = client.ask("offload_audit")
    if as_json and not quiet:
        document = {"agree": not (told["differ"] or told["drift"]), **{name: told[name] for name in AUDITED}}
        click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode(), file=file)
    elif not quiet:
        for line in told["differences"]:
            click.echo(printable(line), file=file)
        for line in _found(told):
            click.echo(printable(line), file=file)
        click.echo(verdict(told), file=file)
    return int(told["differ"] > 0 or told["drift"] > 0)


def _found(told: Mapping[str, Any]) -> Iterator[str]:
    """What is beside the rules that a line each has been said of."""
    for each in told["findings"]:
        what = each["what"].replace("_", " ")
        if what not in OF_AUDIT.values():
            yield Finding(Drift(what), each["about"], each["why"] or "").told()
    if told["entries"] is not None:
        entries = told["entries"]
        yield (
            f"{count(entries['entries'])} of the kernel's connections are ours: {count(entries['offloaded'])} offloaded, "
            f"{count(entries['in_hardware'])} in hardware"
        )

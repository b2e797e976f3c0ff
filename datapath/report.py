"""The summary of a replay for people: what happened, why, and what to type next.

Fits 80 columns in a pipe and uses what a wider terminal offers. Not here: records for scripts (fields, export), counting (worker, tally).
Invariants: every number stands in the result as it is printed; a section without content is left out; hints name a likely cause, never a certain one.
"""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ctcore.reasons import REASONS
from ctcore.types import Dir, EvictedFor, Proto, Reason, State
from datapath import fields
from datapath.app import Replayed
from datapath.export import STDOUT
from datapath.hints import counted, hints_of
from datapath.names import printable, quoted
from datapath.tally import HOW_MEANS, Large

SIDE_BY_SIDE = 100  # columns from which states and protocols stand beside each other
COMMAND_COLUMN = 80  # columns beside a sentence from which the command to type next stands there too
STATES = (State.ESTABLISHED, State.NEW, State.RELATED, State.INVALID, State.UNTRACKED, State.NOT_SEEN)
COLORS = {State.ESTABLISHED: "green", State.NEW: "cyan", State.RELATED: "cyan", State.INVALID: "red", State.UNTRACKED: "", State.NOT_SEEN: "yellow"}
# Effects of reasons (spec/reasons.txt) as headings, in the order in which people ask.
WHY = {
    "invalid": "why invalid", "dropped": "why dropped", "held": "why held", "ignored": "why ignored", "not-seen": "why not seen by conntrack",
    "untracked": "why untracked", "note": "also noted",
}  # fmt: skip


# Why a connection had to go.
WHYS: dict[int, str] = {
    EvictedFor.FOR_TABLE: "the table was full", EvictedFor.FOR_ZONE: "what was free is reserved for other zones",
    EvictedFor.FOR_TUPLE: "a newer SYN took its translated tuple over",
}  # fmt: skip


def print_summary(result: Replayed, console: Console, *, verbose: bool = False) -> None:
    """Print what a replay found. verbose: when rules matched last, the tracker's counters and settings as well."""
    with console.capture() as captured:
        for part in _parts(result, console.width, verbose):
            # A command that is wrapped cannot be copied: texts may be wider than the console, tables are not.
            console.print(part, highlight=False, soft_wrap=isinstance(part, Text))
    # Tables are padded to their full width, which is of no use in a file.
    console.file.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
    console.file.flush()


def _parts(result: Replayed, width: int, verbose: bool) -> Iterator[Table | Text]:
    yield from _header(result)
    if not result.stats["total_packets"]:
        return
    yield Text()
    yield _overview(result, width)
    yield from _endings(result)
    yield from _whys(result, width)
    if result.rules:
        from datapath.report_rules import rules_parts

        yield from rules_parts(result.rules, int(result.stats["last_ts"]) if verbose else None)
    yield from _evictions(result)
    yield from _pools(result, width)
    yield from _fragments(result)
    yield from _largest(result, width)
    yield from _hints(result)
    if verbose:
        yield from _details(result)


def _endings(result: Replayed) -> Iterator[Text]:
    """What the words under "ended by" mean, of those that need it."""
    there = {how for *_, hows in (result.tally.by_protocol() if result.tally else []) for how in hows}
    yield from (Text(f"{how}: {meaning}", "dim") for how, meaning in HOW_MEANS.items() if how in there)


def count(number: int) -> str:
    return f"{number:,}"


def size_text(number: float) -> str:
    """Bytes in decimal units, three digits."""
    units = iter(("B", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while number >= 999.5 and unit != "TB":
        number, unit = number / 1000, next(units)
    return f"{number:.{0 if unit == 'B' or number >= 99.95 else 1 if number >= 9.995 else 2}f} {unit}"


def duration_text(ns: int) -> str:
    """A length of time as people say it."""
    seconds = ns / 1e9
    if seconds < 0.9995:
        return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"
    return f"{hours // 24}d {hours % 24:02d}h"


def rate_text(per_second: float) -> str:
    return f"{per_second / 1e6:.1f} Mpps" if per_second >= 1e6 else f"{per_second / 1e3:.0f} kpps" if per_second >= 1e3 else f"{per_second:.0f} pps"


def _header(result: Replayed) -> Iterator[Text]:
    """A line for each capture, and one for all of them with the time it took."""
    stats = result.stats
    for capture in result.captures:
        facts = [capture.format, *capture.links] if capture.format else []
        if len(result.captures) > 1:
            facts.append(counted(capture.packets, "packet"))
        yield Text.assemble((printable(capture.name), "bold"), "   " if facts else "", ", ".join(facts))
    length = max(0, stats["last_ts"] - stats["first_ts"])
    traffic = f"{counted(stats['total_packets'], 'packet')}, {size_text(stats['total_bytes'])}, {duration_text(length)} of traffic"
    speed = rate_text(stats["total_packets"] / result.seconds)
    stopped = " (interrupted)" if result.interrupted else ""
    yield Text(f"{traffic}; replayed in {duration_text(int(result.seconds * 1e9))}, {speed}{stopped}")
    if result.forwarded:
        yield Text(_written(*result.forwarded, stats, result.gathered, result.stuck))


def _written(name: str, packets: int, stats: dict[str, Any], gathered: int, stuck: int) -> str:
    """What -w wrote, and what it left out. gathered: fragments that were held, and left with the one that completed their datagram; stuck: those that
    passed and could not leave."""
    left, total = stats["held"] + stats["dropped"] - gathered, stats["total_packets"]
    left_out = f"; {count(left)} held or dropped {'was' if left == 1 else 'were'} left out" if left else ""
    lost = f"; {count(stuck)} passed and could not be changed or cut up" if stuck else ""
    return f"wrote {'stdout' if name == STDOUT else printable(name)}: {count(packets)} of {counted(total, 'packet')}{left_out}{lost}"


def plain(*heads: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in heads:
        table.add_column(head, justify="right" if head in right else "left", no_wrap=head in right)
    return table


def _overview(result: Replayed, width: int) -> Table:
    """Packets by state, beside connections by protocol."""
    states, protocols = _states(result), _protocols(result)
    if protocols is None:
        return states
    grid = Table.grid(padding=(0, 3, 0, 0)) if width >= SIDE_BY_SIDE else Table.grid()
    if width >= SIDE_BY_SIDE:
        grid.add_row(states, protocols)
    else:
        grid.add_row(states)
        grid.add_row(Text())
        grid.add_row(protocols)
    return grid


def _states(result: Replayed) -> Table:
    table = plain("state", "packets", "share", "wire bytes", right=("packets", "share", "wire bytes"))
    packets, size, total = result.stats["packets"], result.stats["bytes"], result.stats["total_packets"]
    for state in STATES:
        if packets[state]:
            share = f"{100 * packets[state] / total:.1f}%"
            table.add_row(Text(fields.STATE_NAMES[state], COLORS[state]), count(int(packets[state])), share, size_text(int(size[state])))
    return table


def _protocols(result: Replayed) -> Table | None:
    rows = result.tally.by_protocol() if result.tally else []
    if not rows:
        return None
    table = plain("protocol", "connections", "ended by", right=("connections",))
    for proto, total, how in rows:
        table.add_row(fields.proto_name(proto), count(total), "  ".join(f"{name} {count(n)}" for name, n in how.items()))
    return table


def explain_command(result: Replayed, index: int) -> tuple[int, str]:
    """A packet's number in its capture, and the command that explains it, without captures that hold nothing. index: over all captures."""
    upto = [capture for capture in result.captures if capture.first <= index and capture.packets]
    names = " ".join(quoted(capture.name) for capture in upto)
    number = index - upto[-1].first
    return number, f"ctmirror explain {names} --packet {number}{_flags(result)}"


def _flags(result: Replayed) -> str:
    """The options of the replay, to be repeated."""
    return f" {result.tracking.flags}" if result.tracking.flags else ""


def _whys(result: Replayed, width: int) -> Iterator[Text]:
    """Reasons by their effect, the most frequent first, each with its first packet and the command that explains it."""
    packets, first = result.stats["reason_packets"], result.stats["reason_first"]
    room = min(max(width - 22, 30), 80)  # for the sentence, beside two numbers
    for effect, title in WHY.items():
        found = [reason for reason in REASONS if reason.effect == effect and packets[reason.code]]
        untold = _untold(result) if effect == "not-seen" else 0
        if not found and not untold:
            continue
        if effect == "dropped" and result.rules is not None and sum(int(packets[reason.code]) for reason in found) > int(result.stats["dropped"]):
            title = "why dropped, or passed untracked"  # what conntrack would drop may pass where no rule sends it there
        yield Text(f"\n{title:<{room}}{'packets':>11}{'first at':>11}", "bold")
        for reason in sorted(found, key=lambda reason: -int(packets[reason.code])):
            number, command = explain_command(result, int(first[reason.code]))
            sentence, *rest = wrap(reason.sentence, room)
            line = Text(f"{sentence:<{room}}{count(int(packets[reason.code])):>11}{'#' + count(number):>11}")
            if width >= COMMAND_COLUMN + room:
                line.append(f"   {command}", "cyan")
            yield line
            yield from (Text(more) for more in rest)
            if width < COMMAND_COLUMN + room and effect != "note":
                yield Text(f"  {command}", "cyan")
        if untold:
            yield Text(f"{'no rule sent it to conntrack':<{room}}{count(untold):>11}")


# What becomes of a packet before any rule could have it tracked, or where none is asked.
UNASKED = (*range(Reason.R_NOT_IP, Reason.R_FRAGMENT + 1), Reason.R_OVERLOAD)


def _untold(result: Replayed) -> int:
    """Packets that passed through rules, or were dropped by one, and that no `ct` action was for."""
    if result.rules is None:
        return 0
    told = sum(int(result.stats["reason_packets"][reason]) for reason in UNASKED)
    return max(int(result.stats["packets"][State.NOT_SEEN]) - told, 0)


def _evictions(result: Replayed) -> Iterator[Text]:
    """How many connections had to make way for others, and the first of them."""
    evictions, lost = result.evictions, result.counters.get("evictions_lost", 0)
    if not evictions.number:
        return
    yield Text(f"\n{counted(evictions.number + lost, 'connection')} evicted", "bold")
    for row in evictions.first:
        pair = [f"{fields.proto_name(int(row[name]['proto']))} {tuple_text(row[name])}" for name in ("key", "newcomer")]
        zones = [f" in zone {int(row[name]['zone'])}" if row[name]["zone"] else "" for name in ("key", "newcomer")]
        yield Text(f"  conn {int(row['conn'])}, {pair[0]}{zones[0]}\n    for {pair[1]}{zones[1]}: {WHYS[int(row['why'])]}")
    if evictions.number > len(evictions.first):
        yield Text("  each one's destroy event (--events) says for whom it had to go")


def _pools(result: Replayed, width: int) -> Iterator[Table | Text]:
    """What each NAT rule had to give, and how much of it was taken."""
    if not result.pools:
        return
    heads = ("tuples", "in use", "at most", "exhausted")
    table = plain("NAT rule", *heads, right=heads)
    table.columns[0].overflow = "fold"
    names = [f"{pool.kind} {pool.text}" for pool in result.pools]
    if result.rules:
        from datapath.report_rules import pool_names

        names = pool_names(result.rules.ruleset, result.tracking.config, result.pools)
    for name, pool in zip(names, result.pools, strict=True):
        table.add_row(Text(name), *(count(n) for n in (pool.size, pool.in_use, pool.high_water, pool.exhausted)))
    yield Text()
    yield table
    if any(pool.high_water > pool.size for pool in result.pools):
        yield Text("  in use: connections; those to different destinations may share a tuple")
    if result.rules is None:  # rules translate packets wherever they are; what leaves changed is in the records
        yield Text(f"{counted(result.stats['translated'], 'packet')} translated")


# What datagrams that were never whole died of, by the counters of reassembly.
DEATHS = {
    "died_timeout": "timed out", "died_overlap": "had fragments that overlap", "died_malformed": "had impossible ones",
    "died_too_far": "had others of their source in between (ipfrag_max_dist)",
}  # fmt: skip


def _fragments(result: Replayed) -> Iterator[Text]:
    """What became of fragments, if there were any."""
    seen = result.stats["fragments"]
    if not seen:  # of rules without `ct`, which alone puts fragments together
        return
    died = {words: seen[name] for name, words in DEATHS.items() if seen[name]}
    if not seen["datagrams"] and not seen["waiting"] and not died:
        return
    yield Text(f"\n{counted(seen['datagrams'], 'datagram')} put together from fragments", "bold")
    for words, number in died.items():
        yield Text(f"{counted(number, 'datagram')} given up: {words}")
    if died:
        yield Text(f"{counted(seen['lost'], 'held fragment')} lost with them")
    if seen["waiting"]:
        yield Text(f"{counted(seen['waiting'], 'datagram')} not whole at the end")


def flow_text(conn) -> str:
    """A connection as its original direction: who to whom."""
    return tuple_text(conn["flow"][Dir.ORIG]["key"])


def tuple_text(key: np.void) -> str:
    ends = fields.endpoints(key.tobytes())
    joined = "[{}]:{}" if ends["src"] and ":" in ends["src"] else "{}:{}"
    source, target = ((joined.format(ends[a], ends[p]) if ends.get(p) is not None else ends[a]) for a, p in (("src", "sport"), ("dst", "dport")))
    return f"{source} > {target}" + (f" type {ends['type']} code {ends['code']} id {ends['id']}" if "type" in ends else "")


def _state_of(large: Large) -> str:
    proto = int(large.conn["flow"][Dir.ORIG]["key"]["proto"])
    state = fields.l4state_name(proto, int(large.conn["tcp" if proto == Proto.PROTO_TCP else "sctp"]["state"]))
    return state or ("alive" if large.how == "alive" else "ended: " + large.how)


def _largest(result: Replayed, width: int) -> Iterator[Table | Text]:
    """The largest connections, each whole or broken behind its arrow; where not even that fits beside the figures, above them."""
    large = result.tally.largest() if result.tally else []
    if not large:
        return
    flows = [f"{fields.proto_name(int(one.conn['flow'][Dir.ORIG]['key']['proto']))} {flow_text(one.conn)}" for one in large]
    # The flow table sets deadlines of its own, which do not tell when the last packet came.
    tells = result.rules is None or not (result.rules.flows or {}).get("admitted")
    heads = ("conn", *(["duration"] if tells else []), "packets", "IP bytes", "state")
    rows = [
        (str(int(one.conn["flow"][Dir.ORIG]["id"])), *([duration_text(one.stop - one.start)] if tells else []), count(one.packets),
         size_text(one.bytes), _state_of(one))
        for one in large
    ]  # fmt: skip
    room = width - sum(2 + max(map(len, column)) for column in zip(heads, *rows, strict=True))
    broken = [flow if len(flow) <= room else flow.replace(" > ", " >\n") for flow in flows]
    yield Text()
    if max(len(line) for flow in broken for line in flow.splitlines()) <= room:
        table = plain("largest connections", *heads, right=heads[:-1])
        table.columns[0].no_wrap = True
        for flow, row in zip(broken, rows, strict=True):
            table.add_row(Text(flow), *row)
        yield table
    else:
        yield Text("largest connections", "bold")
        for flow, (conn, *lasted, packets, size, state) in zip(flows, rows, strict=True):
            long = "".join(f"{duration} long, " for duration in lasted)
            yield Text(f"{flow}\n  conn {conn}, {long}packets: {packets}, {size} of IP sent, {state}")
    if not tells:
        yield Text("  durations are unknown: the flow table sets deadlines of its own")
    yield from _conn_command(result, rows[0][0])


def _conn_command(result: Replayed, conn: str) -> Iterator[Text]:
    """What tells of a connection: behind a NIC what knows of it, which takes one capture, and a NIC with the usual policy."""
    names = [quoted(capture.name) for capture in result.captures if capture.packets]
    if result.nic is None:
        yield Text(f"  ctmirror explain {' '.join(names)} --conn {conn}{_flags(result)}", "cyan")
    elif len(names) == 1 and result.nic_flags:
        yield Text(f"  ctmirror offload why {names[0]} --conn {conn} {result.nic_flags}{_flags(result)}", "cyan")


def _hints(result: Replayed) -> Iterator[Table | Text]:
    hints = hints_of(result)
    if not hints:
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for hint in hints:
        table.add_row(Text("hint", "bold yellow"), hint)
    yield Text()
    yield table


def _details(result: Replayed) -> Iterator[Table | Text]:
    """What --verbose adds: the tracker's counters, every reason's code, and the settings that were in force."""
    counters = plain("counter", "value", right=("value",))
    for name, value in result.counters.items():
        counters.add_row(name, count(int(value)))
    codes = plain("reason", "packets", right=("packets",))
    for code, packets in enumerate(result.stats["reason_packets"]):
        if packets:
            codes.add_row(fields.REASON_NAMES[Reason(code)], count(int(packets)))
    settings = plain("setting", "value", right=("value",))
    for name, setting in result.tracking.settings().items():
        settings.add_row(name, Text(str(setting)))
    for table in (counters, codes, settings):
        yield Text()
        yield table

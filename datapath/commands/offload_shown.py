"""A plan for people: a row for each scenario, and why packets stayed in software. Not here: the figures (offload_plan)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datapath.commands.offload_plan import Outcome, share
from datapath.commands.offload_said import says
from datapath.hints import counted
from datapath.names import printable
from datapath.report import count, size_text

MOST_REASONS = 8
UNBOUNDED = 10_000  # columns
GIVEN, LEFT = 4, 2  # columns that say which scenario it is; of these, those with words
COLUMNS = ("NIC", "policy", "table", "inserts/s", "packets", "bytes", "conns", "entries", "refused", "queue", "saved")


def percent(part: int, whole: int) -> str:
    found = share(part, whole)
    return "-" if found is None else f"{100 * found:.1f}%"


def row(outcome: Outcome) -> tuple[str, ...]:
    """By COLUMNS."""
    scenario = outcome.scenario
    return (
        printable(scenario.profile.name), scenario.policy, count(scenario.table) if scenario.table else "any",
        scenario.rate if scenario.inserts else "any",
        percent(outcome.hardware_packets, outcome.packets), percent(outcome.hardware_bytes, outcome.bytes),
        percent(outcome.hardware_connections, outcome.connections), count(outcome.entries), count(sum(outcome.refused.values())),
        count(outcome.waiting), count(outcome.hardware_packets),
    )  # fmt: skip


def show(outcomes: Sequence[Outcome], console: Console, *, verbose: bool) -> None:
    """The table, and the reasons: of all scenarios with a range each, verbose: of each scenario by itself."""
    rows = [row(outcome) for outcome in outcomes]
    same = [i for i in range(GIVEN) if len({each[i] for each in rows}) == 1]  # said once, above the table
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for i, name in enumerate(COLUMNS):
        if i not in same:
            table.add_column(name, justify="left" if i < LEFT else "right", no_wrap=i < GIVEN)
    for each in rows:
        table.add_row(*(cell for i, cell in enumerate(each) if i not in same))
    first = outcomes[0]
    conns = sorted({outcome.connections for outcome in outcomes})  # one that hardware keeps alive may be two elsewhere
    many = counted(conns[0], "connection") if len(conns) == 1 else f"{count(conns[0])} to {counted(conns[-1], 'connection')}"
    console.print(Text(f"{counted(first.packets, 'packet')}, {size_text(first.bytes)}, {many}", "bold"))
    if first.framed:
        console.print(Text(f"{counted(first.framed, 'packet')} captured without Ethernet header, and taken as if there were one"), soft_wrap=True)
    if same:
        console.print(Text(", ".join(f"{COLUMNS[i]} {rows[0][i]}" for i in same)), soft_wrap=True)
    needed = console.measure(table, options=console.options.update(max_width=UNBOUNDED)).maximum
    console.width = max(needed, console.width)  # a figure that is cut off says nothing: terminals wrap
    console.print(table)
    if loose := max(outcome.loose for outcome in outcomes):  # with another NIC there are fewer where rules are in software
        are = "is" if loose == 1 else "are"
        console.print(Text(f"of the packets in hardware {count(loose)} {are} of no connection, as ARP: rules alone sent them on"), soft_wrap=True)
    groups = [(outcome.scenario.title, [outcome]) for outcome in outcomes] if verbose else [("", list(outcomes))]
    for title, group in groups:
        of = f" of {printable(title)}" if title else ""
        console.print(Text(f"\npackets that stayed in software{of}, and why", "bold"), soft_wrap=True)
        for line in reasons(group):
            console.print(Text(line), soft_wrap=True)
        if verbose:
            for line in load(group[0]):
                console.print(Text(line), soft_wrap=True)
    for i, hint in enumerate(first.hints):
        console.print(Text.assemble("\n" if i == 0 else "", ("hint", "bold yellow"), f"  {hint}"), soft_wrap=True)


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each code: packets, from the fewest to the most of the scenarios."""
    each = [{code: packets for code, packets, _ in outcome.reasons()} for outcome in outcomes]
    most = {code: max(one.get(code, 0) for one in each) for one in each for code in one}
    codes = sorted(most, key=lambda code: (-most[code], code))[:MOST_REASONS]
    lines, width = [], max(map(len, codes), default=0)
    for code in codes:
        least = min(one.get(code, 0) for one in each)
        packets = count(most[code]) if least == most[code] else f"{count(least)} to {count(most[code])}"
        lines.append(f"  {packets:>16}  {code:{width}}  {says(code)}")
    left = len(most) - len(codes)
    return [*lines, *([f"  {'':16}  and {left:,} more: see --json"] if left else [])] or ["  none"]


def load(outcome: Outcome) -> list[str]:
    """What it means for the host and for the NIC's driver."""
    came, software = outcome.busiest
    lines = [f"  busiest second: {count(came)} packets; the most that software had in one: {count(software)}"]
    lines.append(f"  inserted {count(outcome.counters['accepted'])} entries, evicted {count(outcome.counters['evictions'])} connections")
    if outcome.syns:
        lines.append(f"  {count(outcome.syns)} SYNs forwarded in hardware as if of an established connection (A4.27)")
    return lines

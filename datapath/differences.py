"""Where two opinions on a packet differ: records in, differing fields out, shown to people.

    found = disagreement("office.pcap", 12, "10.0.0.1 > 10.0.0.2 tcp", record_a, record_b)
    print_disagreements([found], ("ctmirror", "kernel"), console)

Records are nested dicts as fields makes them, or as they were read back from JSON Lines. A field within an object is named tcp.original.end.
Invariants: equal opinions give no difference, in whatever order lists hold them; a reason that one side does not know is no difference; whatever
records hold, what is shown of them is printable and stays on its line.
Not here: where records come from (fields, scenario.judge, the captures).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ctcore.reasons import REASONS
from datapath.fields import Record
from datapath.names import printable
from datapath.scenario.cursor import seconds_text

if TYPE_CHECKING:
    from rich.console import Console

# How a packet was judged, without what it is (i, ts, len, addresses).
JUDGED = ("state", "dir", "conn", "status", "zone", "mark", "l4state", "timeout", "verdict", "out")
ABSENT = "-"
_ROUNDING = 1e-9  # of seconds made from ticks
_SENTENCES = {reason.name: reason for reason in REASONS}


class Difference(NamedTuple):
    """One field of which there are two opinions."""

    field: str
    left: Any
    right: Any


@dataclass(frozen=True)
class Disagreement:
    """A packet with differing fields. where: its place; number: in its capture or scenario, from 0; packet: what it is, in words; reasons: both
    sides' codes, None where one has none."""

    where: str
    number: int
    packet: str
    fields: tuple[Difference, ...]
    reasons: tuple[str | None, str | None] = (None, None)


def differences(
    left: Record, right: Record, fields: Iterable[str] = JUDGED, *, tolerance: float = 0.0, late: float = 0.0
) -> list[Difference]:  # fmt: skip
    """The fields that differ, in their order. A field that is absent counts as None.

    tolerance: seconds by which timeouts may differ. late: seconds by which those on the right may be less, beyond that.
    """
    found: list[Difference] = []
    for field in fields:
        found += _compare(field, left.get(field), right.get(field), (tolerance + late, tolerance))
    return found


def _compare(field: str, left: Any, right: Any, slack: tuple[float, float]) -> Iterator[Difference]:
    """slack: seconds by which a timeout on the right may be less, and more."""
    if isinstance(left, dict) and isinstance(right, dict):
        for name in [*left, *(name for name in right if name not in left)]:
            yield from _compare(f"{field}.{name}", left.get(name), right.get(name), slack)
    elif not _same(field.rpartition(".")[2], left, right, slack):
        yield Difference(field, left, right)


def _same(name: str, left: Any, right: Any, slack: tuple[float, float]) -> bool:
    if name == "reason" and None in (left, right):
        return True
    if name == "timeout" and isinstance(left, int | float) and isinstance(right, int | float):
        less, more = slack
        return -less - _ROUNDING <= right - left <= more + _ROUNDING
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return sorted(map(str, left)) == sorted(map(str, right))
    return left == right


def disagreement(
    where: str, number: int, packet: str, left: Record, right: Record, fields: Iterable[str] = JUDGED, *, tolerance: float = 0.0
) -> Disagreement | None:  # fmt: skip
    """Two records that differ, with both sides' reasons, which explain the difference even where they are not part of it; None if they do not."""
    found = differences(left, right, fields, tolerance=tolerance)
    return Disagreement(where, number, packet, tuple(found), (_code(left), _code(right))) if found else None


def _code(record: Record) -> str | None:
    """A record's reason; None as well if it is none."""
    reason = record.get("reason")
    return reason if isinstance(reason, str) else None


# --- shown -----------------------------------------------------------------------------------------------------------------------------


def packet_words(record: Record) -> str:
    """A packet by what its record tells of it."""
    if not record.get("src"):
        return "no IP packet"
    ports = [f" port {record[port]}" if record.get(port) is not None else "" for port in ("sport", "dport")]
    return f"{record['src']}{ports[0]} > {record.get('dst')}{ports[1]} {record.get('proto')}"


def value_text(field: str, value: Any) -> str:
    """A value as people read it, on one line."""
    if value is None:
        return ABSENT
    if isinstance(value, dict):
        return printable(" ".join(f"{name}={value_text(name, each)}" for name, each in value.items())) or "(empty)"
    if isinstance(value, list | tuple | set | frozenset):
        return printable(" ".join(map(str, value))) or "(empty)"
    if field.rpartition(".")[2] == "timeout" and isinstance(value, float):
        return seconds_text(value)
    return printable(str(value))


def rows_of(item: Disagreement) -> list[tuple[str, str, str]]:
    """Field and both opinions as texts, the reasons last if there are any."""
    rows = [(printable(found.field), value_text(found.field, found.left), value_text(found.field, found.right)) for found in item.fields]
    if set(item.reasons) - {None, "ok"} and all(found.field != "reason" for found in item.fields):
        rows.append(("reason", printable(item.reasons[0] or ABSENT), printable(item.reasons[1] or ABSENT)))
    return rows


def why(reasons: Iterable[str | None]) -> list[str]:
    """What the codes mean, each once; nothing of `ok`."""
    known = [_SENTENCES[name] for name in dict.fromkeys(reasons) if name in _SENTENCES and name != "ok"]
    return [f"{reason.name}: {reason.sentence}" + ("" if reason.rule == "-" else f" ({reason.rule})") for reason in known]


def lines_of(items: Sequence[Disagreement], names: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Lines and their styles: each packet, its fields in columns, and what the reasons mean."""
    rows = [row for item in items for row in rows_of(item)]
    widths = [max([len(row[i]) for row in rows] + [len(head)]) for i, head in enumerate(("", *names))]
    for item in items:
        yield f"{printable(item.where)} #{item.number}  {printable(item.packet)}", "bold"
        for row, style in ((("", *names), "dim"), *((row, "") for row in rows_of(item))):
            yield ("  " + "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True))).rstrip(), style
        yield from ((f"  {sentence}", "") for sentence in why(item.reasons))


def print_disagreements(items: Sequence[Disagreement], names: tuple[str, str], console: Console) -> None:
    """lines_of() on a console. A line is never wrapped: it shall be searched and copied."""
    from rich.text import Text

    for line, style in lines_of(items, names):
        console.print(Text(line, style), soft_wrap=True, highlight=False)

"""The protocol tables, timeouts and codes as pages: text, Markdown or Mermaid, made from ctcore.spec and, of offload codes, from record_words.

Not here: what the cells mean to the engine. Invariant: the Markdown pages under docs/ are this module's output (pcap_tests compares them).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ctcore import spec
from ctcore.spec import DIRS, StateTable
from datapath import record_words

PROTOCOLS = ("tcp", "sctp")
FORMATS = ("text", "markdown", "mermaid")
TITLES = {"tcp": "TCP", "sctp": "SCTP"}
LEGEND = (
    "IV: invalid, the packet loses its connection.\n"
    "IG: ignored, the packet passes and changes neither state nor timeout; what it said may be remembered, as the notes tell."
)
Row = Sequence[str]


def table_of(protocol: str) -> StateTable:
    return {"tcp": spec.tcp, "sctp": spec.sctp}[protocol]()


def states_page(protocols: Iterable[str], form: str) -> str:
    """The state tables of `protocols` and the timeouts, in one of FORMATS."""
    if form == "mermaid":
        return "\n".join(_mermaid(table_of(name)) for name in protocols)
    heading, table = _FORMS[form]
    parts = [heading(1, "Protocol states"), LEGEND + "\n"] if form == "markdown" else [LEGEND + "\n"]
    for name in protocols:
        parts += _protocol(name, heading, table)
    parts += [heading(2, "Timeouts"), table(("name", "seconds"), [(name, str(value)) for name, value in spec.timeouts().items()])]
    return "\n".join(parts)


def reasons_page(form: str) -> str:
    """Every reason code with its effect, its sentence and its rule, in text or markdown."""
    heading, table = _FORMS[form]
    rows = [(reason.name, reason.effect, reason.sentence, reason.rule) for reason in spec.reasons()]
    parts = [heading(1, "Reason codes")] if form == "markdown" else []
    return "\n".join([*parts, table(("reason", "effect", "what it says", "rule"), rows)])


def offload_page(form: str) -> str:
    """Every offload code with its sentence, in text or markdown."""
    heading, table = _FORMS[form]
    parts = [heading(1, "Offload codes")] if form == "markdown" else []
    return "\n".join([*parts, table(("offload", "what it says"), record_words.offload_rows())])


def _footnotes(table: StateTable) -> dict[str, int]:
    """Numbers of the notes in the order of the cells they stand at."""
    order: dict[str, int] = {}
    for _, note in sorted(table.notes.items(), key=lambda item: (item[0][2], item[0][0], item[0][1])):
        order.setdefault(note, len(order) + 1)
    return order


def _protocol(name: str, heading, table) -> list[str]:
    """One protocol: a table for each direction, then the reasons of the contested cells, then the states' traits."""
    data, numbers = table_of(name), _footnotes(table_of(name))
    codes = (*data.short, "IV", "IG")
    parts = []
    for d, direction in enumerate(DIRS):
        rows = []
        for s, state in enumerate(data.states):
            marks = (numbers.get(data.notes.get((d, e, s), ""), 0) for e in range(len(data.events)))
            rows.append((state, data.short[s], *(codes[data.cells[d][e][s]] + (f"~{n}" if n else "") for e, n in enumerate(marks))))
        parts += [heading(2, f"{TITLES[name]}, {direction} direction"), table(("state", "", *data.events), rows)]
    parts += [f"~{number} {note}\n" if table is _markdown_table else f"  ~{number:<3} {note}" for note, number in numbers.items()]
    traits = [(s, t, ", ".join(sorted(traits)) or "-") for s, t, traits in zip(data.states, data.timeouts, data.traits, strict=True)]
    return [*parts, heading(2, f"{TITLES[name]}, timeouts and traits of the states"), table(("state", "timeout", "traits"), traits)]


def _mermaid(table: StateTable) -> str:
    """A state diagram: an arrow for each change, with the packets that cause it (o: original, r: reply)."""
    arrows: dict[tuple[int, int], list[str]] = {}
    for s in range(len(table.states)):
        for d, letter in enumerate("or"):
            for e, event in enumerate(table.events):
                target = table.cells[d][e][s]
                if target < len(table.states) and target != s:
                    arrows.setdefault((s, target), []).append(f"{letter}:{event}")
    lines = ["stateDiagram-v2", "    [*] --> NONE"]
    lines += [f"    {table.states[a]} --> {table.states[b]} : {' '.join(labels)}" for (a, b), labels in arrows.items()]
    return "\n".join(lines) + "\n"


def _text_heading(level: int, title: str) -> str:
    return f"\n{title}\n"


def _markdown_heading(level: int, title: str) -> str:
    return "#" * level + f" {title}\n"


def _text_table(head: Row, rows: Sequence[Row]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    return "\n".join(lines) + "\n"


def _markdown_table(head: Row, rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


_FORMS = {"text": (_text_heading, _text_table), "markdown": (_markdown_heading, _markdown_table)}

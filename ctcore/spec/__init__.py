"""The protocol tables as text: parsed once, here, and used by engine, model, `ctmirror states`, docs and tests alike.

Not here: what is no cell of a table (guards); those are functions of the name given beside the table, in tcp.pyx and sctp.pyx.
Invariant: whatever loads has every cell filled with a known state and every ~n explained; anything else is a SpecError with file and line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pkgutil import get_data

from ctcore.errors import SpecError

TCP_EVENTS = ("syn", "synack", "fin", "ack", "rst", "none")
SCTP_EVENTS = (
    "init", "init_ack", "abort", "shutdown", "shutdown_ack", "error", "cookie_echo", "cookie_ack", "shutdown_complete",
    "heartbeat", "heartbeat_ack", "other",
)  # fmt: skip
DIRS = ("original", "reply")
# ICMP types that ask and answer each other, by protocol number. Every other type has no inverse, so it cannot belong to a connection.
ICMP_REQUESTS = {1: {8: 0, 13: 14, 15: 16, 17: 18}, 58: {128: 129, 139: 140}}
ICMP_INVERSE = {proto: {**pairs, **{reply: request for request, reply in pairs.items()}} for proto, pairs in ICMP_REQUESTS.items()}


@dataclass(frozen=True)
class StateTable:
    """One protocol's table. cells[dir][event][state] is a state's index, or `invalid` or `ignore`."""

    name: str
    states: tuple[str, ...]
    short: tuple[str, ...]
    events: tuple[str, ...]
    cells: tuple[tuple[tuple[int, ...], ...], ...]
    timeouts: tuple[str, ...]
    traits: tuple[frozenset[str], ...]
    notes: dict[tuple[int, int, int], str] = field(repr=False)

    @property
    def invalid(self) -> int:
        return len(self.states)

    @property
    def ignore(self) -> int:
        return len(self.states) + 1

    def cell(self, direction: int, event: str, state: str) -> str:
        """The new state's name, "invalid" or "ignore"."""
        return self.name_of(self.cells[direction][self.events.index(event)][self.states.index(state)])

    def name_of(self, code: int) -> str:
        return (*self.states, "invalid", "ignore")[code]


@dataclass(frozen=True)
class ReasonText:
    code: int
    name: str
    effect: str
    sentence: str
    rule: str


def _lines(name: str) -> list[tuple[int, str]]:
    text = (get_data(__name__, name) or b"").decode()  # importlib.resources takes a tenth of the start
    return [(n, line.rstrip()) for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]


def _footnotes(name: str, lines: list[tuple[int, str]]) -> dict[str, str]:
    notes: dict[str, str] = {}
    last = ""
    for number, line in lines:
        if line.startswith("~"):
            last, _, text = line.partition(" ")
            notes[last] = text.strip()
        elif last and line.startswith(" "):
            notes[last] += " " + line.strip()
        elif last:
            raise SpecError(f"{name}:{number}: expected a footnote (~n text) after the table, found '{line[:30]}'")
    return notes


def _split_row(name: str, number: int, line: str, halves: int, width: int) -> tuple[list[str], list[list[str]], list[str]]:
    """Head (name, short), `halves` lists of `width` cells each, tail (timeout, traits or nothing)."""
    parts = [part.replace("original:", "").split() for part in line.replace("reply:", "").split("|")]
    head, cells, tail = parts[0], parts[1 : 1 + halves], (parts[1 + halves] if len(parts) > 1 + halves else [])
    if len(head) != 2 or len(cells) != halves or any(len(row) != width for row in cells):
        raise SpecError(f"{name}:{number}: expected 'STATE XX | {halves} x {width} cells | timeout traits', found '{line[:40]}'")
    return head, cells, tail


def _build(name: str, rows: list[tuple[int, list[str], list[list[str]], list[str]]], events: tuple[str, ...], notes: dict[str, str]) -> StateTable:
    """Rows hold both directions of a state each."""
    states = tuple(head[0] for _, head, _, _ in rows)
    short = tuple(head[1] for _, head, _, _ in rows)
    codes = {code: i for i, code in enumerate((*short, "IV", "IG"))}
    cells = [[[0] * len(states) for _ in events] for _ in DIRS]
    cell_notes = {}
    for s, (number, _, halves, _) in enumerate(rows):
        for d, half in enumerate(halves):
            for e, cell in enumerate(half):
                code, mark, note = cell.partition("~")
                if code not in codes or (mark and "~" + note not in notes):
                    raise SpecError(f"{name}:{number}: '{cell}': expected one of {' '.join(codes)}, with a footnote that exists")
                cells[d][e][s] = codes[code]
                if mark:
                    cell_notes[d, e, s] = notes["~" + note]
    return StateTable(
        name=name.partition(".")[0],
        states=states,
        short=short,
        events=events,
        cells=tuple(tuple(tuple(row) for row in half) for half in cells),
        timeouts=tuple(tail[0] for *_, tail in rows),
        traits=tuple(frozenset(tail[1:]) - {"-"} for *_, tail in rows),
        notes=cell_notes,
    )


@cache
def tcp() -> StateTable:
    """The TCP table of spec/tcp.txt."""
    name = "tcp.txt"
    lines = _lines(name)
    rows = [(n, *_split_row(name, n, line, 2, len(TCP_EVENTS))) for n, line in lines if "|" in line]
    return _build(name, rows, TCP_EVENTS, _footnotes(name, [x for x in lines if "|" not in x[1]]))


@cache
def sctp() -> StateTable:
    """The SCTP table of spec/sctp.txt, with the event "other" added: chunks that leave every state as it is."""
    name = "sctp.txt"
    lines = _lines(name)
    halves = [(n, *_split_row(name, n, line, 1, len(SCTP_EVENTS) - 1)) for n, line in lines if "|" in line]
    half = len(halves) // 2
    rows = []
    for (n, head, orig, tail), (m, head2, reply, _) in zip(halves[:half], halves[half:], strict=True):
        if head != head2:
            raise SpecError(f"{name}:{m}: expected the state {head[0]} as in the original half, found {head2[0]}")
        rows.append((n, head, [orig[0] + [head[1]], reply[0] + [head[1]]], tail))
    return _build(name, rows, SCTP_EVENTS, _footnotes(name, [x for x in lines if "|" not in x[1]]))


@cache
def timeouts() -> dict[str, int]:
    """Default timeouts in seconds by sysctl name without `nf_conntrack_`."""
    result = {}
    for number, line in _lines("timeouts.txt"):
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit():
            raise SpecError(f"timeouts.txt:{number}: expected 'name seconds', found '{line[:40]}'")
        result[fields[0]] = int(fields[1])
    return result


@cache
def reasons() -> tuple[ReasonText, ...]:
    """Every reason code with its effect, its sentence and its rule; the index is the code."""
    result: list[ReasonText] = []
    for number, line in _lines("reasons.txt"):
        fields = [part.strip() for part in line.split("|")]
        if len(fields) != 4 or not all(fields):
            raise SpecError(f"reasons.txt:{number}: expected 'code | effect | sentence | rule', found '{line[:40]}'")
        result.append(ReasonText(len(result), *fields))
    return tuple(result)

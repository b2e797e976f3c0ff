"""The printed tables are those of ctcore.spec."""

from __future__ import annotations

import re

import pytest

from ctcore import spec
from ctcore.reasons import REASONS
from datapath import states
from datapath.cli import main


def cells(page, heading):
    """The rows of the Markdown table under a heading, by their first cell."""
    part = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


@pytest.mark.parametrize("name", states.PROTOCOLS)
@pytest.mark.parametrize(("d", "direction"), list(enumerate(spec.DIRS)))
def test_every_cell_is_printed(name, d, direction):
    table = states.table_of(name)
    printed = cells(states.states_page([name], "markdown"), f"{states.TITLES[name]}, {direction} direction")
    codes = (*table.short, "IV", "IG")
    for s, state in enumerate(table.states):
        for e, event in enumerate(table.events):
            code, _, note = printed[state][event].partition("~")
            assert code == codes[table.cells[d][e][s]]
            assert bool(note) == ((d, e, s) in table.notes)


@pytest.mark.parametrize("name", states.PROTOCOLS)
@pytest.mark.parametrize("form", ["text", "markdown"])
def test_every_note_is_printed_under_the_number_its_cells_bear(name, form):
    table, page = states.table_of(name), states.states_page([name], form)
    printed = dict(re.findall(r"^ *~(\d+) +(.*)$", page, re.MULTILINE))
    assert set(printed.values()) == set(table.notes.values())
    used = set(re.findall(r"\b[A-Z0-9]{2}~(\d+)", page))
    assert used == set(printed)


def test_timeouts_are_printed():
    assert cells(states.states_page(["tcp"], "markdown"), "Timeouts")["udp_timeout_stream"]["seconds"] == "120"


def test_every_reason_is_printed():
    page = states.reasons_page("text").splitlines()
    assert [line.split()[0] for line in page[1:]] == [reason.name for reason in REASONS]
    assert all(reason.sentence in line and reason.rule in line for reason, line in zip(REASONS, page[1:], strict=True))


def test_the_diagram_has_an_arrow_for_each_change_and_no_other():
    table = spec.tcp()
    arrows = set(re.findall(r"^    (\w+) --> (\w+) :", states.states_page(["tcp"], "mermaid"), re.MULTILINE))
    changes = {
        (table.states[s], table.states[half[e][s]])
        for half in table.cells
        for e in range(len(table.events))
        for s in range(len(table.states))
        if half[e][s] < len(table.states) and half[e][s] != s
    }
    assert arrows == changes


def test_one_protocol_alone(capfd):
    assert main(["states", "sctp"]) == 0
    out = capfd.readouterr().out
    assert "COOKIE_WAIT" in out
    assert "SYN_SENT2" not in out

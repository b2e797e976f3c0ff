"""The protocol tables as text: what is there is complete, and what is broken is refused with file and line."""

from __future__ import annotations

from importlib.resources import files

import pytest

from ctcore import reasons, spec
from ctcore.errors import SpecError
from ctcore.types import Reason, SctpState, TcpState
from pcap_tests.test_ctcore import expected_tables

EFFECTS = {"ok", "not-seen", "dropped", "held", "invalid", "untracked", "ignored", "note"}
LOADERS = {"tcp.txt": spec.tcp, "sctp.txt": spec.sctp, "timeouts.txt": spec.timeouts, "reasons.txt": spec.reasons}


def text_of(name: str) -> str:
    return files("ctcore.spec").joinpath(name).read_text(encoding="utf-8")


def load(monkeypatch, tmp_path, name: str, text: str):
    """Parse a text as if it were the one of that name."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(spec, "get_data", lambda _, wanted: (tmp_path / wanted).read_bytes())
    return LOADERS[name].__wrapped__()


# --- what is there ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "states", "events"), [(spec.tcp(), 10, spec.TCP_EVENTS), (spec.sctp(), 9, spec.SCTP_EVENTS)], ids=["tcp", "sctp"])
def test_every_cell_is_filled(table, states, events):
    assert len(table.states) == len(set(table.states)) == len(set(table.short)) == states
    assert table.events == events
    assert [[len(row) for row in half] for half in table.cells] == [[states] * len(events)] * 2
    assert all(0 <= cell <= table.ignore for half in table.cells for row in half for cell in row)
    assert {table.name_of(cell) for half in table.cells for row in half for cell in row} <= {*table.states, "invalid", "ignore"}


def test_states_are_in_the_order_of_the_enums():
    tcp = [TcpState(i).name.removeprefix("TCP_") for i in range(10)]
    sctp = [SctpState(i).name.removeprefix("SCTP_") for i in range(9)]
    assert tcp == list(spec.tcp().states)
    assert sctp == list(spec.sctp().states)


def test_every_reason_of_a_cell_says_something():
    for table in (spec.tcp(), spec.sctp()):
        assert table.notes
        for (d, event, state), note in table.notes.items():
            assert len(note) > 20, (spec.DIRS[d], table.events[event], table.states[state])


def test_every_state_has_a_timeout_and_a_trait_but_none():
    for table, prefix in ((spec.tcp(), "tcp_timeout_"), (spec.sctp(), "sctp_timeout_")):
        assert table.timeouts[0] == "-"
        for name, traits in zip(table.timeouts[1:], table.traits[1:], strict=True):
            assert name.isdigit() or prefix + name in spec.timeouts()
            assert traits


@pytest.mark.parametrize(("table", "expected"), [(spec.tcp(), expected_tables.TCP), (spec.sctp(), expected_tables.SCTP)], ids=["tcp", "sctp"])
def test_every_cell_is_linuxs(table, expected):
    assert {(d, event, state): table.cell(d, event, state) for d in range(2) for event in table.events for state in table.states} == expected


def test_reasons():
    names = [reason.name for reason in spec.reasons()]
    assert len(names) == len(set(names)) == Reason.N_REASONS
    assert {reason.effect for reason in spec.reasons()} == EFFECTS
    assert [reason.code for reason in spec.reasons()] == list(range(len(names)))
    assert all(reason.sentence and reason.rule for reason in spec.reasons())
    assert names.index("tcp_state") == Reason.R_TCP_STATE
    assert tuple(names) == reasons.NAMES


def test_every_timeout_is_linuxs():
    assert dict(spec.timeouts()) == expected_tables.TIMEOUTS
    for table in (spec.tcp(), spec.sctp()):
        own = {"NONE": "-", "SYN_SENT2": str(expected_tables.SYN_SENT2_SECONDS)}
        assert list(table.timeouts) == [own.get(state, state.lower()) for state in table.states]


# --- what is broken --------------------------------------------------------------------------------------------------------------------

BROKEN = [
    ("tcp.txt", "SYN_SENT    SS      |           SS~3", "SYN_SENT    SS      |           XX"),  # a state that does not exist
    ("tcp.txt", "S2~4", "S2~99"),  # a note that does not exist
    ("tcp.txt", "LAST_ACK    LA      |           IG~12  IV ", "LAST_ACK    LA      |           IG~12 "),  # a cell too few
    ("tcp.txt", "CLOSE       CL ", "CLOSE "),
    ("tcp.txt", "~9   a client", "a client"),  # neither row nor note
    ("sctp.txt", "COOKIE_WAIT       CW | CW     CW  ", "COOKIE_WAIT       CW | CW     CW  CW "),
    ("sctp.txt", "HEARTBEAT_SENT    HS | IV ", "HEARTBEAT_LOST    HS | IV "),  # the halves differ
    ("timeouts.txt", "udp_timeout                     30", "udp_timeout                     soon"),
    ("timeouts.txt", "udp_timeout                     30", "udp_timeout"),
    ("reasons.txt", "| invalid   | bad TCP checksum | RFC 9293 3.1", "| invalid   | bad TCP checksum"),
    ("reasons.txt", "| invalid   | bad TCP checksum |", "| invalid   | |"),
]


@pytest.mark.parametrize(("name", "good", "bad"), BROKEN)
def test_a_broken_text_is_refused_with_file_and_line(monkeypatch, tmp_path, name, good, bad):
    text = text_of(name)
    assert text.count(good) >= 1, "this test has to follow the text"
    line = text[: text.index(good)].count("\n") + 1
    with pytest.raises(SpecError, match=rf"^{name}:\d+: .*expected") as caught:
        load(monkeypatch, tmp_path, name, text.replace(good, bad, 1))
    assert "\n" not in str(caught.value)
    assert int(str(caught.value).split(":")[1]) == line


@pytest.mark.parametrize("name", LOADERS)
def test_the_texts_load_from_anywhere(monkeypatch, tmp_path, name):
    assert load(monkeypatch, tmp_path, name, text_of(name)) == LOADERS[name]()

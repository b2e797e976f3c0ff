"""Every cell of the state tables, by the running kernel.

For each (state, event, direction) of TCP and SCTP, and each way to it that guards tell apart, there is a script (pcap_tests.fuzz_kernel.cells);
engine and kernel agree on each packet of each, in every variable of the connection. And a table with any cell broken is found out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from itertools import combinations

import pytest

from ctcore import spec
from ctcore.config import Config
from ctcore.reasons import NAMES
from datapath.scenario.steps import Sctp, Tcp
from pcap_tests.fuzz_kernel.cells import PROTOCOLS, SCTP, TCP, Cell, Protocol, Search, packet
from pcap_tests.fuzz_kernel.draft import Settings
from pcap_tests.fuzz_kernel.judge import Judge

LONGEST = 9  # packets; the search ends long before
FEW = 4  # scripts to a cell
STATES = {
    "tcp": ("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"),
    "sctp": (
        "NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT", "SHUTDOWN_RECD", "SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT",
    ),
}  # fmt: skip
# The cells that no packet reaches, written out; Protocol.unreachable() has the proofs, which are tested below.
UNREACHABLE = {
    "tcp": {
        *(Cell(state, "none", d) for state in STATES["tcp"] for d in ("original", "reply")),
        *(Cell("NONE", event, "reply") for event in ("syn", "synack", "fin", "ack", "rst")),
    },
    "sctp": {
        *(Cell("NONE", event, "reply") for event in spec.SCTP_EVENTS),
        *(Cell("NONE", event, "original") for event in ("abort", "cookie_ack", "shutdown_complete")),
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=PROTOCOLS)
def search(request) -> Search:
    return Search(PROTOCOLS[request.param]).run(LONGEST)


@pytest.fixture(scope="module")
def judge(running_kernel) -> Iterator[Judge]:
    with Judge(Settings(Config())) as judge:
        yield judge


def test_each_cell_is_reached_or_cannot_be(search):
    protocol = search.protocol
    assert protocol.table.states == STATES[protocol.table.name]
    assert protocol.cells() - set(search.cells) == UNREACHABLE[protocol.table.name] == set(protocol.unreachable())
    assert len(search.cells) == {"tcp": 95, "sctp": 201}[protocol.table.name]


def test_no_packet_leaves_a_connection_in_state_none(search):
    """So the row NONE is for the first packet only, whose direction is the original one by definition."""
    assert all(memory[0] != 0 for memory, *_ in search.ways if memory is not None)
    assert {direction for memory, _, direction, _ in search.ways if memory is None} == {0}


def reason_of(search: Search, l4: Tcp | Sctp, *before: Tcp | Sctp) -> str:
    draft = search.replay(())
    for earlier in before:
        draft.send(packet(0, earlier))
    return NAMES[int(draft.send(packet(0, l4))["reason"])]


def test_flags_without_syn_fin_ack_and_rst_are_refused_before_the_table():
    search = Search(TCP)
    for count in range(5):
        for letters in combinations("PUEC", count):
            for before in ((), (Tcp("S", 100),)):
                assert reason_of(search, Tcp("".join(letters), 101), *before) == "tcp_flags"


@pytest.mark.parametrize("event", sorted(SCTP.never_opens))
def test_no_association_begins_with(event):
    search = Search(SCTP)
    for l4 in SCTP.alphabet(None, 0, 0, event):
        assert reason_of(search, l4) == "sctp_not_opening"


def test_kernel_and_engine_agree_on_every_way_to_every_cell(judge, search):
    """Thousands of scripts: for each memory that guards tell apart, each event from either side, with fitting numbers and such that do not fit."""
    scripts = list(search.ways.values())
    for way, script, found in zip(search.ways, scripts, judge.judge_apart(scripts), strict=True):
        assert not found, (way, script, found)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_any_broken_cell_is_found_out(judge, protocol, monkeypatch):
    for cell, scripts in sorted(Search(protocol).run(LONGEST).cells.items()):
        table = broken(protocol, cell)
        with monkeypatch.context() as patch:
            patch.setattr(spec, protocol.table.name, partial(lambda table: table, table))
            assert any(judge.judge(script).differences for script in scripts[:FEW]), f"{cell} is broken, and nobody sees it"
    assert not any(judge.judge_apart([scripts[0] for scripts in Search(protocol).run(LONGEST).cells.values()]))


def broken(protocol: Protocol, cell: Cell) -> spec.StateTable:
    """The table with one cell wrong: what was valid is invalid, and the other way round; what does not open an association does."""
    table, (d, e, s) = protocol.table, cell.numbers(protocol.table)
    value = table.cells[d][e][s]
    cells = [[list(row) for row in half] for half in table.cells]
    cells[d][e][s] = table.states.index("CLOSE" if protocol is TCP else "CLOSED") if value in (0, table.invalid) else table.invalid
    return dataclasses.replace(table, cells=tuple(tuple(map(tuple, half)) for half in cells))

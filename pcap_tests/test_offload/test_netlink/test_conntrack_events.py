"""What others do to the running kernel's connections is heard, and what our own socket does is not; in a namespace of its own.

Needs root and nf_conntrack_netlink; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ctcore.ctnetlink import Ask
from ctcore.types import Status, TcpState
from datapath.oracle.namespace import Namespace
from offload.netlink.conntrack import SETTINGS, KernelConntrack
from offload.netlink.conntrack_events import ConntrackEvents
from pcap_tests.test_offload.test_netlink.test_kernel_offered import conns


@pytest.fixture
def place(running_kernel) -> Iterator[tuple[KernelConntrack, KernelConntrack, ConntrackEvents]]:
    """Our socket, somebody else's, and who listens."""
    namespace = Namespace()
    with namespace.entered(), KernelConntrack() as ours, KernelConntrack() as theirs, ConntrackEvents(ours.channel.socket, 250) as events:
        yield ours, theirs, events
    namespace.close()


def heard(events: ConntrackEvents) -> list[tuple[bool, int, int]]:
    """Whether destroyed, source port, TCP state."""
    return [
        (destroyed, int(row["flow"][0]["key"]["sport"]), int(row["tcp"]["state"])) for destroyed, rows, _ in events.events() for row in rows
    ]  # fmt: skip


def test_others_are_heard_and_we_are_not(place):
    ours, theirs, events = place
    rows = conns(3)
    for ask in (Ask.CREATE, Ask.CHANGE, Ask.DELETE):
        ours.ask(rows, ask)
    assert heard(events) == []
    ours.ask(rows, Ask.CREATE)
    rows["tcp"]["state"] = TcpState.FIN_WAIT
    theirs.ask(rows[:1], Ask.CHANGE)
    theirs.ask(rows[1:], Ask.DELETE)
    assert heard(events) == [(False, 1024, TcpState.FIN_WAIT), (True, 1025, TcpState.TCP_ESTABLISHED), (True, 1026, TcpState.TCP_ESTABLISHED)]
    assert not events.overrun


def test_the_last_ones_of_a_connection_have_its_status(place):
    ours, theirs, events = place
    ours.ask(conns(1), Ask.CREATE)
    theirs.ask(conns(1), Ask.DELETE)
    ((destroyed, _, (status,)),) = events.events()
    assert destroyed and status & Status.DYING and status & Status.ASSURED


def test_what_did_not_fit_is_an_overrun(place):
    ours, theirs, events = place
    events.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    ours.ask(conns(500), Ask.CREATE)
    theirs.ask(conns(500), Ask.DELETE)
    assert 0 < len(heard(events)) < 500 and events.overrun


def test_many_are_read_in_pieces(place, monkeypatch):
    monkeypatch.setattr("offload.netlink.listener.MOST", 10)
    ours, theirs, events = place
    ours.ask(conns(25), Ask.CREATE)
    theirs.ask(conns(25), Ask.DELETE)
    assert [len(heard(events)) for _ in range(4)] == [10, 10, 5, 0]


def test_whether_the_kernel_tells_any(place):
    _, _, events = place
    assert events.told
    (SETTINGS / "nf_conntrack_events").write_text("0")
    assert not events.told

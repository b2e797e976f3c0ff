"""Connections counted as they end, whatever batches they came in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.types import CONN_DTYPE, End, Proto, Status, TcpState
from datapath.tally import HOW, Tally
from pcap_tests.conftest import examples

SECOND = 10**9


def conn(ordinal=0, proto=Proto.PROTO_TCP, state=TcpState.TCP_ESTABLISHED, size=100, status=Status.SEEN_REPLY, timeout=0, start=0):
    row = np.zeros(1, CONN_DTYPE)
    row["flow"]["key"]["proto"] = proto
    row["flow"]["id"] = ordinal
    row["flow"]["bytes"][:, 0] = size
    if proto == Proto.PROTO_TCP:
        row["tcp"]["state"] = state
    row["status"], row["timeout"], row["start"] = status, timeout, start
    return row


def tally_of(rows, end=End.ALIVE, time=0, keep=5):
    tally = Tally(Config(), keep)
    for row in rows:
        tally.add(row, np.array([end], np.uint8), np.array([time], np.int64))
    return tally


@pytest.mark.parametrize(
    ("state", "end", "how"),
    [
        (TcpState.TIME_WAIT, End.END_TIMEOUT, "fin"),
        (TcpState.TIME_WAIT, End.ALIVE, "alive"),
        (TcpState.LAST_ACK, End.END_TIMEOUT, "fin"),
        (TcpState.CLOSE, End.END_TIMEOUT, "rst"),
        (TcpState.CLOSE, End.ALIVE, "alive"),
        (TcpState.SYN_SENT, End.END_RESET, "reset"),
        (TcpState.SYN_SENT, End.END_TIMEOUT, "timeout"),
        (TcpState.TCP_ESTABLISHED, End.END_TIMEOUT, "timeout"),
        (TcpState.TCP_ESTABLISHED, End.ALIVE, "alive"),
        (TcpState.TIME_WAIT, End.END_EVICTED, "evicted"),
        (TcpState.TIME_WAIT, End.END_REPLACED, "replaced"),
        (TcpState.TCP_ESTABLISHED, End.END_FLUSHED, "flushed"),
    ],
)
def test_how_a_tcp_connection_ended(state, end, how):
    assert tally_of([conn(state=state)], end).by_protocol() == [(6, 1, {how: 1})]


def test_only_tcp_is_told_by_its_state():
    row = conn(proto=Proto.PROTO_UDP)
    row["stream_ts"] = 0x08080808  # lies where TCP keeps its state
    assert tally_of([row], End.END_TIMEOUT).by_protocol() == [(17, 1, {"timeout": 1})]


def test_protocols_come_the_most_frequent_first():
    rows = [conn(i, proto=proto) for i, proto in enumerate((1, 17, 17, 6, 6, 6))]
    assert [(proto, n) for proto, n, _ in tally_of(rows).by_protocol()] == [(6, 3), (17, 2), (1, 1)]


def test_tcp_without_reply_is_counted():
    assert tally_of([conn(status=0), conn(status=Status.SEEN_REPLY), conn(proto=17, status=0)]).tcp_unreplied == 1


def test_a_duration_ends_with_the_last_packet_not_with_the_timeout():
    row = conn(state=TcpState.TIME_WAIT, timeout=0, start=10 * SECOND)
    assert tally_of([row], End.END_TIMEOUT, time=(10 + 5 + 120) * SECOND).largest()[0].stop == 15 * SECOND


def test_a_shortened_timeout_is_recognised():
    row = conn(state=TcpState.TCP_ESTABLISHED, timeout=300 * 250 - 250, start=10 * SECOND)
    assert tally_of([row], time=20 * SECOND).largest()[0].stop == 19 * SECOND


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 5), st.integers(1, 7))
def test_batches_do_not_matter(sizes, keep, batch):
    """The largest are the largest by size, the earlier of equals, in whatever batches they came."""
    rows = [conn(i, size=size) for i, size in enumerate(sizes)]
    tally = Tally(Config(), keep)
    for at in range(0, len(rows), batch):
        part = np.concatenate(rows[at : at + batch])
        tally.add(part, np.zeros(len(part), np.uint8), np.zeros(len(part), np.int64))
    expected = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: (-sizes[i], i))[:keep]
    assert [int(one.conn["flow"][0]["id"]) for one in tally.largest()] == expected
    assert int(tally.counts.sum()) == len(sizes)


def test_how_names_every_column():
    assert Tally(Config()).counts.shape == (256, len(HOW))

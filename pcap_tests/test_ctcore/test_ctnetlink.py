"""Connections as ctnetlink writes them. That the kernel takes what is written, test_kernel_conntrack proves; here, that anything can be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.ctnetlink import Odd, attribute, attributes, helper_of, nested, row_of, state_of, tuples_of
from ctcore.tracker import Tracker
from ctcore.types import CONN_DTYPE, Status
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch

A, B, A6, B6 = "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"
FRAMES = [
    craft.tcp(A, B, 1000, 80, "S"), craft.udp(A6, B6, 1000, 53), craft.icmp(A, B, 8, 0, ident=7), craft.icmp(A6, B6, 128, 0, ident=7),
    craft.sctp(A, B, 5, 6, 0, craft.sctp_init(7)), craft.gre(A, B, version=0, proto=0x880B, call=0), craft.frame(A, B, 89, b"ospf"),
]  # fmt: skip


def conns(zone: int = 0, zone_dir: str = "both") -> np.ndarray:
    tracker = Tracker(Config(max=100, zone_dir=zone_dir))
    tracker.advance(parse_batch(*frames_of(FRAMES, ts=np.full(len(FRAMES), 10**18, dtype=np.int64)), zone=zone))
    for conn in tracker.conns():
        tracker.set_mark(int(conn["flow"][0]["id"]), 0x1000 + int(conn["flow"][0]["id"]))
        tracker.set_label(int(conn["flow"][0]["id"]), 1 << 127 | 1)
    assert tracker.count == len(FRAMES)
    return tracker.conns()


@pytest.mark.parametrize("zone, zone_dir", [(0, "both"), (9, "both"), (9, "original"), (9, "reply")])
def test_there_and_back(zone, zone_dir):
    for conn in conns(zone, zone_dir):
        back = row_of(tuples_of(conn) + state_of(conn, 250), 250)[0]
        assert [back["flow"][d]["key"] for d in range(2)] == [conn["flow"][d]["key"] for d in range(2)]
        for name in ("mark", "label"):
            assert np.array_equal(back[name], conn[name])
        assert abs(int(back["timeout"]) - int(conn["timeout"])) < 250
        assert back["tcp"]["state"] == conn["tcp"]["state"] if conn["flow"][0]["key"]["proto"] in (6, 132) else True


def test_a_helper_goes_by_its_name():
    conn = conns()[0]
    conn["helper"] = 1
    assert row_of(tuples_of(conn) + helper_of(conn), 250)[0]["helper"] == 1
    assert row_of(tuples_of(conn) + nested(5, attribute(1, b"amanda\0")), 250)[0]["helper"] == 0


@pytest.mark.parametrize(
    "data, why",
    [
        (b"", "without addresses"),
        (tuples_of(conns()[0])[:40], "without addresses"),
        (tuples_of(conns()[0]) + attribute(7, b"\0\0"), "an attribute of an unexpected size"),
        (tuples_of(conns()[0]) + attribute(3, int(Status.DYING).to_bytes(4, "big")), "dying"),
    ],
)
def test_what_is_odd(data, why):
    with pytest.raises(Odd) as error:
        row_of(data, 250)
    assert str(error.value) == why


WHOLE = b"".join(tuples_of(conn) + state_of(conn, 250) for conn in conns()[:1])


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=5), st.integers(0, len(WHOLE)))
def test_whatever_a_message_holds_a_tracker_is_safe(changes, end):
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    try:
        row = row_of(bytes(data[:end]), 250)
    except Odd:
        return
    assert row.dtype == CONN_DTYPE
    tracker = Tracker(Config(max=10, nat_actions=True))
    taken, out = tracker.adopt(row)
    assert taken + sum(out.values()) == 1 and tracker.count == taken
    tracker.check()


@given(st.binary(max_size=60))
def test_any_bytes_are_attributes(data):
    assert all(len(value) <= len(data) for value in attributes(data).values())

"""Connections of the kernel's list are, row by row, those that the readable twin reads; and what it leaves out is left out for the same reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore import ctnetlink
from ctcore.ctnetlink import Ask, Odd, attribute, nested
from ctcore.ctnetlink_read import UNCOUNTED, rows_of
from ctcore.nat_rules import HELPERS
from ctcore.types import CONN_DTYPE, Status
from pcap_tests.test_ctcore.test_ctnetlink import conns
from pcap_tests.test_ctcore.test_ctnetlink_pack import rows

COUNTED = nested(9, attribute(1, (7).to_bytes(8, "big")), attribute(2, (700).to_bytes(8, "big"))) + nested(10, attribute(1, bytes(8)))
STAMP = nested(20, attribute(1, (10**18).to_bytes(8, "big")))
WHOLE = [ctnetlink.request(conn, 250, Ask.CREATE)[20:] + COUNTED + STAMP for conn in conns(zone=9)]


def same(messages: list[bytes], hz: int = 250) -> None:
    """What both readers make of messages."""
    expected, status, why = [], [], {}
    for message in messages:
        try:
            expected.append(ctnetlink.row_of(message, hz)[0].tobytes())
            top = ctnetlink.attributes(message)
            status.append(ctnetlink.number(top, ctnetlink.STATUS, 4) & ~UNCOUNTED | (0 if ctnetlink.COUNTERS[0] in top else UNCOUNTED))
        except Odd as error:
            why[str(error)] = why.get(str(error), 0) + 1
    found, told, out = rows_of(messages, hz)
    assert found.dtype == CONN_DTYPE and found.flags.c_contiguous
    assert [row.tobytes() for row in found] == expected
    assert told.tolist() == status and out == why


@given(rows(), st.sampled_from([100, 250, 1000]))
def test_equal_to_the_twin(row, hz):
    same([ctnetlink.request(row[0], hz, Ask.CREATE)[20:] + COUNTED + STAMP], hz)


def test_many_at_once():
    same(WHOLE * 3)
    same([])
    found, _, _ = rows_of(WHOLE, 250)
    assert found["flow"][:, 0]["packets"].tolist() == [7] * len(WHOLE) and (found["start"] == 10**18).all()


@given(
    st.lists(st.tuples(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4), st.integers(0, 300)))
)
def test_damaged_messages_are_left_out_for_the_same_reason(damaged):
    messages = []
    for whole, changes, cut in damaged:
        data = bytearray(whole)
        for at, value in changes:
            data[at % len(data)] = value
        messages.append(bytes(data[: max(0, len(data) - max(0, cut - 150))]))
    same(messages)


@given(st.lists(st.binary(max_size=120)))
def test_any_bytes(messages):
    same(messages)


@pytest.mark.parametrize("name", [*(name.encode() for name in HELPERS), b"amanda", b"", b"ftp\0\0", b"ft", b"ftpx"])
def test_helpers_go_by_their_names(name):
    same([WHOLE[0] + nested(5, attribute(1, name + b"\0"))])


def test_offloaded_ones_say_so():
    status = 1 << 14 | int(Status.ASSURED)
    _, told, _ = rows_of([WHOLE[0] + attribute(3, status.to_bytes(4, "big"))], 250)
    assert told.tolist() == [status]


def test_rows_can_be_adopted():
    found, _, out = rows_of([*WHOLE, b"", WHOLE[0] + attribute(3, int(Status.DYING).to_bytes(4, "big"))], 250)
    assert len(found) == len(WHOLE) and out == {"without addresses": 1, "dying": 1}
    assert np.array_equal(found["mark"], conns(zone=9)["mark"])


def test_those_that_die_are_read_where_their_end_is_what_is_told():
    dying = WHOLE[0] + attribute(3, int(Status.DYING | Status.ASSURED).to_bytes(4, "big"))
    found, status, out = rows_of([dying], 250, True)
    assert found["flow"][:, 0]["packets"].tolist() == [7] and status.tolist() == [int(Status.DYING | Status.ASSURED)] and out == {}


def test_without_counters_that_is_said():
    """Nought packets are another thing."""
    bare = WHOLE[0][: -len(COUNTED + STAMP)]
    _, status, _ = rows_of([WHOLE[0], bare], 250)
    assert [bool(bits & UNCOUNTED) for bits in status.tolist()] == [False, True]


def test_ticks_have_to_be_some():
    with pytest.raises(ValueError, match="hz = 0: expected 1 to 1000000"):
        rows_of([], 0)

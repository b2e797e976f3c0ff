"""Requests for many connections are, byte by byte, those that the readable twin writes for each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore import ctnetlink
from ctcore.ctnetlink import Ask
from ctcore.ctnetlink_pack import requests
from ctcore.nat_rules import HELPERS
from ctcore.types import CONN_DTYPE, Status
from pcap_tests.test_ctcore.test_ctnetlink import conns

U16, U32, U64 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1)


@st.composite
def rows(draw) -> np.ndarray:
    """A connection of which nothing but the shape is sure; IPv4 addresses are followed by zeros, as everywhere."""
    row = np.zeros(1, dtype=CONN_DTYPE)
    conn = row[0]
    family, proto = draw(st.sampled_from([4, 6])), draw(st.sampled_from([6, 17, 132, 1, 58, 47, 89]))
    zones = draw(st.tuples(U16, U16) | U16.map(lambda zone: (zone, zone)))
    for d in range(2):
        key = conn["flow"][d]["key"]
        for half in ("src", "dst"):
            address = draw(st.binary(min_size=4 if family == 4 else 16, max_size=4 if family == 4 else 16))
            key[half][: len(address)] = np.frombuffer(address, np.uint8)
        key["sport"], key["dport"], key["zone"], key["family"], key["proto"] = draw(U16), draw(U16), zones[d], family, proto
    conn["status"] = draw(U16)
    conn["timeout"], conn["mark"] = draw(st.integers(0, (1 << 31) - 1)), draw(U32)
    conn["label"] = draw(st.just((0, 0)) | st.tuples(U64, U64))
    if proto == 6:
        conn["tcp"]["state"], conn["tcp"]["scale"], conn["tcp"]["flags"] = draw(st.integers(0, 11)), (draw(U16) & 15, 3), (draw(U16) & 0xFF, 0x0F)
    if proto == 132:
        conn["sctp"]["state"], conn["sctp"]["vtag"] = draw(st.integers(0, 8)), (draw(U32), draw(U32))
    conn["helper"] = draw(st.integers(0, len(HELPERS)))
    return row


@given(rows(), st.sampled_from(Ask), st.booleans(), st.sampled_from([100, 250, 1000]))
def test_equal_to_the_twin(row, ask, helper, hz):
    assert requests(row, hz, ask, helper) == [ctnetlink.request(row[0], hz, ask, helper)]


@pytest.mark.parametrize("ask", Ask)
def test_many_at_once(ask):
    many = conns(zone=9)
    assert requests(many, 250, ask) == [ctnetlink.request(conn, 250, ask) for conn in many]
    assert requests(many[::2], 250, ask) == [ctnetlink.request(conn, 250, ask) for conn in many[::2]]
    assert requests(many[:0], 250, ask) == []


def test_a_new_entry_has_its_translation_and_a_changed_one_has_not():
    row = conns()[:1].copy()
    row["status"] |= int(Status.SRC_NAT | Status.DST_NAT)
    new, changed = (ctnetlink.attributes(requests(row, 250, ask)[0][20:]) for ask in (Ask.CREATE, Ask.CHANGE))
    assert {ctnetlink.NAT_SRC, ctnetlink.NAT_DST} <= new.keys()
    assert not {ctnetlink.NAT_SRC, ctnetlink.NAT_DST} & changed.keys()


@pytest.mark.parametrize("ask", [Ask.DELETE, Ask.GET])
def test_what_is_removed_goes_by_its_tuple_and_zone(ask):
    told = ctnetlink.attributes(requests(conns(zone=9)[:1], 250, ask)[0][20:])
    assert told.keys() == {ctnetlink.TUPLE[0], ctnetlink.ZONE} and told[ctnetlink.ZONE] == b"\0\x09"


def test_tcp_is_liberal():
    told = ctnetlink.attributes(requests(conns()[:1], 250, Ask.CREATE)[0][20:])
    tcp = ctnetlink.attributes(ctnetlink.attributes(told[ctnetlink.PROTOINFO])[ctnetlink.TCP])
    assert [tcp[ctnetlink.TCP_FLAGS[d]][0] & tcp[ctnetlink.TCP_FLAGS[d]][1] & ctnetlink.LIBERAL for d in range(2)] == [ctnetlink.LIBERAL] * 2


@pytest.mark.parametrize(
    ("given", "hz", "said"),
    [(np.zeros(3), 250, "expected a row of CONN_DTYPE"), (conns(), 0, "hz = 0: expected 1 to 1000000")],
)
def test_what_cannot_be_written_is_said(given, hz, said):
    with pytest.raises(ValueError, match=said):
        requests(given, hz, Ask.CREATE)

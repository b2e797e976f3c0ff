"""The comparison: every field there is makes a difference of its name, and timeouts have no more slack than the clock took."""

from __future__ import annotations

import numpy as np
import pytest

from ctcore.types import CONN_DTYPE, DECISION_DTYPE, FLOW_DTYPE, KEY_DTYPE, SCTP_DTYPE, TCP_DTYPE, Proto
from datapath import craft
from datapath.oracle import compare
from datapath.oracle.compare import ALL, CONN, FIELDS, ORPHAN, Field, differences
from datapath.oracle.exhibit import FRAGMENT
from datapath.oracle.kernel import Side
from datapath.oracle.lockstep import Compared
from datapath.oracle.witness import Sighting

HZ = 250


def agreeing(proto: int = Proto.PROTO_TCP, *, orphan: bool = False, slack: int = 0) -> Compared:
    """One packet on which both sides agree: of a connection, or (orphan) an invalid one whose tuple belongs to it."""
    sides = []
    for _ in range(2):
        side = Side.empty(1)
        side.decisions["conn"] = -1 if orphan else 0
        side.decisions["timeout"] = side.conns["timeout"] = 500
        side.decisions["proto"] = side.conns["flow"]["key"]["proto"] = proto
        side.has_conn[:] = True
        sides.append(side)
    keys = np.zeros(1, KEY_DTYPE)
    keys["proto"] = proto
    return Compared(sides[0], sides[1], keys, [None], [Sighting(None, None, None, (), 0)], np.array([slack]))


def change(field: Field, side: Side) -> None:
    """Another value in the very memory the field is read from."""
    column = field.column(side)
    assert column.base is not None or column is side.has_conn, "a view, so that writing to it changes the side"
    column[0] = not column[0]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
@pytest.mark.parametrize("of", ["ours", "theirs"])
def test_every_field_makes_a_difference(field: Field, of: str) -> None:
    compared = agreeing(field.proto or Proto.PROTO_TCP, orphan=field.scope == ORPHAN)
    assert differences(compared, HZ) == []
    change(field, getattr(compared, of))
    (difference,) = differences(compared, HZ)
    assert difference.i == 0 and field.name in difference.fields
    ours, theirs = difference.fields[field.name]
    assert ours != theirs


@pytest.mark.parametrize("d", [0, 1])
@pytest.mark.parametrize("field", ["src", "dst", "sport", "dport", "zone", "proto", "family"])
def test_tuples_are_compared(field: str, d: int) -> None:
    compared = agreeing()
    compared.theirs.conns["flow"]["key"]["family"] = compared.ours.conns["flow"]["key"]["family"] = 4
    compared.theirs.conns["flow"]["key"][field][0, d] += 2
    assert [list(difference.fields) for difference in differences(compared, HZ)] == [[["original.tuple", "reply.tuple"][d]]]


def test_every_column_is_compared_or_said_not_to_be() -> None:
    """Reasons and offload are ours alone (hooks ask no flow table of rules); times of beginning and labels are not observed, of helpers only the
    status; ordinals and states are decisions'.
    """
    compared_columns = {field.name.split(".")[-1] for field in FIELDS} | {"key"}
    alone = {"reason", "offload", "proto", "family", "start", "label", "helper", "id", "stream_ts", "flow", "tcp", "sctp", "side", "state"}
    names = {*DECISION_DTYPE.names, *CONN_DTYPE.names, *TCP_DTYPE.names, *SCTP_DTYPE.names, *FLOW_DTYPE.names}
    assert names - compared_columns <= alone


def test_fields_have_names_of_their_own_and_every_scope_is_used() -> None:
    assert len({field.name for field in FIELDS}) == len(FIELDS)
    assert {field.scope for field in FIELDS} == {ALL, CONN, ORPHAN}


@pytest.mark.parametrize("slack, apart, differs", [(0, 0, False), (0, 1, True), (1, 1, False), (1, 2, True)])
def test_timeouts_may_be_as_far_apart_as_the_clock_went(slack: int, apart: int, differs: bool) -> None:
    compared = agreeing(slack=slack)
    compared.theirs.decisions["timeout"] += apart
    assert bool(differences(compared, HZ)) == differs


def test_slack_is_for_timeouts_only() -> None:
    compared = agreeing(slack=5)
    compared.theirs.decisions["mark"] += 1
    assert [d.fields for d in differences(compared, HZ)] == [{"mark": (0, 1)}]


def test_what_was_not_shown_is_not_compared() -> None:
    compared = agreeing()
    compared.theirs.decisions["state"] += 1
    compared.unshown = [FRAGMENT]
    assert differences(compared, HZ) == []


def test_fragments_cut_anew_are_compared_as_a_bridge_sends_them() -> None:
    """Without the DF bit that a router sets in them; every other bit counts."""
    router = craft.frame("10.0.0.1", "10.0.0.2", 89, bytes(16), frag=0x6000)[14:], craft.frame("10.0.0.1", "10.0.0.2", 89, bytes(9), frag=0x4002)[14:]
    bridge = craft.frame("10.0.0.1", "10.0.0.2", 89, bytes(16), frag=0x2000)[14:], craft.frame("10.0.0.1", "10.0.0.2", 89, bytes(9), frag=0x0002)[14:]
    for ours, theirs, differs in ((router, bridge, False), (bridge, bridge, False), (bridge, router, True), (router, bridge[:1] + router[1:], True)):
        compared = agreeing()
        compared.ours.out[0], compared.theirs.out[0] = ours, theirs
        assert bool(differences(compared, HZ)) == differs


@pytest.mark.parametrize("packet", [craft.udp("10.0.0.1", "10.0.0.2", 1, 2, frag=0x4000)[14:], craft.udp("2001:db8::1", "2001:db8::2", 1, 2)[14:]])
def test_of_whole_packets_each_bit_counts(packet: bytes) -> None:
    assert compare.as_bridged((packet,)) == (packet,)


def test_another_protocols_memory_is_not_compared() -> None:
    compared = agreeing(Proto.PROTO_UDP)
    compared.theirs.conns["tcp"]["last_seq"] += 1
    assert differences(compared, HZ) == []


def test_values_are_shown_as_records_show_them() -> None:
    compared = agreeing()
    compared.ours.decisions["state"], compared.theirs.decisions["state"] = 1, 4
    compared.theirs.decisions["l4state"] = 3
    compared.theirs.decisions["timeout"] = 250
    compared.theirs.conns["tcp"]["flags"][0] = (0, 0x21)
    assert differences(compared, HZ)[0].fields == {
        "state": ("new", "invalid"), "l4state": (None, "ESTABLISHED"), "timeout": (2.0, 1.0), "tcp.reply.flags": ((), ("window-scale", "maxack-set")),
    }  # fmt: skip
    assert compare.Context(HZ, 6).proto == Proto.PROTO_TCP

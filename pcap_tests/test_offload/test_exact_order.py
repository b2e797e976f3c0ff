"""Exact filters are not taken away, one by one or all at once, before their packets are software's again. Against a kernel that is none; with a real
one: pcap_tests/vm/test_vm_exact."""

from __future__ import annotations

import errno

import pytest

from offload.bypassed import Bypassed
from offload.netlink.filters import CLSACT_PARENT, DELETE_QDISC, NEW_FILTER
from offload.netlink.monitor import Change
from offload.records import Op
from pcap_tests.test_offload.commanded import Flow, asked, commands
from pcap_tests.test_offload.feigned_tc import LEFT, FeignedTc, exact_in
from pcap_tests.test_offload.test_bypassed import Map


class Rig:
    def __init__(self, monkeypatch) -> None:
        self.order: list[str] = []
        self.tc, self.map = FeignedTc(self.order), Map(100, self.order)
        self.backend = Bypassed(exact_in(monkeypatch, self.tc), self.map)
        self.order.clear()


@pytest.fixture
def rig(monkeypatch) -> Rig:
    return Rig(monkeypatch)


def test_made_and_then_let_by_and_the_other_way_round(rig):
    assert asked(rig.backend, Op.REPLACE, Flow(1)) == [0, 0] and asked(rig.backend, Op.DESTROY, Flow(1)) == [0, 0]
    assert rig.order == ["made", "made", "put", "put", "remove", "remove", "deleted", "deleted"]


def test_what_the_kernel_does_not_take_is_not_let_by(rig):
    rig.tc.refuses[NEW_FILTER] = errno.ENOSPC
    assert asked(rig.backend, Op.REPLACE, Flow(1)) == [errno.ENOSPC] * 2 and "put" not in rig.order


def test_when_a_qdisc_has_gone_nothing_is_let_by_before_the_filters_of_the_others_are_taken_away(rig):
    asked(rig.backend, Op.REPLACE, Flow(1))
    flush(rig)
    rig.order.clear()
    assert [int(row["op"]) for row in rig.backend.replies(0)] == [Op.GONE] * 2 and not rig.map.keys
    assert rig.order == ["remove", "remove", "deleted"] and rig.tc.filters == {}
    assert len(rig.backend.replies(0)) == 0 and rig.backend.resets == 1


def flush(rig) -> None:
    """Somebody deletes the qdisc of one interface."""
    rig.tc.heard = [Change(DELETE_QDISC, LEFT, CLSACT_PARENT)]
    rig.tc.filters = {place: each for place, each in rig.tc.filters.items() if place[0] != LEFT}


def test_until_a_flush_is_told_as_a_reset_nothing_is_taken(rig):
    asked(rig.backend, Op.REPLACE, Flow(1))
    flush(rig)
    rig.backend.replies(0)
    rig.order.clear()
    assert rig.backend.submit(commands(Op.REPLACE, Flow(2, dport=81)), 0) == 0 and rig.order == []
    assert len(rig.backend.replies(0)) == 0 and rig.backend.resets == 1
    assert asked(rig.backend, Op.REPLACE, Flow(1), Flow(2, dport=81)) == [0] * 4 and len(rig.map.keys) == 4


def test_at_the_end(rig):
    asked(rig.backend, Op.REPLACE, Flow(1))
    rig.order.clear()
    rig.backend.close()
    assert not rig.map.keys and rig.order[:4] == ["remove", "remove", "deleted", "deleted"] and rig.tc.closed


def test_emptied_some_at_a_time(rig):
    asked(rig.backend, Op.REPLACE, Flow(1))
    rig.order.clear()
    for _ in rig.backend.empty(0):
        assert rig.backend.left == 0
    assert rig.order == ["remove", "remove", "deleted", "deleted"]

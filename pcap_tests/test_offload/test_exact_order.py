"""Exact filters are not taken away, one by one or all at once, before their packets are software's again. Against a kernel that is none; with a real
one: pcap_tests/vm/test_vm_exact."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from offload import exact_rules
from offload.bypassed import Bypassed
from offload.exact_rules import ExactRules
from offload.netlink.extack import Answer
from offload.netlink.filters import CLSACT_PARENT, DELETE_FILTER, DELETE_QDISC, MESSAGE, NEW_FILTER, TCMSG
from offload.netlink.monitor import Change
from offload.records import Op
from offload.sides import Sides, side
from pcap_tests.test_offload.commanded import Flow, asked
from pcap_tests.test_offload.test_bypassed import Map

LEFT, RIGHT = 3, 4
SIDES = Sides([side("left", ["10.1.0.0/16"]), side("right")])
ALL = "all deleted"
NAMES = {NEW_FILTER: "made", DELETE_FILTER: "deleted"}


class Tc:
    """As much of a kernel as makes and deletes filters. refuses: filters are not made."""

    def __init__(self, order: list[str]) -> None:
        self.order = order
        self.socket = None
        self.echoed: list[bytes] = []
        self.refuses = 0
        self.heard: list[Change] = []

    def ask(self, requests, sparing: bool = False) -> list[Answer]:
        return [self.answer(*MESSAGE.unpack_from(request)[1:2], TCMSG.unpack_from(request, MESSAGE.size)) for request in requests]

    def answer(self, kind: int, head: tuple[int, ...]) -> Answer:
        if kind in NAMES:
            self.order.append(NAMES[kind] if head[2] else ALL)
        return Answer(self.refuses if kind == NEW_FILTER else 0)

    def whole(self, request: bytes) -> list[bytes]:
        return []

    def changes(self) -> list[Change]:
        found, self.heard = self.heard, []
        return found

    def close(self) -> None:
        pass


class Rig:
    def __init__(self, monkeypatch) -> None:
        self.order: list[str] = []
        self.tc, self.map = Tc(self.order), Map(100, self.order)
        monkeypatch.setattr(exact_rules, "Channel", lambda: self.tc)
        monkeypatch.setattr(exact_rules, "Monitor", lambda *_: SimpleNamespace(changes=self.tc.changes, overrun=False, close=lambda: None))
        monkeypatch.setattr(exact_rules, "running", lambda channel: {"left": True, "right": True})
        monkeypatch.setattr(exact_rules, "links", lambda channel: {"left": LEFT, "right": RIGHT})
        self.backend = Bypassed(ExactRules(SIDES), self.map)
        self.order.clear()


@pytest.fixture
def rig(monkeypatch) -> Rig:
    return Rig(monkeypatch)


def test_made_and_then_let_by_and_the_other_way_round(rig):
    assert asked(rig.backend, Op.REPLACE, Flow(1)) == [0, 0] and asked(rig.backend, Op.DESTROY, Flow(1)) == [0, 0]
    assert rig.order == ["made", "made", "put", "put", "remove", "remove", "deleted", "deleted"]


def test_what_the_kernel_does_not_take_is_not_let_by(rig):
    rig.tc.refuses = errno.ENOSPC
    assert asked(rig.backend, Op.REPLACE, Flow(1)) == [errno.ENOSPC] * 2 and "put" not in rig.order


def test_when_a_qdisc_has_gone_nothing_is_let_by_before_the_filters_of_the_others_are_taken_away(rig):
    asked(rig.backend, Op.REPLACE, Flow(1))
    rig.tc.heard = [Change(DELETE_QDISC, LEFT, CLSACT_PARENT)]
    rig.order.clear()
    rig.backend.replies(0)
    assert rig.backend.resets == 1 and not rig.map.keys
    assert rig.order[:3] == ["remove", "remove", ALL]


def test_at_the_end(rig):
    asked(rig.backend, Op.REPLACE, Flow(1))
    rig.order.clear()
    rig.backend.close()
    assert not rig.map.keys and rig.order[:3] == ["remove", "remove", ALL]

"""Whoever takes an entry away, and for whatever reason: its packets come to software before, and go to the kernel only when it has the entry.

With the running kernel's conntrack. Needs root and nf_conntrack_netlink; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ctcore.ctnetlink import Ask
from datapath.oracle.namespace import Namespace
from offload.conntrack_entries import ConntrackEntries
from offload.netlink.conntrack import KernelConntrack
from offload.netlink.extack import Answer
from offload.records import Op
from pcap_tests.test_offload.commanded import S, asked, commands
from pcap_tests.test_offload.entering import LABELLED, PLAIN, SNAT, FakeBypass, conntrack, emptied, left_over

IN, OUT, DELETE = "let by", "not let by", "deleted"
MADE, CHANGED = Ask.CREATE.name, Ask.CHANGE.name


class Recorded(FakeBypass):
    """What was done to keys, each by itself."""

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self.order = order

    def put(self, keys) -> list[int]:
        self.order += [IN] * len(keys)
        return super().put(keys)

    def remove(self, keys) -> None:
        self.order += [OUT] * len(keys)
        super().remove(keys)


class Ordered:
    """A backend; order: what was done to its bypass, and what it has asked of the kernel; fails: what the kernel says to changes."""

    fails = 0

    def __init__(self) -> None:
        self.order: list[str] = []
        self.bypass = Recorded(self.order)
        self.backend = ConntrackEntries(bypass=self.bypass)
        kernel = self.backend.kernel
        self._put, self._delete = kernel.put, kernel.delete
        kernel.put, kernel.delete = self.put, self.delete

    def put(self, entries, ask):
        self.order += [ask.name] * len(entries)
        return [Answer(self.fails)] * len(entries) if self.fails and ask is Ask.CHANGE else self._put(entries, ask)

    def delete(self, entries):
        self.order += [DELETE] * len(entries)
        return self._delete(entries)

    def deaf(self) -> None:
        """It has not heard yet what others did."""
        self.backend.events.events = lambda: iter(())

    def asked(self, op: Op, *flows, **more) -> list[int]:
        self.order.clear()
        return asked(self.backend, op, *flows, **more)


@pytest.fixture
def rig(running_kernel) -> Iterator[Ordered]:
    namespace = Namespace()
    with namespace.entered():
        rig = Ordered()
        yield rig
        rig.backend.close()
        assert rig.bypass.keys == set()
    namespace.close()


def test_made_and_then_let_by(rig):
    assert rig.asked(Op.REPLACE, PLAIN) == [0, 0] and rig.order == [MADE, IN, IN]


def test_not_let_by_and_then_deleted(rig):
    rig.asked(Op.REPLACE, PLAIN)
    assert rig.asked(Op.DESTROY, PLAIN) == [0, 0] and rig.order == [OUT, OUT, DELETE]


def test_of_one_direction_only_its_own_packets(rig):
    rig.asked(Op.REPLACE, PLAIN)
    assert rig.asked(Op.DESTROY, PLAIN, replies=False) == [0] and rig.order == [OUT]


def test_one_that_is_not_deleted_is_let_by_again_when_the_kernel_has_said_so(rig):
    rig.asked(Op.REPLACE, PLAIN)
    delete = rig.delete

    def refuse(entries):
        return delete([])._replace(answers=[Answer(errno.EPERM)] * len(entries))

    rig.backend.kernel.delete = refuse
    assert rig.asked(Op.DESTROY, PLAIN) == [errno.EPERM] * 2 and rig.order == [OUT, OUT, IN, IN]
    rig.backend.kernel.delete = delete


def test_at_the_end(rig):
    rig.asked(Op.REPLACE, PLAIN, SNAT)
    rig.order.clear()
    emptied(rig.backend)
    assert rig.order == [OUT] * 4 + [DELETE] * 2


def test_when_all_begins_anew(rig):
    """Others have ended all: nothing is taken until that is told."""
    rig.asked(Op.REPLACE, PLAIN)
    conntrack("-F")
    rig.order.clear()
    assert rig.backend.submit(commands(Op.REPLACE, SNAT), S) == 0 and rig.order == [OUT, OUT] and rig.bypass.keys == set()
    assert [int(row["op"]) for row in rig.backend.replies(S)] == [Op.GONE] * 2 and rig.backend.resets == 0
    assert rig.backend.submit(commands(Op.REPLACE, SNAT), S) == 0
    assert len(rig.backend.replies(S)) == 0 and rig.backend.resets == 1
    assert rig.asked(Op.REPLACE, SNAT) == [0, 0] and rig.order == [MADE, IN, IN]


def told(rows) -> list[tuple[int, Op, int]]:
    """Cookie, op and error of each answer and piece of news."""
    return [(int(row["cookie"]), Op(row["op"]), int(row["error"])) for row in rows]


def test_one_that_is_found_deleted_by_others_is_not_let_by_any_more(rig):
    rig.asked(Op.REPLACE, PLAIN, replies=False)
    rig.deaf()
    conntrack("-F")
    rig.order.clear()
    assert rig.backend.submit(commands(Op.REPLACE, PLAIN)[1:], S) == 1
    assert told(rig.backend.replies(S)) == [(PLAIN.cookie(1), Op.REPLACE, errno.ENOENT), (PLAIN.cookie(0), Op.GONE, 0)]
    assert rig.order == [CHANGED, OUT] and rig.bypass.keys == set()


def replaced_by_others(rig: Ordered) -> None:
    """The kernel has another entry of the same original tuple, and does not change that into ours."""
    rig.asked(Op.REPLACE, SNAT, replies=False)
    rig.deaf()
    conntrack("-F")
    with KernelConntrack() as other:
        left_over(other, replace(SNAT, to=("198.51.100.1", 999, "192.0.2.9", 53)))
    rig.fails = errno.EBUSY


def test_one_that_others_translate_otherwise_is_not_let_by_until_it_is_made_again(rig):
    replaced_by_others(rig)
    assert rig.asked(Op.REPLACE, SNAT) == [errno.EEXIST, 0]
    assert rig.order == [CHANGED, OUT, DELETE, MADE, IN, IN] and len(rig.bypass.keys) == 2


def test_a_direction_that_is_not_let_by_again_is_told(rig):
    """Another one has taken its place meanwhile."""
    replaced_by_others(rig)
    rig.bypass.taken = set(rig.bypass.keys)
    assert rig.backend.submit(commands(Op.REPLACE, SNAT)[1:], S) == 1
    assert told(rig.backend.replies(S)) == [(SNAT.cookie(1), Op.REPLACE, 0), (SNAT.cookie(0), Op.GONE, 0)]
    assert len(rig.bypass.keys) == 1 and [int(row["dir"]) for row in rig.backend.held()] == [1]


def test_one_without_its_label_was_never_let_by(rig):
    with KernelConntrack() as other:
        left_over(other, replace(LABELLED, label=0))
    assert rig.asked(Op.REPLACE, LABELLED) == [errno.EOPNOTSUPP] * 2 and IN not in rig.order
    conntrack("-F")

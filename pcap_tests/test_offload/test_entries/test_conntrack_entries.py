"""Connections as entries of the running kernel's conntrack: made, changed, told, deleted, fast. What act_ct makes of them: pcap_tests/vm."""

from __future__ import annotations

import errno
import gc
import time

import numpy as np
import pytest

from ctcore.types import Status
from offload.conntrack_entries import ConntrackEntries
from offload.entry import bypass_key, commands_of
from offload.records import Ctinfo, Op
from pcap_tests.test_offload.commanded import Flow, S, asked, commands
from pcap_tests.test_offload.entering import (
    ALL,
    BOTH,
    EVERYTHING,
    LABELLED,
    PLAIN,
    SNAT,
    FakeBypass,
    conntrack,
    emptied,
    left_over,
    listed,
    ours,
)

LEAST_RATE = 50_000  # connections a second, through submit()


def test_entries_are_made_listed_and_deleted(backend, bypass, kernel):
    wanted = commands(Op.REPLACE, *ALL)
    assert asked(backend, Op.REPLACE, *ALL) == [0] * 12
    assert sorted(map(bytes, backend.held())) == sorted(map(bytes, wanted))
    assert ours(kernel) == 6
    assert bypass.keys == {bypass_key(command.match) for command in commands_of(wanted)}
    assert asked(backend, Op.DESTROY, *ALL) == [0] * 12
    assert (ours(kernel), bypass.keys, len(backend.held())) == (0, set(), 0)
    assert asked(backend, Op.DESTROY, *ALL) == [errno.ENOENT] * 12


def test_an_entry_has_all_that_act_ct_asks_for(backend, kernel):
    """Established, assured, liberal; zone, mark, translation."""
    asked(backend, Op.REPLACE, BOTH)
    row, status = listed(kernel)[41_000]
    assert status & EVERYTHING == EVERYTHING and status & Status.SRC_NAT and status & Status.DST_NAT
    assert (row["mark"], row["flow"][0]["key"]["zone"], row["tcp"]["state"], row["tcp"]["scale"].tolist()) == (0x42, 9, 3, [14, 14])
    assert all(flags & 0x08 for flags in row["tcp"]["flags"])  # IP_CT_TCP_FLAG_BE_LIBERAL
    assert 298 * 250 <= row["timeout"] <= 300 * 250


@pytest.mark.parametrize("first", [0, 1])
def test_either_direction_makes_the_entry_and_the_last_one_takes_it_away(backend, bypass, kernel, first):
    both = commands(Op.REPLACE, BOTH)
    for d, count in ((first, 1), (1 - first, 2)):
        assert backend.submit(both[d : d + 1], S) == 1
        assert [int(row["error"]) for row in backend.replies(S)] == [0]
        assert (ours(kernel), len(bypass.keys), len(backend.held())) == (1, count, count)
    both["op"] = Op.DESTROY
    for d, count in ((first, 1), (1 - first, 0)):
        backend.submit(both[d : d + 1], S)
        assert [int(row["error"]) for row in backend.replies(S)] == [0]
        assert (ours(kernel), len(bypass.keys), len(backend.held())) == (count, count, count)


def test_udp_is_answered_and_assured_by_and_by(backend, kernel):
    """A2.10: the original direction alone, then it has been answered, then both."""

    def status() -> int:
        return listed(kernel)[SNAT.sport][1] & EVERYTHING

    assert asked(backend, Op.REPLACE, SNAT, ctinfo=Ctinfo.NEW, replies=False) == [0] and status() == Status.CONFIRMED
    assert asked(backend, Op.REPLACE, SNAT, ctinfo=Ctinfo.NEW, replies=False) == [errno.EEXIST]
    assert [int(row["ctinfo"]) for row in backend.held()] == [Ctinfo.NEW]
    assert asked(backend, Op.REPLACE, SNAT, replies=False) == [0] and status() == Status.CONFIRMED | Status.SEEN_REPLY
    assert asked(backend, Op.REPLACE, SNAT) == [errno.EEXIST, 0] and status() == EVERYTHING


def test_a_mark_alone_is_no_news(backend, kernel):
    """A4.36; with another connection it is."""
    asked(backend, Op.REPLACE, BOTH)
    changed = commands(Op.REPLACE, BOTH)
    changed["mark"] = 7
    backend.submit(changed, S)
    assert [int(row["error"]) for row in backend.replies(S)] == [errno.EEXIST] * 2 and listed(kernel)[41_000][0]["mark"] == 0x42
    changed["conn"] = 1000
    backend.submit(changed, S)
    assert [int(row["error"]) for row in backend.replies(S)] == [0] * 2 and listed(kernel)[41_000][0]["mark"] == 7
    assert backend.held()["conn"].tolist() == [1000] * 2


def test_one_after_the_other_in_one_call(backend, kernel):
    """The same cookie several times, and all kinds of commands."""
    making, counting, ending = (commands(op, PLAIN, SNAT) for op in (Op.REPLACE, Op.STATS, Op.DESTROY))
    together = np.concatenate([making, counting, ending, ending, making[:2], making[:1], ending[:1]])
    assert backend.submit(together, S) == len(together)
    told = [(int(row["op"]), int(row["error"])) for row in backend.replies(S)]
    kinds = [(Op.REPLACE, 0)] * 4 + [(Op.STATS, 0)] * 4 + [(Op.DESTROY, 0)] * 4 + [(Op.DESTROY, errno.ENOENT)] * 4
    assert told == [*kinds, (Op.REPLACE, 0), (Op.REPLACE, 0), (Op.REPLACE, errno.EEXIST), (Op.DESTROY, 0)]
    assert [int(row["dir"]) for row in backend.held()] == [1]


def test_fifty_thousand_a_second(place):
    """Through submit(), both directions, what Python does and what the kernel does; in this thread's time, the best of three."""
    flows = [Flow(row, src=f"10.{row >> 14}.0.1", sport=1024 + (row & 0x3FFF)) for row in range(20_000)]
    wanted = commands(Op.REPLACE, *flows)
    with ConntrackEntries(bypass=FakeBypass()) as backend:
        gc.collect()
        gc.freeze()  # what the tests have loaded is not gone through again and again
        rates = []
        for _ in range(3):
            begun = time.thread_time()
            for at in range(0, len(wanted), 4000):
                backend.submit(wanted[at : at + 4000], S)
                assert not backend.replies(S)["error"].any()
            rates.append(len(flows) / (time.thread_time() - begun))
            assert len(backend.held()) == len(wanted)
            emptied(backend)
        gc.unfreeze()
        print(f"{max(rates):,.0f} connections a second through submit()")
        assert max(rates) >= LEAST_RATE


# --- labels ---------------------------------------------------------------------------------------------------------------------------------


def test_a_label_that_the_kernel_does_not_keep_is_a_refusal(backend, bypass, kernel):
    """Linux 6.12 and later make the entry without it, and say nothing: rules that ask for the label would not find it."""
    left_over(kernel, Flow(7, dport=88))
    assert asked(backend, Op.REPLACE, PLAIN, LABELLED, Flow(8, dport=89, label=7)) == [0, 0] + [errno.EOPNOTSUPP] * 4
    for conn in (107, 108):
        assert backend.refusal(conn).startswith("Operation not supported: the kernel keeps no labels: expected a rule")
    assert len(backend.held()) == 2 and len(bypass.keys) == 2
    conntrack("-F")
    backend.replies(S)
    backend.replies(S)

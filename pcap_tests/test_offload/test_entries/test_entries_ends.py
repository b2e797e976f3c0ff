"""Entries that are taken away, all of them: what they had counted is told, however it comes to that, and what does not go is said.

With the running kernel's conntrack. Needs root and nf_conntrack_netlink; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1.
"""

from __future__ import annotations

import errno
import time

import pytest

from offload import conntrack_entries
from offload.conntrack_entries import ConntrackEntries
from offload.netlink.channel import NetlinkError
from offload.netlink.extack import Answer
from offload.records import Op
from offload.threaded import Threaded
from pcap_tests.test_offload.commanded import Flow, S, asked, commands
from pcap_tests.test_offload.entering import BOTH, PLAIN, SNAT, conntrack, emptied, ours
from pcap_tests.test_offload.kept import QUICK, answered, last, until


def test_with_the_end_it_is_told_what_came_since_the_last_time(backend, bypass, kernel, talk):
    near, far, flow = talk
    asked(backend, Op.REPLACE, flow, PLAIN)
    near.send(b"x" * 72)
    asked(backend, Op.STATS, flow)
    near.send(b"x" * 72)
    far.send(b"x" * 172)
    emptied(backend, 20 * S)
    told = {int(row["cookie"]): (row["op"], row["packets"], row["bytes"], row["used"]) for row in backend.replies(20 * S)}
    assert told[flow.cookie(0)] == (Op.GONE, 1, 100, 20 * S) and told[flow.cookie(1)] == (Op.GONE, 1, 200, 20 * S)
    assert told[PLAIN.cookie(0)] == told[PLAIN.cookie(1)] == (Op.GONE, 0, 0, 0)
    assert (backend.left, ours(kernel), backend.missed, backend.resets) == (0, 0, 0, 0)


@pytest.mark.parametrize("turn", [0.0, 0.2])
@pytest.mark.parametrize("how", ["suspended", "closed", "flushed"])
def test_through_a_thread_it_is_told_before_hardware_has_begun_anew(talk, how, turn):
    """Suspended as when rules in TC are missing; however seldom the worker looks."""
    near, far, flow = talk
    one = Threaded(ConntrackEntries, **QUICK)
    one.start()
    try:
        one.submit(commands(Op.REPLACE, flow), S)
        answered(one, 2)
        for _ in range(10):
            near.send(b"x" * 72)
        far.send(b"x" * 172)
        if how == "suspended":
            one.suspend("rules are missing")
        elif how == "closed":
            assert one.close()
        else:
            conntrack("-F")
        time.sleep(turn)
        assert last(one) == {flow.cookie(0): (10, 1000), flow.cookie(1): (1, 200)}
    finally:
        one.close()


def test_a_thousand_go_some_at_a_time(backend, kernel, monkeypatch):
    """So that whoever waits for it sees that it goes on."""
    monkeypatch.setattr(conntrack_entries, "AT_ONCE", 300)
    asked(backend, Op.REPLACE, *(Flow(row, dport=row) for row in range(1, 1001)))
    assert [(backend.left, ours(kernel)) for _ in backend.empty(S)] == [(700, 700), (400, 400), (100, 100), (0, 0)]
    assert len(backend.replies(S)) == 2000


def test_what_others_end_meanwhile_is_told_once(backend, monkeypatch):
    monkeypatch.setattr(conntrack_entries, "AT_ONCE", 1)
    asked(backend, Op.REPLACE, PLAIN, BOTH)
    steps = backend.empty(S)
    next(steps)
    conntrack("-D", "-p", "tcp", "--orig-port-src", "41000", "-w", "9")
    told = [int(row["cookie"]) for row in backend.replies(S)]
    assert list(steps) == [None]
    told += [int(row["cookie"]) for row in backend.replies(S)]
    assert sorted(told) == sorted(flow.cookie(d) for flow in (PLAIN, BOTH) for d in range(2))


def test_what_the_kernel_does_not_delete_is_an_error_and_the_rest_goes(backend, bypass, kernel):
    asked(backend, Op.REPLACE, PLAIN, SNAT, BOTH)
    delete = backend.kernel.delete

    def refuse(entries):
        done = delete([entry for entry in entries if entry.number != BOTH.cookie() >> 1])
        answers = iter(done.answers)
        return done._replace(answers=[Answer(errno.EPERM) if entry.number == BOTH.cookie() >> 1 else next(answers) for entry in entries])

    backend.kernel.delete = refuse
    with pytest.raises(NetlinkError, match="1 of 3 entries are in conntrack still, or may be: Operation not permitted"):
        emptied(backend)
    assert (backend.left, ours(kernel), len(backend.replies(S)), bypass.keys) == (1, 1, 4, set())
    backend.kernel.delete = delete
    emptied(backend)
    assert (backend.left, ours(kernel)) == (0, 0)


def test_what_does_not_go_is_in_the_log_of_a_thread(place, caplog):
    one = Threaded(ConntrackEntries, **QUICK)
    one.start()
    one.submit(commands(Op.REPLACE, PLAIN), S)
    answered(one, 2)
    one.ask(lambda backend: setattr(backend.kernel, "delete", lambda entries: (_ for _ in ()).throw(OSError(errno.EPERM, "not allowed"))))
    one.close()
    until(lambda: one.state == "ended")
    assert "offload: what was in the kernel may be left there: [Errno 1] not allowed" in [record.getMessage() for record in caplog.records]
    conntrack("-F")


def test_what_is_held_and_what_the_kernel_says_of_it_are_of_one_list(backend):
    asked(backend, Op.REPLACE, PLAIN, SNAT)
    lists: list[int] = []
    entries = backend.kernel.entries
    backend.kernel.entries = lambda: [lists.append(1), entries()][1]
    held, states = backend.both()
    assert len(lists) == 1 and sorted(held["cookie"].tolist()) == sorted(flow.cookie(d) for flow in (PLAIN, SNAT) for d in range(2))
    assert sorted(states["cookie"].tolist()) == sorted((PLAIN.cookie(), SNAT.cookie()))

"""What entries of the running kernel's conntrack have counted, and how long they live."""

from __future__ import annotations

import errno
import socket
import time
from pathlib import Path

from ctcore.ctnetlink import Ask
from offload.conntrack_entries import ConntrackEntries
from offload.netlink.conntrack import SETTINGS
from offload.records import Op
from pcap_tests.test_offload.commanded import S, asked, commands
from pcap_tests.test_offload.entering import (
    BOTH,
    EVERYTHING,
    PLAIN,
    SNAT,
    conntrack,
    counted,
    listed,
    told_to,
)


def test_counters_are_told_as_what_came_since_the_last_time(backend, talk):
    near, far, flow = talk
    assert backend.counting.on and backend.counting.changed
    assert asked(backend, Op.REPLACE, flow) == [0, 0]
    assert counted(backend, flow, 10 * S) == [(0, 0, 0), (0, 0, 0)]
    for _ in range(3):
        near.send(b"x" * 72)
    far.send(b"y" * 22)
    assert counted(backend, flow, 20 * S) == [(3, 300, 20 * S), (1, 50, 20 * S)]
    assert counted(backend, flow, 30 * S) == [(0, 0, 20 * S), (0, 0, 20 * S)]
    near.send(b"x" * 72)
    assert counted(backend, flow, 40 * S) == [(1, 100, 40 * S), (0, 0, 20 * S)]


def test_one_question_serves_both_directions(backend, talk):
    """They are asked for one after the other (offload.mirror)."""
    near, _, flow = talk
    asked(backend, Op.REPLACE, flow)
    asking = commands(Op.STATS, flow)
    questions: list[int] = []
    tell = backend.kernel.tell
    backend.kernel.tell = lambda requests: questions.append(len(requests)) or tell(requests)
    for moment in (10 * S, 20 * S):
        near.send(b"x" * 72)
        for d in range(2):
            backend.submit(asking[d : d + 1], moment)
            assert int(backend.replies(moment)["packets"][0]) == 1 - d
    assert sum(questions) == 2
    backend.submit(asking[1:], 30 * S)
    assert sum(questions) == 3  # nobody has asked for that lately


def test_what_was_counted_last_is_told_at_the_end(backend, talk):
    near, far, flow = talk
    asked(backend, Op.REPLACE, flow)
    near.send(b"x" * 72)
    counted(backend, flow, 10 * S)
    near.send(b"x" * 72)
    far.send(b"x" * 72)
    backend.submit(commands(Op.DESTROY, flow), 20 * S)
    assert [(row["error"], row["packets"], row["bytes"], row["used"]) for row in backend.replies(20 * S)] == [(0, 1, 100, 20 * S)] * 2


def test_what_others_end_tells_what_it_had_counted(backend, bypass, talk):
    near, _, flow = talk
    asked(backend, Op.REPLACE, flow, PLAIN)
    near.send(b"x" * 72)
    conntrack("-D", "-p", "udp", "--orig-src", "127.0.0.1")
    told = backend.replies(5 * S)
    assert [(row["op"], row["cookie"], row["packets"], row["bytes"]) for row in told] == [
        (Op.GONE, flow.cookie(0), 1, 100), (Op.GONE, flow.cookie(1), 0, 0),
    ]  # fmt: skip
    assert len(bypass.keys) == 2 and (backend.missed, backend.resets) == (1, 0)
    assert asked(backend, Op.REPLACE, flow, PLAIN) == [0, 0, errno.EEXIST, errno.EEXIST]


def test_what_it_had_counted_is_told_when_the_kernel_sees_it_end(backend, tcp):
    """News of a change have no counters."""
    near, flow = tcp
    assert asked(backend, Op.REPLACE, flow) == [0, 0]
    near.sendall(b"x" * 100)
    near.shutdown(socket.SHUT_WR)
    orig, reply = told = backend.replies(20 * S)
    for d, row in enumerate(told):
        assert (row["op"], row["cookie"], row["used"], row["shared"]) == (Op.GONE, flow.cookie(d), 20 * S, 0)
    assert (orig["packets"], orig["bytes"]) == (2, 100 + 2 * 52)
    assert reply["bytes"] == 52 * reply["packets"] > 0  # one acknowledgement or two
    conntrack("-F")


def test_one_that_is_asked_about_has_no_five_days_to_live(backend, tcp):
    """As each packet gives it: it would be there long after a process that was killed."""
    near, flow = tcp
    asked(backend, Op.REPLACE, flow)
    near.sendall(b"x")
    assert backend.states()["left"][0] > 86_400
    counted(backend, flow, 10 * S)
    assert 298 <= backend.states()["left"][0] <= 300


def test_without_counters_nothing_is_told_but_that_packets_came(place, talk):
    """A6.50: what is not known is not said to be nought of each direction; and one that is busy is not idle."""
    near, _, flow = talk
    with ConntrackEntries(lease=20) as backend:
        (SETTINGS / "nf_conntrack_acct").write_text("0")
        asked(backend, Op.REPLACE, flow)

        def told(now: int) -> tuple[int, int, bool]:
            backend.submit(commands(Op.STATS, flow)[:1], now)
            (row,) = backend.replies(now)
            return int(row["packets"]), int(row["used"]), bool(row["shared"])

        assert told(2 * S) == (0, 0, True)
        near.send(b"x")  # it lives for 120 s from now on
        assert told(3 * S) == (0, 3 * S, True)
        assert told(4 * S) == (0, 3 * S, True)
        assert not backend.states()["counted"].any()


def test_counting_is_set_once_and_stays(place):
    setting = SETTINGS / "nf_conntrack_acct"
    setting.write_text("0")
    with ConntrackEntries() as backend:
        assert backend.counting.on and backend.counting.changed
    with ConntrackEntries() as backend:
        assert backend.counting.on and not backend.counting.changed
    assert setting.read_text().strip() == "1"


def test_a_setting_that_cannot_be_made_is_said(place, monkeypatch):
    monkeypatch.setattr("offload.netlink.conntrack.SETTINGS", Path("/proc/sys/net/nowhere"))
    with ConntrackEntries() as backend:
        assert backend.counting == (False, False, "/proc/sys/net/nowhere/nf_conntrack_acct: No such file or directory")
        assert backend.lacks == ["entries have no counters: /proc/sys/net/nowhere/nf_conntrack_acct: No such file or directory"]


def test_an_entry_lives_while_somebody_asks(place, kernel):
    with ConntrackEntries(lease=3) as backend:
        asked(backend, Op.REPLACE, PLAIN, SNAT)
        for second in range(6):
            time.sleep(1)
            assert counted(backend, PLAIN, (second + 5) * S) == [(0, 0, 0)] * 2
        assert set(listed(kernel)) == {40_000}
        assert asked(backend, Op.STATS, SNAT) == [errno.ENOENT] * 2


def test_states_are_what_the_kernel_has(backend, kernel):
    asked(backend, Op.REPLACE, BOTH, SNAT)
    told_to(kernel, Ask.CHANGE, BOTH, mark=9, timeout=77 * 250)
    told = {int(row["conn"]): row for row in backend.states()}
    assert told[104]["mark"] == 9 and 75 <= told[104]["left"] <= 77 and told[104]["state"] == 3 and told[104]["cookie"] == BOTH.cookie()
    assert told[102]["status"] & EVERYTHING == EVERYTHING and told[102]["counted"]
    assert {row["mark"] for row in backend.held()} == {9, 0}

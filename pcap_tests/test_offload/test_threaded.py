"""A backend in a thread: the worker never waits for it, what it says is of one moment, and whatever becomes of it is said, counted and made good."""

from __future__ import annotations

import errno
import logging
import threading
import time

import numpy as np
import pytest

from offload.records import Op
from offload.threaded import ENDED, FAILED, PORTION, SUSPENDED, WORKING, Down, Threaded
from pcap_tests.test_offload.fake_nic import FakeNic
from pcap_tests.test_offload.kept import QUICK, Kernel, Made, answered, commands, hit, last, started, until

# --- at work --------------------------------------------------------------------------------------------------------------------------------


def test_commands_are_carried_out_in_the_thread_and_answered():
    made = Made()
    with started(made, name="offload-3") as one:
        assert one.submit(commands(1000), 5) == 1000
        replies = answered(one, 1000)
        assert replies["cookie"].tolist() == commands(1000)["cookie"].tolist() and not replies["error"].any()
        assert made.all[0].threads == {"offload-3"} and len(one.held()) == 1000
        assert (one.resets, one.waiting, one.state, one.refusal(7), one.refusal(8)) == (0, 0, WORKING, "no room", "")
    assert made.all[0].closed and one.state == ENDED


def test_a_turn_of_1024_commands_does_not_wait_for_a_backend_that_is_at_work():
    made, busy, free = Made(), threading.Event(), threading.Event()
    with started(made) as one:
        made.all[0].during = lambda: [busy.set(), free.wait(5)]
        one.submit(commands(1), 0)
        busy.wait()
        took = []
        for turn in range(10):
            given = commands(1024, first=1024 * turn)
            begun = time.thread_time()
            one.replies(turn)
            assert one.submit(given, turn) == 1024
            took.append(time.thread_time() - begun)
        assert one.waiting == 1 + 10 * 1024, "nothing has been done meanwhile"
        free.set()
        assert sorted(took)[5] < 0.001, took


def test_nor_does_it_wait_for_one_that_computes():
    """In Python, with the interpreter's lock: a worker that comes back from a wait gets it after SWITCH seconds, and not after five turns. The best
    quarter of its turns: others have the machine, too."""
    made = Made()

    def compute() -> None:
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            pass

    with started(made) as one:
        made.all[0].during = compute
        took = []
        for turn in range(40):
            one.submit(commands(16, first=16 * turn), turn)
            begun = time.perf_counter()
            time.sleep(0.002)
            one.replies(turn)
            took.append(time.perf_counter() - begun)
        assert sorted(took)[10] < 0.004, took


def test_no_more_commands_wait_than_there_is_room_for():
    made = Made()
    free = threading.Event()
    with started(made, most=100) as one:
        made.all[0].during = free.wait
        assert one.submit(commands(80), 0) == 80 and one.submit(commands(80), 0) == 20 and one.submit(commands(80), 0) == 0
        free.set()
        assert len(answered(one, 100)) == 100
        until(lambda: one.waiting == 0)
        assert one.submit(commands(80), 0) == 80


def test_a_backend_that_takes_some_at_a_time_gets_the_others_later():
    made = Made()
    with started(made) as one:
        made.all[0].intake = 7
        one.submit(commands(50), 0)
        assert len(answered(one, 50)) == 50 and len(made.all[0].rules) == 50


# --- what begins anew -------------------------------------------------------------------------------------------------------------------------


def test_what_was_asked_before_a_reset_is_neither_done_nor_answered():
    made = Made()

    busy, free = threading.Event(), threading.Event()
    with started(made) as one:
        (kernel,) = made.all
        kernel.during = lambda: [busy.set(), free.wait()]
        one.submit(commands(10), 0)
        busy.wait()
        one.submit(commands(10, first=100), 0)  # waits behind the first ten
        kernel.during = lambda: None
        kernel.replies = lambda now: [FakeNic.reset(kernel), FakeNic.replies(kernel, now)][1] if kernel.resets == 0 else FakeNic.replies(kernel, now)
        free.set()
        until(lambda: one.waiting == 0)
        assert one.submit(commands(1), 0) == 0, "the mirror does not know yet"
        assert len(one.replies(1)) == 0 and one.resets == 1
        assert one.submit(commands(3, first=200), 1) == 3
        assert answered(one, 3)["cookie"].tolist() == [400, 402, 404] and len(kernel.rules) == 3


def flushed(kernel: Kernel) -> None:
    """Somebody takes all away; it is told one by one, and with the next look that hardware has begun anew."""
    told = kernel.replies

    def gone(now: int) -> np.ndarray:
        for cookie in list(kernel.rules):
            kernel.take_away(cookie)
        kernel.replies = begun  # type: ignore[method-assign]
        return told(now)

    def begun(now: int) -> np.ndarray:
        kernel.replies = told  # type: ignore[method-assign]
        kernel.resets += 1
        return told(now)

    kernel.replies = gone  # type: ignore[method-assign]


@pytest.mark.parametrize("turn", [0.0, 0.2])
def test_what_was_counted_before_a_flush_is_told_however_seldom_the_worker_looks(turn):
    made = Made()
    with started(made) as one:
        (kernel,) = made.all
        one.submit(commands(3), 0)
        answered(one, 3)
        hit(kernel, 2, 1000)
        flushed(kernel)
        time.sleep(turn)
        assert last(one) == {0: (0, 0), 2: (1000, 100_000), 4: (0, 0)}
        assert one.submit(commands(3), 1) == 3 and len(answered(one, 3)) == 3


def test_of_two_ends_in_one_turn_none_is_told_twice_or_to_the_wrong_one():
    made = Made()
    with started(made) as one:
        one.submit(commands(3), 0)
        answered(one, 3)
        hit(made.all[0], 4, 5)
        one.suspend("once")
        one.resume()
        one.suspend("twice")
        one.resume()
        until(lambda: len(made.all) > 1 and one.state == WORKING and one.ask(lambda backend: True))
        assert last(one)[4] == (5, 500) and one.submit(commands(1), 1) == 1
        assert answered(one, 1)["op"].tolist() == [Op.REPLACE]


def test_others_are_heard_also_where_nobody_asks_for_anything():
    made = Made()
    with started(made) as one:
        made.all[0].resets += 1
        until(lambda: [one.replies(0), one.resets == 1][1])


# --- what goes wrong --------------------------------------------------------------------------------------------------------------------------


def fail() -> None:
    raise OSError(errno.ENOBUFS, "no buffers")


def test_a_backend_that_fails_is_said_counted_closed_and_made_anew(caplog):
    made = Made()
    with started(made) as one:
        made.all[0].during = fail
        made.broken = OSError(errno.ENODEV, "no such device")
        one.submit(commands(10), 0)
        until(lambda: one.failures >= 2)
        assert one.state == FAILED and "no such device" in one.said and made.all[0].closed
        last(one)
        assert one.resets == 1 and one.submit(commands(10), 0) == 0
        with pytest.raises(Down, match="no such device"):
            one.held()
        made.broken = None
        until(lambda: one.state == WORKING)
        assert one.submit(commands(10), 0) == 10 and len(answered(one, 10)) == 10 and one.resets == 1
    said = [record.getMessage() for record in caplog.records]
    assert "offload: [Errno 105] no buffers: connections are software's; tried again in 0.02 s" in said
    assert "offload: [Errno 19] no such device: connections are software's; tried again in 0.04 s" in said


def test_a_mistake_of_ours_is_no_different_but_for_its_traceback(caplog):
    made = Made()
    with started(made) as one:
        made.all[0].during = lambda: [][1]
        one.submit(commands(1), 0)
        until(lambda: len(made.all) == 2 and one.state == WORKING)
    (record,) = (record for record in caplog.records if "list index" in record.getMessage())
    assert record.exc_info


def test_what_a_job_raises_is_who_asked_s_and_no_failure():
    made = Made()
    with started(made) as one:
        with pytest.raises(ZeroDivisionError):
            one.ask(lambda backend: 1 / 0)
        assert (one.failures, one.state) == (0, WORKING)


def test_a_thread_that_dies_says_so_and_takes_nothing_any_more(caplog):
    made = Made()

    def die() -> None:
        raise SystemExit("killed")

    with started(made) as one:
        made.all[0].during = die
        one.submit(commands(10), 0)
        until(lambda: one.state == ENDED)
        assert (one.failures, one.said, made.all[0].closed) == (1, "killed", True)
        assert one.submit(commands(10), 0) == 0
        with pytest.raises(Down, match="it has ended"):
            one.held()
    assert any("the thread of the backend has ended" in record.getMessage() for record in caplog.records)


def test_one_that_hangs_is_left_behind_at_the_end(monkeypatch, caplog):
    monkeypatch.setattr("offload.threaded.LIMIT", 0.05)
    made, busy, free = Made(), threading.Event(), threading.Event()
    one = Threaded(made, **QUICK)
    one.start()
    made.all[0].during = lambda: [busy.set(), free.wait()]
    one.submit(commands(1), 0)
    busy.wait()
    begun = time.monotonic()
    assert one.close() is False
    assert time.monotonic() - begun < 1 and any("does not end, and takes out nothing for 0.05 s" in each.getMessage() for each in caplog.records)
    assert one.state == ENDED and one.close() is False, "it is not waited for once more"
    with pytest.raises(Down):
        one.ask(lambda backend: None, 0.01)
    free.set()
    until(one.close)
    assert made.all[0].closed


def test_one_that_takes_out_less_at_a_time_than_the_limit_is_waited_for(monkeypatch, caplog):
    """As long as it goes on: what it leaves would be in the way of whoever comes next, and what it takes out later would be theirs."""
    monkeypatch.setattr("offload.threaded.LIMIT", 0.3)
    made = Made()
    with started(made) as one:
        one.submit(commands(80), 0)
        answered(one, 80)
        made.all[0].taking = lambda: time.sleep(0.1)
        begun = time.monotonic()
        assert one.close() is True
        assert time.monotonic() - begun > 0.7 and made.all[0].closed and not made.all[0].rules
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_what_waits_at_the_end_is_not_carried_out(monkeypatch):
    made, busy, free = Made(), threading.Event(), threading.Event()
    with started(made) as one:
        made.all[0].during = lambda: [busy.set(), free.wait(5)]
        one.submit(commands(5000), 0)
        busy.wait()
        threading.Timer(0.05, free.set).start()
        one.close()
        assert made.all[0].given == [PORTION]


@pytest.mark.parametrize("how", ["suspended", "closed", "failed", "dead"])
def test_what_was_counted_last_is_told_whatever_the_end(how):
    made = Made()

    def die() -> None:
        raise SystemExit("killed")

    with started(made) as one:
        (kernel,) = made.all
        one.submit(commands(25), 0)
        answered(one, 25)
        hit(kernel, 0, 3)
        hit(kernel, 48, 4)
        if how == "suspended":
            one.suspend("rules are missing")
        elif how == "closed":
            assert one.close() is True
        else:
            kernel.during = fail if how == "failed" else die
            one.submit(commands(1, Op.STATS), 1)
        told = last(one)
        assert len(told) == 25 and {cookie: counts for cookie, counts in told.items() if counts[0]} == {0: (3, 300), 48: (4, 400)}
        assert one.resets == 1 and len(one.replies(2)) == 0


def test_what_cannot_be_taken_out_is_said_and_the_rest_is_told(caplog):
    made = Made()
    with started(made) as one:
        one.submit(commands(25), 0)
        answered(one, 25)
        hit(made.all[0], 2, 3)
        steps = iter((lambda: None, fail))
        made.all[0].taking = lambda: next(steps)()
        one.suspend("rules are missing")
        told = last(one)
        assert len(told) == 10 and told[2] == (3, 300)
    assert "offload: not all was taken out in order: [Errno 105] no buffers" in [record.getMessage() for record in caplog.records]


def test_the_first_one_s_mistake_is_its_maker_s():
    made = Made()
    made.broken = ValueError("no interface eth9")
    with pytest.raises(ValueError, match="eth9"):
        Threaded(made)


def test_a_failure_while_it_is_closed_is_in_the_log(caplog):
    made = Made()
    with started(made):
        made.all[0].close = fail
    assert [record.levelno for record in caplog.records if "may be left there" in record.getMessage()] == [logging.ERROR]


def test_without_a_thread_it_is_closed_all_the_same():
    made = Made()
    one = Threaded(made)
    assert len(one.held()) == 0
    one.close()
    one.close()
    assert made.all[0].closed


# --- suspended --------------------------------------------------------------------------------------------------------------------------------


def test_while_it_is_suspended_connections_are_software_s():
    made = Made()
    with started(made) as one:
        one.submit(commands(10), 0)
        answered(one, 10)
        one.suspend("rules are missing")
        assert one.state == SUSPENDED and one.submit(commands(1), 0) == 0
        assert one.said == "rules are missing" and len(last(one)) == 10 and made.all[0].closed
        assert (one.resets, one.said, one.failures) == (1, "rules are missing", 0)
        one.resume()
        until(lambda: one.state == WORKING and len(made.all) == 2)
        assert one.submit(commands(5), 1) == 5 and len(answered(one, 5)) == 5


def test_suspended_again_before_it_has_resumed_is_suspended():
    made, busy, free = Made(), threading.Event(), threading.Event()
    with started(made) as one:
        made.all[0].during = lambda: [busy.set(), free.wait()]
        one.submit(commands(1), 0)
        busy.wait()
        for why in ("first", "second"):
            one.suspend(why)
            if why == "first":
                one.resume()
        free.set()
        until(lambda: one.said == "second")
        time.sleep(0.05)
        assert one.state == SUSPENDED and all(kernel.closed for kernel in made.all)
        one.resume()
        until(lambda: one.state == WORKING)


def test_the_last_reason_is_told():
    """Of rules whose change the kernel refuses: first that they are being changed, and then what it says."""
    made = Made()
    with started(made) as one:
        one.suspend("they are being changed")
        until(lambda: made.all[0].closed)
        one.suspend("Operation not supported")
        assert one.said == "Operation not supported"
        with pytest.raises(Down, match="Operation not supported"):
            one.held()
        one.resume()
        until(lambda: one.state == WORKING)
        assert one.said == ""


def test_one_that_has_failed_and_then_is_suspended_says_why_it_is():
    made = Made()
    with started(made) as one:
        made.all[0].during = fail
        made.broken = OSError(errno.ENODEV, "no such device")
        one.submit(commands(1), 0)
        until(lambda: one.state == FAILED and "no such device" in one.said)
        one.suspend("rules are missing")
        assert (one.state, one.said) == (SUSPENDED, "rules are missing")
        with pytest.raises(Down, match="rules are missing"):
            one.held()
        one.resume()
        until(lambda: one.state == FAILED)
        assert "no such device" in one.said
        made.broken = None
        one.resume()
        until(lambda: one.state == WORKING)
        assert one.said == ""

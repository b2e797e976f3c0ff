"""A backend in a thread: the worker never waits for it, what it says is of one moment, and whatever becomes of it is said, counted and made good."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from offload.records import COMMAND_DTYPE, Op
from offload.threaded import ENDED, FAILED, SUSPENDED, WORKING, Down, Threaded
from pcap_tests.test_offload.fake_nic import FakeNic

QUICK = {"heed": 0.005, "pause": 0.02}


class Kernel(FakeNic):
    """A backend that takes its time. during: called by each submit()."""

    def __init__(self) -> None:
        super().__init__()
        self.during: Callable[[], None] = lambda: None
        self.closed = False
        self.threads: set[str] = set()

    def submit(self, commands, now):
        self.threads.add(threading.current_thread().name)
        self.during()
        return super().submit(commands, now)

    def refusal(self, conn: int) -> str:
        return "no room" if conn == 7 else ""

    def close(self) -> None:
        self.closed = True
        self.rules.clear()


class Made:
    """Backends one after the other, as they are made. broken: what making one raises."""

    def __init__(self) -> None:
        self.all: list[Kernel] = []
        self.broken: Exception | None = None

    def __call__(self) -> Kernel:
        if self.broken is not None:
            raise self.broken
        self.all.append(Kernel())
        return self.all[-1]


def commands(n: int, op: Op = Op.REPLACE, first: int = 0) -> np.ndarray:
    rows = np.zeros(n, dtype=COMMAND_DTYPE)
    rows["cookie"], rows["op"] = (np.arange(first, first + n, dtype=np.uint64)) << 1, op
    return rows


@contextmanager
def started(made: Made, **more) -> Iterator[Threaded]:
    one = Threaded(made, **{**QUICK, **more})
    one.start()
    one.replies(0)
    try:
        yield one
    finally:
        one.close()


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)


def answered(one: Threaded, n: int) -> np.ndarray:
    """The next n replies."""
    found: list[np.ndarray] = []
    until(lambda: [found.append(one.replies(1)), sum(map(len, found)) >= n][1])
    return np.concatenate(found)


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
        one.replies(0)
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
    one.close()
    assert time.monotonic() - begun < 1 and any("does not end within" in record.getMessage() for record in caplog.records)
    with pytest.raises(Down):
        one.ask(lambda backend: None, 0.01)
    free.set()
    until(lambda: made.all[0].closed)


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
        until(lambda: made.all[0].closed)
        one.replies(1)
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

"""A backend that a thread keeps (offload.threaded): one that takes its time, and what is answered by it.

Not here: tests; commands that mean something (commanded).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from offload.records import COMMAND_DTYPE, Op
from offload.threaded import Threaded
from pcap_tests.test_offload.fake_nic import FakeNic

QUICK = {"heed": 0.005, "pause": 0.02}


class Kernel(FakeNic):
    """A backend that takes its time. during: called by each submit(); taking: by each step of emptying it."""

    def __init__(self) -> None:
        super().__init__()
        self.during: Callable[[], object] = lambda: None
        self.taking: Callable[[], object] = lambda: None
        self.closed = False
        self.given: list[int] = []  # how many commands at once
        self.threads: set[str] = set()

    def submit(self, commands, now):
        self.threads.add(threading.current_thread().name)
        self.given.append(len(commands))
        self.during()
        return super().submit(commands, now)

    def refusal(self, conn: int) -> str:
        return "no room" if conn == 7 else ""

    @property
    def left(self) -> int:
        return len(self.rules)

    def empty(self, now: int) -> Iterator[None]:
        cookies = list(self.rules)
        for at in range(0, len(cookies), 10):
            self.taking()
            for cookie in cookies[at : at + 10]:
                self.take_away(cookie)
            yield

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


def hit(kernel: Kernel, cookie: int, packets: int) -> None:
    """The row's and the direction's packets of 100 bytes come by."""
    assert kernel.hit(cookie >> 1, cookie & 1, packets, 100, 7)


def last(one: Threaded) -> dict[int, tuple[int, int]]:
    """Packets by cookie, and bytes, that are told with rules that have gone; all before `resets` says that hardware has begun anew."""
    found: dict[int, tuple[int, int]] = {}
    before = one.resets

    def anew() -> bool:
        rows = one.replies(1)
        if one.resets != before:
            assert not len(rows)
            return True
        found.update((int(row["cookie"]), (int(row["packets"]), int(row["bytes"]))) for row in rows if row["op"] == Op.GONE)
        return False

    until(anew)
    return found


def answered(one: Threaded, n: int) -> np.ndarray:
    """The next n replies."""
    found: list[np.ndarray] = []
    until(lambda: [found.append(one.replies(1)), sum(map(len, found)) >= n][1])
    return np.concatenate(found)

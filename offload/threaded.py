"""A backend in a thread of its own, so that who has commands for it never waits: a worker's turn puts them down, and takes what has been answered.

    worker   submit(commands)  -> a queue, bounded  ->  thread: backend.submit, backend.replies
    worker   replies()         <- what has come     <-
    others   ask(job), suspend(why), resume()       ->  done in that thread, too

Theory of operation: the backend is made by whoever makes this, so that what is wrong with it is known at once; from start() on it is the
thread's. Each time that it begins anew an epoch begins. Replies and `resets` are those of one moment, that of the last replies(): an epoch's answers
are all handed out before `resets` says that it is over, and what was asked in it is then neither carried out nor answered, for its cookies mean
nothing any more. The thread looks every HEED seconds what others have done to the backend, also if nobody asks for anything.
A backend that ends, be it suspended, failed or closed, is emptied some at a time, and what it says meanwhile (Op.GONE, with what was counted last)
belongs to its epoch still, so that no counts are lost.
Failures: whatever a backend raises ends it. It is closed, an epoch begins, the log says why, and it is made anew after a pause, longer each time;
meanwhile no command is taken, so all connections are software's. A thread that ends all the same says so, and takes none for ever.
Invariants: submit() and replies() wait for a few lines of Python at most; at most `most` commands wait; close() returns within LIMIT seconds in which
nothing less is left in the backend, and replies() has the last answers behind it.
Not here: backends, and rights: a new thread has those of its maker (datapath.live.privileges).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ctcore.errors import CtmirrorError
from offload.backend import Backend
from offload.records import REPLY_DTYPE

LOG = logging.getLogger("ctmirror")
MOST = 65_536  # commands that wait
HEED = 0.05  # seconds between two looks at what others do
LIMIT = 10.0  # seconds that a thread has for ending, or for having less left to take out than before
LOOK = 0.05  # seconds between two looks at that
PORTION = 1024  # commands after which it is seen whether they are still wanted
AUDIT = 30.0  # seconds for a list of what there is
PAUSE, MOST_PAUSE = 1.0, 64.0  # seconds until one that has failed is made again
SOUND = 60.0  # seconds of work after which a failure is the first one again
FULL = 0.01  # seconds until one that takes nothing is asked again
# Seconds that a thread at work in Python keeps a worker from its turn; the interpreter's own 0.005 would be five turns.
SWITCH = 1e-4
WORKING, SUSPENDED, FAILED, ENDED = "working", "suspended", "failed", "ended"
STATES = (WORKING, SUSPENDED, FAILED, ENDED)

T = TypeVar("T")


class Kept(Backend, Protocol):
    """A backend that holds something open."""

    def refusal(self, conn: int) -> str:
        """What was said when a connection's rule was refused last; "" if nothing is known. From any thread."""

    @property
    def left(self) -> int:
        """How many rules there are to be taken out. From any thread."""

    def empty(self, now: int) -> Iterator[None]:
        """Take all out, some at a time; replies() have a GONE for each rule, with what it had counted last. Raises, in the end, if some are left."""

    def close(self) -> None:
        """Nothing of it stays in hardware. Raises if some does."""


class Down(CtmirrorError):
    """There is no backend to be asked just now, and why."""


class _Batch(NamedTuple):
    epoch: int
    commands: NDArray[Any]
    now: int


class _Job(NamedTuple):
    work: Callable[[], Any]
    future: Future[Any]


class Threaded:
    """A Backend (offload.backend). make: makes the one in it, at once and after failures; most: commands that may wait. Raises what make() raises.

    start() it, in the network namespace where the backend is to be made again.
    """

    def __init__(self, make: Callable[[], Kept], name: str = "offload", *, most: int = MOST, heed: float = HEED, pause: float = PAUSE) -> None:
        self.name, self.most, self.heed = name, most, heed
        self.failures = 0
        self._make, self._first_pause, self._pause = make, pause, pause
        self._lock = threading.Lock()  # of what follows; held for a few lines
        self._waiting = self._epoch = self._seen = 0
        self._answers: list[NDArray[Any]] = []  # of this epoch
        self._last: list[NDArray[Any]] = []  # of the one that was seen, if it is over
        self._now = 0
        self._queue: SimpleQueue[_Batch | _Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ending = self._ended = False
        self._suspended = self._failed_by = ""  # why
        self._due = self._made_at = time.monotonic()  # when it is made again; when it was made
        self._made = make()  # the last one
        self._backend: Kept | None = self._made
        self._resets = self._made.resets

    # --- a backend, for the worker ----------------------------------------------------------------------------------------------------------

    def submit(self, commands: NDArray[Any], now: int) -> int:
        with self._lock:
            takes = self._backend is not None and not self._suspended and not self._ended and self._epoch == self._seen
            taken = min(len(commands), self.most - self._waiting) if takes else 0
            self._waiting += taken
            self._now = now
        if taken:
            self._queue.put(_Batch(self._seen, commands[:taken].copy(), now))
        return taken

    def replies(self, now: int) -> NDArray[Any]:
        with self._lock:
            self._now = now
            if self._last:
                found, self._last = self._last, []
            else:
                found, self._answers, self._seen = self._answers, [], self._epoch
        return np.concatenate(found) if found else np.empty(0, dtype=REPLY_DTYPE)

    @property
    def resets(self) -> int:
        return self._seen

    def held(self) -> NDArray[Any]:
        """Waits for the thread: not for a worker's turn. Raises Down."""
        return self.ask(lambda backend: backend.held())

    def refusal(self, conn: int) -> str:
        """From any thread."""
        backend = self._backend
        return "" if backend is None else backend.refusal(conn)

    # --- from any thread ------------------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Commands that were taken and not carried out."""
        return self._waiting

    @property
    def state(self) -> str:
        """One of STATES."""
        if self._ended:
            return ENDED
        return SUSPENDED if self._suspended else WORKING if self._backend is not None else FAILED

    @property
    def said(self) -> str:
        """Why it does not work: the last reason there is; "": it does."""
        return self._failed_by if self._ended else self._suspended or self._failed_by

    def ask(self, job: Callable[[Kept], T], patience: float = AUDIT) -> T:
        """Have something done in the thread, behind what waits there. Its exception is raised here; Down if there is no backend, or no answer."""

        def work() -> T:
            if self._backend is None:
                raise Down(f"{self.name}: there is no backend now: {self.said}")
            return job(self._backend)

        if self._thread is None:
            return work()
        try:
            return self._put(work).result(patience)
        except TimeoutError:
            raise Down(f"{self.name}: no answer within {patience:g} s") from None

    def suspend(self, why: str) -> None:
        """Have the backend end, and connections be software's, until resume()."""

        def end() -> None:
            self._suspended = why  # again: a resume() before it is done by now
            self._end_backend()

        self._suspended = why  # at once: what waits is not carried out any more
        self._put(end)

    def resume(self) -> None:
        """Have it made anew, behind all that was asked for before."""

        def again() -> None:
            self._end_backend()  # also where it was not even suspended yet
            self._suspended, self._due = "", time.monotonic()

        self._put(again)

    def start(self, enter: Callable[[], None] = lambda: None) -> None:
        """Begin. enter: what the thread does first."""
        sys.setswitchinterval(min(SWITCH, sys.getswitchinterval()))
        self._thread = threading.Thread(target=self._run, args=(enter,), name=self.name, daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """End the backend and the thread; whether they have ended. As long as less and less is left in the backend it is waited for; one that hangs
        is left behind, and the log says so. A second time it is not waited for."""
        if self._thread is None:
            if not self._ended:
                self._ended = True
                self._end_backend()
            return True
        if not self._ending:
            self._ending = True
            self._queue.put(None)
            self._wait_for(self._thread)
        return not self._thread.is_alive()

    def _wait_for(self, thread: threading.Thread) -> None:
        left, since = self._made.left, time.monotonic()
        while thread.is_alive() and time.monotonic() - since < LIMIT:
            thread.join(min(LOOK, LIMIT))
            before, left = left, self._made.left
            if left < before:
                since = time.monotonic()
        if thread.is_alive():
            LOG.error(f"{self.name}: does not end, and takes out nothing for {LIMIT:g} s: what it has in the kernel may be left there, {left} in all")
            self._ended = True

    # --- the thread -----------------------------------------------------------------------------------------------------------------------

    def _put(self, work: Callable[[], T]) -> Future[T]:
        job = _Job(work, Future())
        if self._thread is None:
            settle(*job)
        else:
            self._queue.put(job)
            if self._ended:
                self._refuse_all()
        return job.future

    def _run(self, enter: Callable[[], None]) -> None:
        try:
            enter()
            while not self._ending:
                try:
                    self._step()
                except Exception as error:
                    self._failed(error)
        except BaseException as error:  # it is this thread's end, whatever it was
            self.failures += 1
            self._failed_by = _told(error)
            LOG.exception(f"{self.name}: the thread of the backend has ended")
        finally:
            self._ended = True
            self._end_backend()
            self._refuse_all()

    def _step(self) -> None:
        """What comes next, or a look around."""
        if self._backend is None and not self._suspended and time.monotonic() >= self._due:
            self._make_again()
        try:
            work = self._queue.get(timeout=self.heed)
        except Empty:
            work = None
        if isinstance(work, _Job):
            settle(*work)
        elif isinstance(work, _Batch):
            try:
                self._carry_out(work)
            finally:
                with self._lock:
                    self._waiting -= len(work.commands)
        elif self._backend is not None:
            self._publish(self._backend, self._now)

    def _carry_out(self, batch: _Batch) -> None:
        rest = batch.commands
        while len(rest) and not self._ending and not self._suspended and self._backend is not None and batch.epoch == self._epoch:
            taken = self._backend.submit(rest[:PORTION], batch.now)
            self._publish(self._backend, max(batch.now, self._now))
            rest = rest[taken:]
            if len(rest) and not taken:
                time.sleep(FULL)

    def _publish(self, backend: Kept, now: int) -> None:
        rows, resets = backend.replies(now), backend.resets
        with self._lock:
            if resets != self._resets:
                self._resets = resets
                self._begin_epoch()
            if len(rows):
                self._answers.append(rows)

    def _begin_epoch(self) -> None:
        """With the lock. In an epoch that was not seen nothing was asked."""
        if self._epoch == self._seen:
            self._last = self._answers
        self._epoch += 1
        self._answers = []

    def _make_again(self) -> None:
        backend = self._make()
        with self._lock:
            self._made = self._backend = backend
            self._resets = backend.resets
        self._failed_by, self._made_at = "", time.monotonic()
        LOG.info(f"{self.name}: the backend works again")

    def _end_backend(self) -> None:
        """If there is one: nothing of it stays. What it says last is answered, and then an epoch begins."""
        with self._lock:
            backend, self._backend = self._backend, None
        if backend is None:
            return
        self._end(lambda: self._emptied(backend), "not all was taken out in order")  # what is left close() tries once more
        self._end(lambda: self._publish(backend, self._now), "what was counted last is lost")
        self._end(backend.close, "what was in the kernel may be left there")
        with self._lock:
            self._begin_epoch()

    def _emptied(self, backend: Kept) -> None:
        for _ in backend.empty(self._now):
            self._publish(backend, self._now)

    def _end(self, step: Callable[[], None], otherwise: str) -> None:
        """Whatever becomes of a step of the end, the next one is done."""
        try:
            step()
        except Exception as error:
            LOG.error(f"{self.name}: {otherwise}: {_told(error)}", exc_info=not _expected(error))

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if self._backend is not None and time.monotonic() - self._made_at >= SOUND:
            self._pause = self._first_pause
        self._failed_by = _told(error)
        self._end_backend()
        LOG.error(f"{self.name}: {self._failed_by}: connections are software's; tried again in {self._pause:g} s", exc_info=not _expected(error))
        self._due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, MOST_PAUSE)

    def _refuse_all(self) -> None:
        with suppress(Empty):
            while True:
                work = self._queue.get_nowait()
                if isinstance(work, _Job) and work.future.set_running_or_notify_cancel():
                    work.future.set_exception(Down(f"{self.name}: it has ended"))


def settle(work: Callable[[], Any], future: Future[Any]) -> None:
    """Do it, unless nobody wants it any more; its exception is the future's."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)


def _expected(error: BaseException) -> bool:
    """It is the kernel's, and no mistake of ours, of which one wants to know where."""
    return isinstance(error, (CtmirrorError, OSError))


def _told(error: BaseException) -> str:
    """One line."""
    return " ".join(str(error).split()) or type(error).__name__

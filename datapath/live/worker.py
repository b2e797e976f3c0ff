"""A worker of a node: its pipeline, its loop and its router, and the jobs that are done between two of its rounds.

Theory of operation: a thread works, without the GIL, in turns of a second at most. Whoever wants to see or change what is this worker's hands in a
job, and rings: the loop ends its turn after the round at hand, does the jobs, and goes on. What concerns all workers is a meeting: each comes to it
in its turn and stands still, and the last one to come does the job. Packets wait as long as it takes.
Invariants: jobs are done in the order in which they came, each once; all workers have meetings in the same order, so none waits for another for ever.
Not here: who hands in jobs (node), packets (loop).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from datapath.live.loop import Loop
from datapath.live.offloading import Front, Offloading
from datapath.live.router import Router
from datapath.ruled import RulePipeline

TURN = 1.0  # seconds without a job
STOPPING = "the node is stopping"

T = TypeVar("T")


class Work(Protocol):
    """What is done between two rounds, or refused at the end."""

    def do(self) -> None: ...
    def refuse(self) -> None: ...


class Job:
    """Something that one worker does."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()

    def do(self) -> None:
        settle(self.future, self.work)

    def refuse(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(RuntimeError(STOPPING))


class Meeting:
    """Something that is done while all workers stand still, by the last one that comes."""

    def __init__(self, workers: int, work: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self._refusing = threading.Lock()
        self._barrier = threading.Barrier(workers, action=lambda: settle(self.future, work))

    def do(self) -> None:
        with suppress(threading.BrokenBarrierError):  # another worker has ended, and refused it
            self._barrier.wait()

    def refuse(self) -> None:
        """It cannot take place: nobody waits for it any more."""
        self._barrier.abort()
        with self._refusing:
            if not self.future.done() and self.future.set_running_or_notify_cancel():
                self.future.set_exception(RuntimeError(STOPPING))


def settle(future: Future[Any], work: Callable[[], Any]) -> None:
    """Do it, unless nobody wants it any more; its exception is the future's."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)


class Worker:
    """One of a node's workers. number: from 0; cpu: where it runs, None: anywhere; offload: what it has in hardware, None: nothing."""

    def __init__(
        self, number: int, cpu: int | None, pipeline: RulePipeline, loop: Loop, router: Router | None, offload: Offloading | None = None
    ) -> None:
        self.number, self.cpu, self.pipeline, self.loop, self.router, self.offload = number, cpu, pipeline, loop, router, offload
        self.stopping = False
        self._work: SimpleQueue[Work] = SimpleQueue()

    @property
    def face(self) -> RulePipeline | Front:
        """Who counts all of this worker's packets."""
        front = None if self.offload is None else self.offload.front
        return self.pipeline if front is None else front

    def work(self) -> None:
        """Until stop(): in the thread that works from now on."""
        if self.cpu is not None:
            os.sched_setaffinity(0, {self.cpu})
        try:
            while not self.stopping:
                self.loop.run(TURN)
                for work in iter(self._next, None):
                    work.do()
        finally:
            self.stopping = True
            self._refuse()
            self.loop.end()

    def stop(self) -> None:
        """Have work() return, from any thread."""
        self.stopping = True
        self.loop.ring()

    def put(self, work: Work) -> None:
        """Hand something in, from any thread."""
        self._work.put(work)
        if self.stopping:
            self._refuse()
        else:
            self.loop.ring()

    def ask(self, job: Callable[[Worker], T]) -> Future[T]:
        """Have a job done between two rounds of this worker. Its exception is the future's; RuntimeError if the node stops before its turn comes."""
        one = Job(lambda: job(self))
        self.put(one)
        return one.future

    def _next(self) -> Work | None:
        try:
            return self._work.get_nowait()
        except Empty:
            return None

    def _refuse(self) -> None:
        for work in iter(self._next, None):
            work.refuse()

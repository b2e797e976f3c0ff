"""A server in a thread of its own beside the datapath: one event loop from its making to its close.

Invariants: whoever has made one may use it at once, for its thread has begun; close() returns when the thread has ended, a second time at once. What
goes wrong in it is in the log, and ends it alone.
Not here: what is served (control, metrics_server).
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from datapath.live.node import LOG


def nothing() -> None:
    """What most threads do first."""


class Attendant:
    """Serves what comes to a socket that listens, until close(). name: of the thread; enter: what it does first."""

    def __init__(self, name: str, made: socket.socket, enter: Callable[[], None] = nothing) -> None:
        self._socket, self._enter = made, enter
        self._loop, self._stopping = asyncio.new_event_loop(), asyncio.Event()
        self._loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix=name))  # a later import might not be allowed any more (privileges)
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    async def _serve(self) -> None:
        """All it does; ends when _stopping is set."""
        raise NotImplementedError

    def start(self) -> None:
        """The last thing that making one does."""
        self._thread.start()
        self._begun.wait()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._enter()
            self._begun.set()
            self._loop.run_until_complete(self._serve())
        except Exception:
            LOG.exception(f"{self._thread.name} has failed")
        finally:
            self._begun.set()
            self._socket.close()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Have tasks end, and wait until they have."""
    all_of_them = list(tasks)
    for task in all_of_them:
        task.cancel()
    await asyncio.gather(*all_of_them, return_exceptions=True)

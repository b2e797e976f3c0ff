"""Interfaces that go away while a node works, and others of their names that come: a pod's device, a NIC whose driver is loaded anew.

Theory of operation: a thread looks at each interface once a second, by a job of the worker that has it. What is gone stays where it was: it refuses
frames, and costs next to nothing. As soon as there is a device of its name, that is opened while all workers stand still, and takes its place. Until
then each try is one question for a name.
Invariants: an interface that is there is never touched. One that cannot be opened (other queues than before, rights given up) stays away, which the
log says once; everything else goes on.
Not here: how an interface is opened (node, drivers), how it takes the other's place (loop).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ctcore.errors import CtmirrorError
from datapath.errors import KernelError
from datapath.live.interfaces import index_of

if TYPE_CHECKING:
    from datapath.live.node import Node
    from datapath.live.privileges import Rights

PERIOD = 1.0  # seconds between two looks
LATE = 5.0  # seconds after which nobody waits for a job
LOG = logging.getLogger("ctmirror")


class Reopening:
    """The thread, from the beginning of the block to its end. rights: what the process has given up."""

    def __init__(self, node: Node, rights: Rights | None = None) -> None:
        self.node, self.rights = node, rights
        self.said: dict[str, str] = {}  # of each interface that is away, what was last told of it
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="interfaces", daemon=True)

    def __enter__(self) -> Reopening:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        if self.rights is not None and self.rights.wanted:
            self.rights.shed()
        while not self._ended.wait(PERIOD):
            for i, name in enumerate(self.node.names):
                with suppress(TimeoutError, RuntimeError):  # late, or the node is stopping
                    self._attend(i, name)

    def _attend(self, i: int, name: str) -> None:
        if not self._is_gone(i):
            self.said.pop(name, None)
            return
        self._say(name, "is gone: waiting for another one of this name")
        with suppress(KernelError):
            index_of(name)
            self._open(i, name)

    def _open(self, i: int, name: str) -> None:
        try:
            with self._standing():
                self.node.reopen(i)
        except CtmirrorError as error:
            self._say(name, f"cannot be opened again: {error}")
        else:
            LOG.info("the interface is there again", extra={"iface": name})

    def _is_gone(self, i: int) -> bool:
        """A device's queues go together."""
        iface = self.node.opened[i].ifaces[0]
        return self.node.workers[iface.worker].ask(lambda _: iface.look()).result(LATE) == "gone"

    @contextmanager
    def _standing(self) -> Iterator[None]:
        """All workers stand still until the end of the block. This thread opens: its network namespace is that which the node began in."""
        standing, done = threading.Event(), threading.Event()

        def stand(_: Node) -> None:
            standing.set()
            done.wait(LATE)

        future = self.node.ask(stand)
        try:
            if not standing.wait(LATE):
                raise TimeoutError
            yield
        finally:
            done.set()
            with suppress(TimeoutError, RuntimeError):
                future.result(LATE)

    def _say(self, name: str, text: str) -> None:
        if self.said.get(name) != text:
            self.said[name] = text
            LOG.warning(f"{name}: {text}", extra={"iface": name})

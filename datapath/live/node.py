"""A node that runs: memory, interfaces, rules and the loop, put together from its configuration; and turns for whoever wants something of it.

Theory of operation: one thread works, without the GIL, in turns of a second at most. Whoever wants to see or change tables hands in a job, and rings:
the loop ends its turn after the round at hand, does the jobs, and goes on. So a job finds nothing half done, and packets wait as long as it takes.
Invariants: jobs are done in the order in which they came, each once; after close() nothing is left open, whatever failed.
Not here: the configuration's text (config), commands from outside (control), packets (loop).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from ctcore.errors import ConfigError
from datapath.live.config import NodeConfig
from datapath.live.drivers import Opened, open_interface
from datapath.live.interfaces import queues_of
from datapath.live.loop import Loop
from datapath.live.neighbour_table import NeighbourTable
from datapath.live.router import Router
from datapath.live.umem import Umem
from datapath.live.xdp_filter import Network
from datapath.pipeline import rules_file
from datapath.pipeline.program import Program
from datapath.pipeline.rules import Ruleset
from datapath.ruled import RulePipeline

if TYPE_CHECKING:
    from datapath.live.neighbours import Neighbours

TURN = 1.0  # seconds without a job
RINGS = 4  # of each queue
FRAMES_PER_SLOT = 2  # so that a ring can be full while as many frames are on their way
LOG = logging.getLogger("ctmirror")

T = TypeVar("T")


class Node:
    """A node that is open: a pipeline, its interfaces, and the loop between them. close() it."""

    def __init__(self, config: NodeConfig, settled: Callable[[], None] = lambda: None) -> None:
        """Open everything. settled: called when all is open that needs rights, before the first thread begins.

        Raises ConfigError, RuleError, KernelError, MemoryError, and what settled() raises; then nothing is open.
        """
        self.config = config
        self.stopping = False
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[Node], Any]]] = SimpleQueue()
        self._closing = threading.Lock()
        with ExitStack() as stack:
            ruleset = rules_file.load(config.rules)
            names = [iface.name for iface in config.iface]
            self.pipeline = RulePipeline(ruleset, config.tracking(), devices=names, flowtable=config.flowtable)
            self.routed = [iface.name for iface in config.iface if iface.routed]
            self.local = self._host_networks(ruleset)
            self.umem = Umem(config.memory.chunks or _chunks(config), chunk_size=config.memory.chunk)
            self.opened = [self._open(stack, i) for i in range(len(names))]
            ifaces = [iface for opened in self.opened for iface in opened.ifaces]
            self.router = self._router(names)
            self.loop = Loop(self.pipeline, ifaces, inward=self._inward(), router=self.router)
            settled()
            self.neighbours = self._neighbours(stack)
            self._open_things = stack.pop_all()

    def _open(self, stack: ExitStack, i: int) -> Opened:
        section = self.config.iface[i]
        opened = open_interface(self.umem, section.name, section.wanted(i, self.local if section.routed else ()))
        stack.callback(opened.close)
        for sentence in opened.said:
            LOG.info(sentence, extra={"iface": section.name, "driver": opened.driver})
        return opened

    # What routers alone need is imported where there is one.

    def _host_networks(self, ruleset: Ruleset) -> tuple[Network, ...]:
        if not self.routed:
            return ()
        from datapath.live.neighbours import host_networks

        return host_networks(ruleset)

    def _router(self, names: list[str]) -> Router | None:
        if not self.routed:
            return None
        section = self.config.router
        router = Router(
            names, neighbours=NeighbourTable(section.neighbours), icmp_rate=section.icmp_rate, icmp_burst=section.icmp_burst,
            icmp_peer_rate=section.icmp_peer_rate, icmp_peer_burst=section.icmp_peer_burst,
        )  # fmt: skip
        for name in names:
            router.put_station(name, bytes(6), up=False, routed=name in self.routed)
        return router

    def _neighbours(self, stack: ExitStack) -> Neighbours | None:
        if self.router is None:
            return None
        from datapath.live.neighbours import Neighbours, StaticRoute

        routes = [
            StaticRoute(ip_network(route.prefix), None if route.via is None else ip_address(route.via), route.iface or "")
            for route in self.config.route
        ]
        watching = Neighbours(self.router, self.ask, routed=self.routed, routes=routes, kernel_routes=self.config.router.kernel_routes)
        stack.callback(watching.close)
        return watching

    def _inward(self) -> dict[str, str]:
        return {iface.name: iface.inward for iface in self.config.iface if iface.inward is not None}

    def work(self) -> None:
        """Until stop(): in the thread that works from now on."""
        if self.config.cpu is not None:
            os.sched_setaffinity(0, {self.config.cpu})
        try:
            while not self.stopping:
                self.loop.run(TURN)
                self._do_jobs()
        finally:
            self.stopping = True
            self._refuse_jobs()

    def stop(self) -> None:
        """Have work() return, from any thread."""
        self.stopping = True
        self.loop.ring()

    def ask(self, job: Callable[[Node], T]) -> Future[T]:
        """Have a job done between two rounds. Its exception is the future's; RuntimeError if the node stops before its turn comes."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        if self.stopping:
            self._refuse_jobs()
        else:
            self.loop.ring()
        return future

    def _do_jobs(self) -> None:
        for future, job in iter(self._next_job, None):
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job(self))
            except Exception as error:
                future.set_exception(error)

    def _next_job(self) -> tuple[Future[Any], Callable[[Node], Any]] | None:
        try:
            return self._jobs.get_nowait()
        except Empty:
            return None

    def _refuse_jobs(self) -> None:
        for future, _ in iter(self._next_job, None):
            if future.set_running_or_notify_cancel():
                future.set_exception(RuntimeError("the node is stopping"))

    def load_rules(self, ruleset: Ruleset | None = None) -> Program:
        """Compile rules, those of the configured file without any: for take_rules(). From any thread, while the node works: it takes its time.
        Raises RuleError, ConfigError.
        """
        ruleset = rules_file.load(self.config.rules) if ruleset is None else ruleset
        return self.pipeline.compiled(ruleset, devices=[iface.name for iface in self.config.iface])

    def take_rules(self, program: Program) -> int:
        """Go on with these rules; how many they are. A job. Connections stay, and so do those in the flow table; what the new rules say of them is
        asked with their next packets. Raises ConfigError; then the old rules go on.
        """
        self.pipeline.take(program)
        self.loop.aim(self._inward())
        LOG.info("rules loaded", extra={"rules": len(program.ruleset.rules)})
        return len(program.ruleset.rules)

    def close(self) -> None:
        """Give everything back. Not while work() is at it."""
        self._open_things.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _chunks(config: NodeConfig) -> int:
    """As many as fill all rings, and as many again."""
    slots = sum(RINGS // 2 * iface.ring * (1 if iface.driver == "tap" else queues_of(iface.name)) for iface in config.iface)
    if slots > 1 << 22:
        raise ConfigError(f"iface: {slots} slots in rings: expected {1 << 22} at most; make `ring` smaller")
    return FRAMES_PER_SLOT * slots

"""A node that runs: memory, interfaces, rules and workers, put together from its configuration; and turns for whoever wants something of it.

Theory of operation: each worker has a table, rules and queues of its own, and a thread; frames that are another one's are handed over (handoff). Jobs
for the node are done while all its workers stand still between two rounds, so they find nothing half done anywhere; what takes long is asked of one
worker after the other (Worker.ask).
Invariants: jobs are done in the order in which they came, each once; after close() nothing is left open, whatever failed.
Not here: the configuration's text (config), commands from outside (control), packets (loop), one worker's turns (worker).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.tracker import Tracker
from datapath.errors import KernelError
from datapath.live.config import NodeConfig
from datapath.live.drivers import Opened, open_interface
from datapath.live.handoff import Exchange
from datapath.live.interfaces import queues_of
from datapath.live.loop import Loop
from datapath.live.neighbour_table import NeighbourTable
from datapath.live.offloading import Factory, Offloading, reasons_of
from datapath.live.router import Router
from datapath.live.shared import check_shared, divided, shares_of, summed
from datapath.live.umem import Umem
from datapath.live.wiring import doubts_of
from datapath.live.worker import Meeting, Worker
from datapath.live.xdp_filter import Network
from datapath.pipeline import rules_file
from datapath.pipeline.findings import Findings
from datapath.pipeline.program import Program
from datapath.pipeline.renamed import renamed
from datapath.pipeline.rules import Ruleset
from datapath.ruled import RulePipeline

if TYPE_CHECKING:
    from datapath.live.neighbours import Neighbours

RINGS = 4  # of each queue
FRAMES_PER_SLOT = 2  # so that a ring can be full while as many frames are on their way
LOG = logging.getLogger("ctmirror")

T = TypeVar("T")


class Loaded(NamedTuple):
    """A worker's rules, and the same as its hardware wants them."""

    program: Program
    hardware: Any


class Node:
    """A node that is open: its workers and their interfaces. close() it."""

    def __init__(self, config: NodeConfig, settled: Callable[[], None] = lambda: None, offload: Factory | None = None) -> None:
        """Open everything. settled: called when all is open that needs rights, before the first thread begins; offload: makes what workers have in
        hardware.

        Raises ConfigError, RuleError, KernelError, MemoryError, and what settled() raises; then nothing is open.
        """
        self.config = config
        self.tracking: Config = config.tracking()  # of all workers together
        self._asking = threading.Lock()
        self._check_cpus()
        with ExitStack() as stack:
            ruleset = self._read_rules()
            self.names = [iface.name for iface in config.iface]
            self.routed = [iface.name for iface in config.iface if iface.routed]
            self.local = self._host_networks(ruleset)
            pipelines = self._pipelines(ruleset)
            offloads = self._offloads(stack, pipelines, offload)
            self.not_offloaded = reasons_of(offload) if None in offloads else ()  # why, a line each
            chunks = divided(config.memory.chunks, config.workers) or _chunks(config)
            self.umem = Umem(chunks, chunk_size=config.memory.chunk, workers=config.workers)
            self.opened: list[Opened] = []
            self._steered = frozenset[str]().union(*(made.steered for made in offloads if made is not None))
            self._bypass = next((made.bypass for made in offloads if made is not None), None)
            for i in range(len(self.names)):
                self.opened.append(self._open(i))
                stack.callback(self._close_interface, i)
            self.workers = self._make_workers(stack, pipelines, offloads)
            settled()
            for made in offloads:
                if made is not None:
                    made.start()
            self.neighbours = self._neighbours(stack)
            self._open_things = stack.pop_all()

    def _read_rules(self) -> Ruleset:
        """The configured file. What is doubtful of it is said in the log. Raises RuleError."""
        found = Findings()
        ruleset = self.called(rules_file.load(self.config.rules, found))
        check_shared(ruleset, self.config.workers)
        for said in (*found.warnings, *doubts_of(self.config, ruleset)):
            LOG.warning(said)
        return ruleset

    def called(self, ruleset: Ruleset) -> Ruleset:
        """Rules at interfaces of this node, where they name functions of NICs as its configuration does. Raises RuleError."""
        return renamed(ruleset, self.config.called)

    def _check_cpus(self) -> None:
        """Raises ConfigError for one that is not this process's."""
        allowed = os.sched_getaffinity(0)
        for cpu in self.config.places:
            if cpu not in allowed:
                raise ConfigError(f"cpus: {cpu}: expected one of {', '.join(map(str, sorted(allowed)))}")

    def _pipelines(self, ruleset: Ruleset) -> list[RulePipeline]:
        made: list[RulePipeline] = []
        for share in shares_of(self.tracking, self.config.workers):
            beside = made[0].program if made else None
            made.append(RulePipeline(ruleset, share, devices=self.names, flowtable=self.config.flowtable, beside=beside))
        return made

    @staticmethod
    def _offloads(stack: ExitStack, pipelines: Sequence[RulePipeline], offload: Factory | None) -> list[Offloading | None]:
        found: list[Offloading | None] = []
        for i, pipeline in enumerate(pipelines):
            made = None if offload is None else offload(pipeline, i, len(pipelines))
            if made is not None:
                stack.callback(made.close)
            found.append(made)
        return found

    def _make_workers(self, stack: ExitStack, pipelines: Sequence[RulePipeline], offloads: Sequence[Offloading | None]) -> list[Worker]:
        ends: Sequence[Any] = [None]
        self.exchange: Exchange | None = None
        if self.config.workers > 1:
            self.exchange = Exchange(self.umem)
            stack.callback(self.exchange.close)
            pipelines[0].tracker.tell_strays(self.exchange.strays)
            ends = self.exchange.ends
        made = []
        for number, (pipeline, end, offload) in enumerate(zip(pipelines, ends, offloads, strict=True)):
            ifaces = [iface for opened in self.opened for iface in opened.ifaces if iface.worker == number]
            router = self._router()
            front, turn = (None, None) if offload is None else (offload.front, offload.turn)
            loop = Loop(pipeline, ifaces, inward=self._inward(), router=router, handoff=end, front=front, turn=turn)
            made.append(Worker(number, self.config.places[number] if self.config.places else None, pipeline, loop, router, offload))
        return made

    def _close_interface(self, i: int) -> None:
        self.opened[i].close()

    def _open(self, i: int) -> Opened:
        """Raises KernelError, and ConfigError if it is not opened as offloading wants it."""
        section = self.config.iface[i]
        wanted = replace(section.wanted(i, self.local if section.routed else ()), bypass=self._bypass)
        opened = open_interface(self.umem, section.name, wanted)
        for sentence in opened.said:
            LOG.info(sentence, extra={"iface": section.name, "driver": opened.driver})
        if section.name in self._steered and not opened.driver.startswith("xdp"):
            opened.close()
            raise ConfigError(f"offload: {section.name}: {opened.said[-1]}: expected XDP: TC has the same frames, and would forward them again")
        function = self.config.function_of(section.name)
        if function is not None:
            LOG.info(f"{section.name}: stands for {function}", extra={"iface": section.name, "function": function})
        return opened

    # What routers alone need is imported where there is one.

    def _host_networks(self, ruleset: Ruleset) -> tuple[Network, ...]:
        if not self.routed:
            return ()
        from datapath.live.neighbours import host_networks

        return host_networks(ruleset)

    def _warn_of_host(self, ruleset: Ruleset) -> None:
        """Which frames are the host's was said to XDP when the node was opened."""
        if not self.routed:
            return
        from datapath.live.neighbours import wanted_of_host

        if found := wanted_of_host(ruleset, self.local):
            which = ", ".join(found)
            LOG.warning(f"{which}: the host's, and rules translate to it now: where XDP is used, answers to it come to the rules after a restart")

    def _router(self) -> Router | None:
        """A worker's own: its ICMP errors are its part of all."""
        if not self.routed:
            return None
        section, n = self.config.router, self.config.workers
        router = Router(
            self.names, neighbours=NeighbourTable(section.neighbours), icmp_rate=section.icmp_rate / n, icmp_burst=max(section.icmp_burst / n, 1),
            icmp_peer_rate=section.icmp_peer_rate / n, icmp_peer_burst=max(section.icmp_peer_burst / n, 1),
        )  # fmt: skip
        for name in self.names:
            router.put_station(name, bytes(6), up=False, routed=name in self.routed)
        return router

    def _neighbours(self, stack: ExitStack) -> Neighbours | None:
        routers = [worker.router for worker in self.workers if worker.router is not None]
        if not routers:
            return None
        from datapath.live.neighbours import Neighbours, StaticRoute

        routes = [
            StaticRoute(ip_network(route.prefix), None if route.via is None else ip_address(route.via), route.iface or "")
            for route in self.config.route
        ]
        watching = Neighbours(routers, self.ask, routed=self.routed, routes=routes, kernel_routes=self.config.router.kernel_routes)
        stack.callback(watching.close)
        return watching

    def _inward(self) -> dict[str, str]:
        return {iface.name: iface.inward for iface in self.config.iface if iface.inward is not None}

    # The first worker's, which is all there is of a node with one.

    @property
    def pipeline(self) -> RulePipeline:
        return self.workers[0].pipeline

    @property
    def loop(self) -> Loop:
        return self.workers[0].loop

    @property
    def router(self) -> Router | None:
        return self.workers[0].router

    @property
    def stopping(self) -> bool:
        return any(worker.stopping for worker in self.workers)

    @property
    def trackers(self) -> list[Tracker]:
        """By worker. For jobs, or while nobody works."""
        return [worker.pipeline.tracker for worker in self.workers]

    @property
    def count(self) -> int:
        """Connections of all workers. A job, or while nobody works."""
        return sum(tracker.count for tracker in self.trackers)

    def loop_counters(self) -> dict[str, int]:
        """Of all loops together."""
        return summed(worker.loop.counters() for worker in self.workers)

    # --- at work --------------------------------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Until stop(): in this thread and one more for each further worker. Raises what one of them has raised; the others have stopped then."""
        failed: list[BaseException] = []

        def work(worker: Worker) -> None:
            try:
                worker.work()
            except BaseException as error:
                failed.append(error)
            finally:
                self.stop()

        threads = [threading.Thread(target=work, args=(worker,), name=f"worker-{worker.number}") for worker in self.workers[1:]]
        for thread in threads:
            thread.start()
        work(self.workers[0])
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    def stop(self) -> None:
        """Have work() return, from any thread."""
        for worker in self.workers:
            worker.stop()

    def ask(self, job: Callable[[Node], T]) -> Future[T]:
        """Have a job done while all workers stand still between two rounds. Its exception is the future's; RuntimeError if the node stops before."""
        meeting = Meeting(len(self.workers), lambda: job(self))
        with self._asking:
            for worker in self.workers:
                worker.put(meeting)
        return meeting.future

    def load_rules(self, ruleset: Ruleset | None = None) -> list[Loaded]:
        """Compile rules, those of the configured file without any, for each worker: for take_rules(). From any thread, while the node works: it takes
        its time. Raises RuleError, ConfigError.
        """
        if ruleset is None:
            ruleset = self._read_rules()
        check_shared(ruleset, self.config.workers)
        self._warn_of_host(ruleset)
        made: list[Loaded] = []
        for worker in self.workers:
            program = worker.pipeline.compiled(ruleset, devices=self.names, beside=made[0].program if made else None)
            made.append(Loaded(program, None if worker.offload is None else worker.offload.prepare(program)))
        return made

    def take_rules(self, loaded: Sequence[Loaded]) -> int:
        """Go on with these rules; how many they are. A job. Connections stay, and so do those in the flow table and in hardware; what the new rules
        say of them is asked with their next packets. Raises ConfigError; then the old rules go on.
        """
        for worker, (program, _) in zip(self.workers, loaded, strict=True):  # all of them, or none
            if program.tracks:
                worker.pipeline.tracker.widen(program.config)
        for worker, (program, prepared) in zip(self.workers, loaded, strict=True):
            worker.pipeline.take(program)
            if worker.offload is not None:
                worker.offload.take(prepared)
            worker.loop.aim(self._inward())
        rules = len(loaded[0].program.ruleset.rules)
        LOG.info("rules loaded", extra={"rules": rules})
        return rules

    def reopen(self, i: int) -> None:
        """Open interface i again, whose device is gone, and go on with it. While all workers stand still, in the network namespace that the node was
        opened in. Raises KernelError, ConfigError; then everything is as it was.
        """
        old, new = self.opened[i], self._open(i)
        if len(new.ifaces) != len(old.ifaces):
            new.close()
            raise KernelError(f"{new.name}: {len(new.ifaces)} queues: expected {len(old.ifaces)}, as before")
        for before, after in zip(old.ifaces, new.ifaces, strict=True):
            self.workers[before.worker].loop.replace(before, after)
        self.opened[i] = new
        old.close()

    def take_out(self) -> bool:
        """Nothing is in hardware any more; for who goes on without this node. Whether nobody is at work there any more. Not while work() is at it."""
        ended = [worker.offload.close() for worker in self.workers if worker.offload is not None]
        return all(ended)

    def close(self) -> None:
        """Give everything back. Not while work() is at it."""
        self._open_things.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _chunks(config: NodeConfig) -> int:
    """As many as fill all rings of a worker, and as many again."""
    queues = {iface.name: 1 if iface.driver in ("tap", "null") else divided(queues_of(iface.name), config.workers) for iface in config.iface}
    slots = sum(RINGS // 2 * iface.ring * queues[iface.name] for iface in config.iface)
    if slots * config.workers > 1 << 22:
        raise ConfigError(f"iface: {slots * config.workers} slots in rings: expected {1 << 22} at most; make `ring` smaller")
    return FRAMES_PER_SLOT * slots

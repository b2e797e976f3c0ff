"""Offloading of a node to the kernel's TC, and through it to NICs: what `[offload] backend = "tc"` is made of.

    flow table -> mirror (each worker's) -> Threaded -> ConntrackEntries, with rules in TC (KernelRules)     pipeline
                                                     -> ExactRules                                           exact
                                                             both with the bypass of XDP, but for exact filters that only a NIC has

Theory of operation: the first worker's part decides the way, installs rules and makes the bypass, which are all workers'; the last one to be closed
takes them away. As long as rules in TC are not as they should be nothing is let by, and no connection is in the kernel: software has them all.
Invariants: what is let by to the kernel has its rules there (order: the bypass is shut before rules of ours are taken away or put back, and opened
when all of them are there; as to filters and entries, backends see to the same); at the end nothing of ours is left, but rules that are to stay.
Not here: which way (offload_ways), rules (tc.following), threads (offload.threaded), backends (offload).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctcore.errors import ConfigError, CtmirrorError
from datapath.commands.offload_drift import found_of_rules
from datapath.commands.offload_live import MOST_FINDINGS, Live, Look
from datapath.commands.offload_ways import KERNEL, NIC, Prober, Way, chosen, probe
from datapath.commands.tc.ask import KernelTc
from datapath.commands.tc.following import KernelRules, Unfit
from datapath.commands.tc.install import MARK
from datapath.live.shared import divided
from datapath.live.xdp_bypass import XdpBypass
from datapath.pipeline.rules import Ruleset
from datapath.ruled import RulePipeline
from offload.backend import Bypass
from offload.bypassed import Bypassed
from offload.conntrack_entries import ConntrackEntries
from offload.drift import Drift, Finding, entries_of, of_states
from offload.exact_rules import ExactRules
from offload.idle_devices import IdleDevices
from offload.mirror import Mirror
from offload.mirror_settings import MirrorSettings
from offload.netlink.exact import Prios
from offload.netlink.monitor import Monitor
from offload.records import COMMAND_DTYPE
from offload.sides import Sides, side
from offload.threaded import STATES, SUSPENDED, Down, Kept, Threaded
from offload.trials import PIPELINE

if TYPE_CHECKING:
    from datapath.live.config import NodeConfig, OffloadSection
    from datapath.pipeline.program import Program

LOG = logging.getLogger("ctmirror")
NAME = "tc"
MOST_FLOWS = 1 << 22


def sides_of(section: OffloadSection) -> Sides:
    """Raises ConfigError."""
    return Sides([side(each.device, each.networks, each.zone, each.chain) for each in section.side])


class Shared:
    """What all workers of a node have together. why: not more, a line for each better way; idle: devices that no packet comes through."""

    def __init__(self, way: Way, why: Sequence[str], rules: KernelRules | None, bypass: XdpBypass | None, idle: IdleDevices) -> None:
        self.way, self.why, self.rules, self.bypass, self.idle = way, tuple(why), rules, bypass, idle
        self.threads: list[Threaded] = []
        self.open = 0  # workers that are not closed

    def broken(self, why: str) -> None:
        """Rules are missing in TC: nothing goes there. From the thread of the rules."""
        for thread in self.threads:
            thread.suspend(f"rules in TC: {why}")
        if self.bypass is not None:
            self.bypass.shut()

    def mended(self) -> None:
        if self.bypass is not None:
            self.bypass.open()
        for thread in self.threads:
            thread.resume()

    def close(self) -> None:
        """Of the last worker."""
        self.open -= 1
        if not self.open:
            with ExitStack() as stack:  # the last one first
                if self.bypass is not None:
                    stack.callback(self.bypass.close)
                if self.rules is not None:
                    stack.callback(self.rules.close)
                if self.bypass is not None:
                    stack.callback(self.bypass.shut)  # a thread that hangs may have left keys in it


class KernelLive(Live):
    """An Offloading (datapath.live.offloading) whose backend is the kernel's, in a thread. number: the worker's."""

    def __init__(self, pipeline: RulePipeline, mirror: Mirror, backend: Threaded, shared: Shared, number: int) -> None:
        super().__init__(pipeline, mirror, backend, NAME)
        self.threaded, self.shared, self.number = backend, shared, number
        self.flows.mirrored()
        self.closed = False
        shared.threads.append(backend)
        shared.open += 1

    @property
    def bypass(self) -> XdpBypass | None:
        return self.shared.bypass

    @property
    def steered(self) -> frozenset[str]:
        """Where rules or filters are in software."""
        software = self.shared.way.where == KERNEL or self.shared.rules is not None
        return frozenset(self.shared.way.devices) if software else frozenset()

    def start(self) -> None:
        self.threaded.start()
        if self.shared.rules is not None and self.number == 0:
            self.shared.rules.start()

    def prepare(self, program: Program) -> Ruleset:
        return program.ruleset

    def take(self, prepared: Any) -> None:
        if self.shared.rules is not None and self.number == 0:
            self.shared.rules.take(prepared)

    def close(self) -> bool:
        if not self.closed:
            self.closed = True
            try:
                self.threaded.close()
            finally:
                self.shared.close()
            self.turn(self.pipeline.tracker.now)  # what was counted last
        return self.threaded.close()

    def about(self) -> dict[str, Any]:
        """`tc`: see docs/offload-tc.md; what is of the whole node is the first worker's to tell."""
        state = self.threaded.state
        told: dict[str, Any] = {
            "way": self.shared.way.way, "where": self.shared.way.where, "devices": list(self.shared.way.devices), "why": list(self.shared.why),
            "threads": {each: int(each == state) for each in STATES}, "failures": self.threaded.failures, "waiting": self.threaded.waiting,
            "said": [self.threaded.said] if self.threaded.said else [],
        }  # fmt: skip
        if self.number == 0:
            told["rules"] = None if self.shared.rules is None else self.shared.rules.figures()
            told["idle"] = {device: str(what) for device, what in self.shared.idle.idle.items()}
        return {**super().about(), "tc": told}

    def look(self) -> Look:
        """What the backend holds, and what the kernel says of it; of the first worker also what it says of rules and devices. While rules are missing
        nothing is held, which is drift."""
        found = list(self._of_node()) if self.number == 0 else []
        states = None
        try:
            held, states = self.threaded.ask(_listed)
        except Down:
            if self.threaded.state != SUSPENDED:
                raise
            held = np.empty(0, dtype=COMMAND_DTYPE)
            found.append(Finding(Drift.SUSPENDED, f"worker {self.number}", self.threaded.said))
        drift = sum(finding.drift for finding in found)
        if states is not None:
            drift += int(np.count_nonzero(states["mark"] != states["meant"]))
            found += islice(of_states(states), MOST_FINDINGS)
        found.sort(key=lambda finding: not finding.drift)
        return Look(held, tuple(found[:MOST_FINDINGS]), drift, None if states is None else entries_of(states))

    def _of_node(self) -> Iterable[Finding]:
        """Raises CtmirrorError."""
        return self.shared.idle.findings() if self.shared.rules is None else self.shared.rules.ask(found_of_rules)

    def _why_of(self, conn: Any) -> dict[str, Any]:
        told = super()._why_of(conn)
        number = int(conn["flow"]["id"][0])
        return {**told, "kernel": self.threaded.refusal(number) if not told["hardware"] else ""}


def _listed(backend: Kept) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """What it holds, and what the kernel says of entries, by one list."""
    return backend.both() if isinstance(backend, ConntrackEntries) else (backend.held(), None)


class TcFactory:
    """A Factory (datapath.live.offloading). Called for the first worker first. prober: what devices take; why: not a better way, a line each."""

    def __init__(self, config: NodeConfig, prober: Prober = probe) -> None:
        self.config, self.prober = config, prober
        self.shared: Shared | None = None
        self.why: Sequence[str] = ()
        self._rules: KernelRules | None = None
        self._idle = IdleDevices()

    def __call__(self, pipeline: RulePipeline, number: int, workers: int) -> KernelLive | None:
        """Raises ConfigError, NetlinkError, KernelError, OSError."""
        if number == 0:
            self.shared = self._begun(pipeline.program.ruleset)
        if self.shared is None:
            return None
        if pipeline.flows is None:
            raise ConfigError("offload: expected a flow table")
        shared, settings = self.shared, MirrorSettings(policy=self.config.offload.policy)
        try:
            threaded = Threaded(self._backend(shared, number, workers), f"offload-{number}")
            return KernelLive(pipeline, Mirror(pipeline.flows.rows, settings), threaded, shared, number)
        except BaseException:
            if not shared.open:  # nobody else closes it
                shared.open = 1
                shared.close()
            raise

    def _begun(self, ruleset: Ruleset) -> Shared | None:
        """Raises ConfigError, with a way that was told and cannot be."""
        way, why = chosen(self.config, lambda way: self._installed(way, ruleset), self.prober)
        self.why = why
        for line in why:
            LOG.info(f"offload: {line}")
        if way is None:
            LOG.warning("offload: nothing is offloaded: no way of offloading to TC is left", extra={"why": why})
            return None
        LOG.info(f"offload: {way.told()}", extra={"way": way.way, "where": way.where, "devices": list(way.devices)})
        if way.way == PIPELINE:
            self._warn(way)
        rules, self._rules = self._rules, None
        try:
            # Also with a NIC: a connection gets there by a packet that comes to act_ct in software.
            bypass = XdpBypass() if way.way == PIPELINE or way.where == KERNEL else None
        except BaseException:
            if rules is not None:
                rules.close()
            raise
        return Shared(way, why, rules, bypass, self._idle)

    def _warn(self, way: Way) -> None:
        for iface in self.config.iface:
            if iface.name in way.devices and not iface.filter.all:
                LOG.warning(f"offload: {iface.name}: rules in TC are for what its `filter` leaves to the host as well")

    def _installed(self, way: Way, ruleset: Ruleset) -> Sequence[str]:
        """Rules in TC, where they are needed; or why not."""
        if way.way != PIPELINE:
            return ()
        kernel = KernelTc(MARK)
        try:
            monitor = Monitor(kernel.channel.socket)
        except BaseException:
            kernel.channel.close()
            raise
        keep = self.config.offload.rules == "keep"
        try:
            self._rules = KernelRules(
                kernel, monitor, ruleset, keep=keep, in_hardware=way.where == NIC, broken=self._broken, mended=self._mended, idle=self._idle
            )  # fmt: skip
        except Unfit as error:
            return error.lines
        except CtmirrorError as error:
            return (str(error),)
        return ()

    def _broken(self, why: str) -> None:
        if self.shared is not None:
            self.shared.broken(why)

    def _mended(self) -> None:
        if self.shared is not None:
            self.shared.mended()

    def _backend(self, shared: Shared, number: int, workers: int) -> Callable[[], Kept]:
        """What makes a worker's."""
        bypass: Bypass | None = shared.bypass
        if shared.way.way == PIPELINE:
            hz = self.config.tracking().hz
            return lambda: entries_made(hz, divided(MOST_FLOWS, workers), bypass)
        section = self.config.offload
        sides, prios, nic = sides_of(section), Prios(0, section.prio + 2 * number), shared.way.where == NIC

        def made() -> Kept:
            exact = ExactRules(sides, prios, skip_sw=nic, most=divided(MOST_FLOWS, workers), idle=shared.idle)
            return exact if bypass is None else Bypassed(exact, bypass)

        return made


def entries_made(hz: int, most: int, bypass: Bypass | None) -> ConntrackEntries:
    """A worker's. What it has set in the kernel, and what it misses there, is in the log."""
    entries = ConntrackEntries(hz=hz, most=most, bypass=bypass)
    if entries.counting.changed:
        LOG.info("offload: nf_conntrack_acct is 1 from now on, so that entries have counters")
    for sentence in entries.lacks:
        LOG.warning(f"offload: {sentence}")
    return entries

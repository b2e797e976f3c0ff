"""A replay through rules with a NIC in front of them: what a RuledRun does, with an Offloaded in place of its pipeline.

Not here: frames between NIC and software (offloaded), what is told to people (report_nic).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ctcore.types import Dir
from datapath import fields
from datapath.app import Capture, RulesGiven, Tracking
from datapath.cli import complain
from datapath.commands.framed import framed
from datapath.commands.nic_option import mirror_settings
from datapath.commands.nic_rules import nic_rules
from datapath.commands.offload_counts import last_look
from datapath.commands.offload_ledger import Ledger
from datapath.commands.offload_watch import Watch
from datapath.commands.offloaded import Offloaded, mirror_of
from datapath.frame import FRAME_DTYPE
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import Hook
from datapath.pipeline.rules_file import parse
from datapath.ruled_run import RuledRun
from offload.simnic.kernel import CACHED
from offload.simnic.nic import Nic
from offload.simnic.profile import Profile
from offload.simnic.ready import ready

WIRE, BEHIND = "wire", "behind"  # devices of a capture that comes without rules
PROTOCOLS = ("ip", "ipv6")
TAGS = ("802.1Q", "802.1ad")
# What flower looks behind: IP as it is, behind a tag, and behind two.
TRACKED = (
    *((protocol, "") for protocol in PROTOCOLS),
    *((tag, f"vlan_ethtype {protocol} ") for tag in TAGS for protocol in PROTOCOLS),
    *((outer, f"vlan_ethtype {inner} cvlan_ethtype {protocol} ") for outer in TAGS for inner in TAGS for protocol in PROTOCOLS),
)
TRACK = "tc filter add dev {0} ingress protocol {2} prio {3} chain 0 flower {4}ct_state -trk action ct pipe action goto chain 1\n"
SEND = """
tc filter add dev {0} ingress protocol all prio 1 chain 1 flower ct_state +trk+new action ct commit pipe action mirred egress redirect dev {1}
tc filter add dev {0} ingress protocol all prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev {1}
"""
SOON = 1.0  # s
COMPILING = "compiling the simulated NIC (once): this takes half a minute"
COMPILING_ALWAYS = (
    "compiling the simulated NIC, as at every start, for there is no folder to keep it in: this takes half a minute; "
    "NUMBA_CACHE_DIR=FOLDER names one that can be written"
)
OTHERS = "tc filter add dev {0} ingress protocol all prio 99 chain {2} flower action mirred egress redirect dev {1}\n"


def rules_for_any() -> RulesGiven:
    """Rules for a capture that comes without: all that rules see is tracked in zone 0, and everything goes through."""
    text = "".join(TRACK.format(WIRE, BEHIND, protocol, i, match) for i, (protocol, match) in enumerate(TRACKED, 1))
    text += SEND.format(WIRE, BEHIND) + "".join(OTHERS.format(WIRE, BEHIND, chain) for chain in (0, 1))
    return RulesGiven(parse(text, "built in", Findings()), "built in", Hook(WIRE), fixed=True)


@dataclass(frozen=True)
class NicGiven:
    """profile: of a NIC; policy: which flow makes room when it is full (MirrorSettings); watch: whoever looks on, made for the work that is
    done; framed: whether packets without Ethernet headers are taken as if they had them, which is for who writes none; flags: the options that said
    so, to be repeated in a command that is suggested."""

    profile: Profile
    policy: str = "first-come"
    watch: Callable[[Offloaded], Watch] | None = None
    framed: bool = False
    flags: str = ""


def compiled() -> None:
    """Have numba compile the simulated NIC, which it does once and keeps where it can; whoever has to wait for it is told."""
    slow = threading.Timer(SOON, complain, (COMPILING if CACHED else COMPILING_ALWAYS,))
    slow.daemon = True
    slow.start()
    try:
        ready(FRAME_DTYPE)
    finally:
        slow.cancel()


class OffloadedRun(RuledRun):
    """One replay behind a NIC while it lasts. Raises ConfigError for rules without a flow table."""

    pipeline: Offloaded
    ledger: Ledger | None

    def __init__(self, *run: Any, nic: NicGiven, **options: Any) -> None:
        self.given, self.ledger = nic, None
        super().__init__(*run, **options)

    def make_pipeline(self, tracking: Tracking) -> Offloaded:
        pipeline = super().make_pipeline(tracking)
        compiled()
        hardware = Nic(self.given.profile, nic_rules(pipeline.program.ruleset, pipeline.program.device), seed=self.config.seed)
        work = Offloaded(pipeline, hardware, mirror_of(pipeline, mirror_settings(self.given.profile, self.given.policy)))
        if self.given.watch is not None:
            work.watch = self.given.watch(work)
        elif self.outputs.conns or self.outputs.events or not self.given.profile.counters.accounting:
            work.watch = self.ledger = Ledger(work, self._drain, self._tell if self.outputs.events else None)
        return work

    def arrived_as(self, memory: Any, frames: np.ndarray) -> tuple[Any, np.ndarray]:
        if not self.given.framed:
            return memory, frames
        memory, frames, n = framed(memory, frames)
        self.pipeline.framed += n
        return memory, frames

    def work(self, facts: Capture, memory: Any, frames: np.ndarray) -> None:
        super().work(facts, memory, frames)
        if not self.result.tally:  # what rules do not look at is told of all the same
            self.result.headers.look(memory, frames)

    def _tell(self, events: np.ndarray, what: str) -> None:
        """Events that the tracker does not know. what: each of them is about."""
        records = self.told(fields.event_records(events, self.config.hz, self.config.acct))
        self.writers["events"].write({**record, "changes": (what,)} for record in records)

    def ended(self, ended: np.ndarray) -> None:
        super().ended(ended)
        if self.ledger is not None:
            self.ledger.forget(ended["conn"]["flow"]["id"][:, Dir.ORIG].tolist())

    def told(self, records: Iterator[fields.Record]) -> Iterator[fields.Record]:
        return records if self.ledger is None else self.ledger.told(records)

    def whole(self, conns: np.ndarray) -> np.ndarray:
        return conns if self.ledger is None else self.ledger.whole(conns)

    def in_hardware(self) -> Collection[int]:
        """Rules at egress hooks are never there, and those that the NIC does not take."""
        kept, rules = self.pipeline.nic.kept(), self.rules.ruleset.rules
        return {i for i, rule in enumerate(rules) if rule.hook.direction != "egress" and i not in kept}

    def finish(self) -> None:
        now = self.pipeline.tracker.now
        self.pipeline.settle(now)
        last_look(self.pipeline, now)
        if self.ledger is not None:
            self.ledger.close()
        super().finish()
        self.result.nic, self.result.nic_flags = self.pipeline, self.given.flags


def behind_nic(tracking: Tracking, given: NicGiven) -> tuple[Tracking, Callable[..., OffloadedRun]]:
    """Settings with rules, those that are built in if there are no others, and the kind of run that has the NIC in front of them."""
    if tracking.rules is None:
        tracking = replace(tracking, rules=rules_for_any())
    return tracking, partial(OffloadedRun, nic=given)

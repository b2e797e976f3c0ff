"""Offloading for a node that runs: what datapath.live.offloading asks of it, of a mirror and any backend, and with the simulated NIC as one.

    make = simulated(profile, policy)                           what `run` hands to the node
    one = make(pipeline, worker, workers)                       for each worker: a mirror, a share of the NIC

Theory of operation: a worker's connections are its own, so each worker has a mirror of its flow table, and a NIC with its part of the limits. What
goes by between flow table and mirror is noted down (offload_notes), for who asks why.
Invariant: nothing of the backend is known here but what offload.backend says; of a simulated NIC, Simulated knows the rest.
Not here: jobs and requests (datapath.live), what is printed (offload_node).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ctcore.types import Dir, Proto, State, Status, TcpState
from datapath.commands.nic_option import mirror_settings
from datapath.commands.offload_audit import JOBS, conns_of, differences, figures
from datapath.commands.offload_notes import FlowNotes
from datapath.commands.offload_said import ITEMS, says
from datapath.commands.offload_watch import Watched
from datapath.live.shared import divided
from datapath.pipeline.program import Program
from datapath.ruled import RulePipeline
from offload.backend import Backend
from offload.contract import admission
from offload.contract.objects import Conn, Tuple
from offload.contract.why import Why
from offload.drift import Entries, Finding, of_audit
from offload.mirror import OUTCOMES, Mirror
from offload.pump import pump

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from datapath.commands.offloaded import Offloaded
    from datapath.live.xdp_bypass import XdpBypass
    from offload.simnic.profile import Profile

MOST = 1024  # asks, and commands, of one turn: some 0.2 ms
MOST_DIFFERENCES, MOST_FINDINGS = 100, 100  # lines of an audit
OPS = {"replace": "add", "destroy": "del", "stats": "stats"}
DIRECTIONS = ("original", "reply")
REFUSED = {Why.HW_FULL: "refused_full", Why.DRV_UNSUPPORTED: "refused_unsupported", Why.HW_REFUSED: "refused_other", Why.HW_SILENT: "lost"}
COUNTED = ("evictions", "resets", "spared", "kept_out", "held_back", "called_off", "strays", "withdrawn", "strange")


class Look(NamedTuple):
    """What there is to be compared. held: as Backend.held() said; findings: of the kernel, at most MOST_FINDINGS, those first that are drift; drift:
    how many that are in all; entries: of the kernel's conntrack, None: the backend has none there."""

    held: NDArray[Any]
    findings: tuple[Finding, ...] = ()
    drift: int = 0
    entries: Entries | None = None


class Live:
    """An Offloading (datapath.live.offloading) with any backend. pipeline: with a flow table that is mirrored, see Flows.mirrored(); name: the
    backend's."""

    @property
    def front(self) -> Offloaded | None:
        return None

    def __init__(self, pipeline: RulePipeline, mirror: Mirror, backend: Backend, name: str) -> None:
        self.pipeline, self.mirror, self.backend, self.name = pipeline, mirror, backend, name
        self.notes = FlowNotes(mirror)
        assert pipeline.flows is not None and mirror.size >= pipeline.flows.rows
        self.flows = pipeline.flows

    @property
    def bypass(self) -> XdpBypass | None:
        return None

    @property
    def steered(self) -> frozenset[str]:
        return frozenset()

    def start(self) -> None:
        """No threads of its own."""

    def look(self) -> Look | None:
        """Only the worker itself may ask the backend."""
        return None

    def turn(self, now: int) -> int:
        pump(Watched(self.flows, self.notes, now), self.mirror, self.backend, now, MOST)
        return 0 if self.mirror.outstanding else min(self.flows.due, self.mirror.due)

    def prepare(self, program: Program) -> Any:
        return None

    def take(self, prepared: Any) -> None:
        """The backend has nothing of the rules."""

    def close(self) -> bool:
        """Nothing of the backend is anybody else's."""
        return True

    # --- what is told --------------------------------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """Of the backend: its name and kind; entries, and how many there can be, None: nobody knows, or no limit; packets and bytes by who had them,
        hardware's as it has told; SYNs that it took, None: nobody knows; what stayed in software, by why."""
        flows, summary = self.flows.counters(), self.pipeline.summary()
        refused = {name.removeprefix("refused_"): n for name, n in flows.items() if name.startswith("refused_")}
        return {
            "backend": self.name, "profile": None, "entries": self.mirror.counters()["rules"], "capacity": None,
            "packets": {"hardware": flows["hw_packets"], "software": int(summary["total_packets"])},
            "bytes": {"hardware": flows["hw_bytes"], "software": int(summary["total_bytes"])}, "syns": None,
            "software_packets": refused, "software_bytes": {}, "tc": None,
        }  # fmt: skip

    def figures(self) -> dict[str, Any]:
        told = self.mirror.counters()
        return {
            **self.about(),
            "policy": self.mirror.settings.policy,
            "flows": {"wanted": told["flows"], "installed": told["offloaded"]},
            "rules": told["rules"],
            "jobs": {job: told[f"pending_{job}"] for job in JOBS},
            "queue": {"mirror": told["queued"], "hardware": told["outstanding"]},
            "commands": {op: {outcome: told[f"{job}_{outcome}"] for outcome in OUTCOMES} for op, job in OPS.items()},
            "dropped": {job: told[f"dropped_{job}"] for job in JOBS},
            "refused": {str(why): told[name] for why, name in REFUSED.items()},
            **{name: told[name] for name in COUNTED},
        }

    def reasons(self, rows: range) -> tuple[dict[str, int], int]:
        return {str(why): n for why, n in self.mirror.reasons(rows).items() if why is not None}, self.mirror.used

    def audit(self, look: Look | None = None) -> dict[str, Any]:
        look = Look(self.backend.held()) if look is None else look
        found = self.mirror.audit(look.held)
        told, some = figures(self.mirror, look.held, found), found[:MOST_DIFFERENCES]
        kernel = [] if look.entries is None else list(of_audit(some, conns_of(self.mirror, look.held, some)))
        return {
            **told, "differences": list(differences(self.mirror, look.held, some)), "drift": look.drift + (told["differ"] if kernel else 0),
            "findings": [finding.record() for finding in (*kernel, *look.findings)],
            "entries": None if look.entries is None else look.entries._asdict(),
        }  # fmt: skip

    # --- one connection ------------------------------------------------------------------------------------------------------------------------

    def why(self, conns: NDArray[Any]) -> list[dict[str, Any]]:
        return [self._why_of(conn) for conn in conns]

    def _why_of(self, conn: Any) -> dict[str, Any]:
        """hardware: directions that are there; code, item, says: why not the connection, None: it is in; job: on its way; retry: s until it is tried
        again; counted: what hardware has told, None: unknown; syns; missed: why packets of it come to software all the same, None: none has;
        kernel: what the kernel said when it refused it last."""
        number = int(conn["flow"]["id"][Dir.ORIG])
        row = self.notes.row.get(number)
        known = None if row is None else self.mirror.why(row)
        if known is None or row is None or known["conn"] != number:
            return self._told(self._outside(conn, number))
        there = [name for name, held in zip(DIRECTIONS, known["held"], strict=True) if held is not None]
        counts, now = self.notes.counts(row), self.pipeline.tracker.now
        code = None if known["why"] is None else str(known["why"])
        if not conn["status"] & Status.OFFLOAD:  # torn down: its rules are there until the next round (A7.57)
            code = self._outside(conn, number) or code
        more = {
            "hardware": there, "job": known["job"], "refusals": known["refusals"],
            "retry": None if known["retry_at"] is None else max(round((known["retry_at"] - now) / 1e9, 3), 0.0),
            "counted": {name: _amount(getattr(counts, name)) for name in (*DIRECTIONS, "both")},
            "syns": self.notes.syns(row), "missed": self.notes.missed(row),
        }  # fmt: skip
        return self._told(code, **more)

    @staticmethod
    def _told(code: str | None, **more: Any) -> dict[str, Any]:
        unknown: dict[str, Any] = {
            "hardware": [],
            "job": None,
            "refusals": 0,
            "retry": None,
            "counted": dict.fromkeys((*DIRECTIONS, "both")),
            "syns": 0,
            "missed": None,
            "kernel": "",
        }
        item = ITEMS.get(Why(code)) if code in set(Why) else None
        missed = more.get("missed")
        told = {"code": code, "item": item, "says": None if code is None else says(code)}
        return {**unknown, **told, **more, "missed_says": None if missed is None else says(missed)}

    def _outside(self, conn: Any, number: int) -> str | None:
        """Why a connection is not in the flow table, or not known to the mirror yet. None: its next packet would be its admission."""
        if conn["status"] & Status.OFFLOAD:
            return str(Why.PENDING)
        said = admission.refusal(_contracted(conn), State.ESTABLISHED if conn["status"] & Status.SEEN_REPLY else State.NEW)
        left = self.notes.left.get(number)
        return left if left is not None else None if said is None else str(said)


def _amount(each: tuple[int, int] | None) -> dict[str, int] | None:
    return None if each is None else {"packets": each[0], "bytes": each[1]}


def _contracted(conn: Any) -> Conn:
    """CONN_DTYPE as the contract has it."""
    sides = []
    for side in (Dir.ORIG, Dir.REPLY):
        key = conn["flow"]["key"][side]
        size = 4 if key["family"] == 4 else 16
        sides.append(Tuple(key["src"].tobytes()[:size], key["dst"].tobytes()[:size], int(key["sport"]), int(key["dport"]), int(key["proto"])))
    status = int(conn["status"])
    state = TcpState(int(conn["tcp"]["state"])) if sides[0].proto == Proto.PROTO_TCP else None
    return Conn(sides[0], sides[1], status=status, tcp_state=state, helper=bool(status & Status.HELPER))


# --- the simulated NIC ----------------------------------------------------------------------------------------------------------------------


class Simulated(Live):
    """With a NIC that frames meet first. nic: its rules are the pipeline's."""

    def __init__(self, pipeline: RulePipeline, nic: Any, policy: str) -> None:
        from datapath.commands.offloaded import Offloaded, mirror_of

        mirror = mirror_of(pipeline, mirror_settings(nic.profile, policy))
        self.nic, self.offloaded = nic, Offloaded(pipeline, nic, mirror, MOST)
        super().__init__(pipeline, mirror, nic, "sim")
        self.offloaded.watch, self.notes.kept = self.notes, nic.kept()

    @property
    def front(self) -> Offloaded:
        return self.offloaded

    def turn(self, now: int) -> int:
        self.offloaded.settle(now)
        return self.offloaded.due

    def prepare(self, program: Program) -> Any:
        from datapath.commands.nic_rules import nic_rules

        return self.nic.compiled(nic_rules(program.ruleset, program.device))

    def take(self, prepared: Any) -> None:
        self.offloaded.take(prepared)
        self.notes.kept = self.nic.kept()

    def about(self) -> dict[str, Any]:
        shares, profile = self.offloaded.shares, self.nic.profile
        software = {"packets": shares.frames - shares.hardware, "bytes": shares.bytes - shares.hardware_bytes}
        return {
            "backend": self.name, "profile": profile.name, "entries": self.nic.tabled, "capacity": profile.table.capacity or None,
            "packets": {"hardware": shares.hardware, "software": software["packets"]},
            "bytes": {"hardware": shares.hardware_bytes, "software": software["bytes"]}, "syns": shares.syns,
            "software_packets": dict(self.notes.packets), "software_bytes": dict(self.notes.sizes), "tc": None,
        }  # fmt: skip


def share_of(profile: Profile, workers: int) -> Profile:
    """A worker's part of a NIC: entries, and how many rules a second."""
    if workers == 1:
        return profile
    table = profile.table.model_copy(update={"capacity": divided(profile.table.capacity, workers)})
    rates = {
        "inserts": profile.rates.inserts / workers,
        "burst": divided(profile.rates.burst, workers),
        "queue": divided(profile.rates.queue, workers),
    }
    return profile.model_copy(update={"table": table, "rates": profile.rates.model_copy(update=rates)})


def simulated(profile: Profile, policy: str, faults: tuple[Any, ...] = ()) -> Callable[[RulePipeline, int, int], Simulated]:
    """A factory for a node (datapath.live.offloading.Factory). faults: of each worker's NIC, beside those of the profile."""

    def make(pipeline: RulePipeline, worker: int, workers: int) -> Simulated:
        from datapath.commands.nic_rules import nic_rules
        from datapath.commands.offloaded_run import compiled
        from offload.simnic.nic import Nic

        compiled()  # before the node takes packets, which would have to wait for it
        program = pipeline.program
        nic = Nic(share_of(profile, workers), nic_rules(program.ruleset, program.device), faults, pipeline.tracker.config.seed)
        return Simulated(pipeline, nic, policy)

    return make

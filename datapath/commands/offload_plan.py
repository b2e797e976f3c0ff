"""What-if: the same captures behind NICs of other kinds, sizes and speeds, one after the other.

    for scenario in scenarios(profiles, policies, tables, inserts):
        outcome = tried(captures, tracking, scenario)

Invariant: every scenario begins with nothing tracked and nothing in hardware, so that their order does not matter.
Not here: what is counted meanwhile (offload_series), tables and plots (offload_shown, offload_plot).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from ctcore.errors import CtmirrorError
from datapath.app import Outputs, Progress, Tracking, replay
from datapath.commands.offload_counts import counted_of
from datapath.commands.offload_said import says
from datapath.commands.offload_series import Series
from datapath.commands.offloaded import Offloaded
from datapath.commands.offloaded_run import NicGiven, behind_nic
from datapath.hints import OF_RULES, hints_of
from offload.simnic.profile import Profile


@dataclass(frozen=True)
class Scenario:
    """A NIC, and which connection makes room when it is full."""

    profile: Profile
    policy: str

    @property
    def table(self) -> int:
        """Entries, 0: no limit."""
        return self.profile.table.capacity

    @property
    def inserts(self) -> float:
        """Inserts and deletes a second, 0: at once."""
        return self.profile.rates.inserts

    @property
    def rate(self) -> str:
        """inserts for people, without an exponent."""
        return f"{self.inserts:,.0f}" if self.inserts.is_integer() else f"{self.inserts:,}"

    @property
    def title(self) -> str:
        table = f"{self.table:,} entries" if self.table else "any number of entries"
        inserts = f"{self.rate} inserts/s" if self.inserts else "inserts at once"
        return f"{self.profile.name}, {self.policy}, {table}, {inserts}"


def scenarios(
    profiles: Iterable[Profile], policies: Iterable[str], tables: Sequence[int] | None = None, inserts: Sequence[float] | None = None
) -> list[Scenario]:
    """All combinations, each once. tables, inserts: instead of what the profiles say of capacity and rate; None: as they say."""
    found = []
    for profile, policy, table, rate in product(profiles, policies, tables or (None,), inserts or (None,)):
        capacity = profile.table if table is None else profile.table.model_copy(update={"capacity": table})
        rates = profile.rates if rate is None else profile.rates.model_copy(update={"inserts": float(rate)})
        found.append(Scenario(profile.model_copy(update={"table": capacity, "rates": rates}), policy))
    return [scenario for i, scenario in enumerate(found) if scenario not in found[:i]]


@dataclass(frozen=True)
class Outcome:
    """What came of a scenario. syns: contract A4.27; counters: Mirror.counters(); errors: what stopped the reading of a capture; framed:
    packets that came without an Ethernet header, and were given one; loose: packets in hardware of no connection, which rules alone sent on; hints:
    what rules do not look at."""

    scenario: Scenario
    series: Series
    packets: int
    hardware_packets: int
    bytes: int
    hardware_bytes: int
    connections: int
    syns: int
    counters: dict[str, int]
    errors: tuple[str, ...]
    framed: int = 0
    loose: int = 0
    hints: tuple[str, ...] = ()

    @property
    def hardware_connections(self) -> int:
        return len(self.series.conns)

    @property
    def entries(self) -> int:
        """The most at a time, of CT and CT_NAT together."""
        return max((second.entries for second in self.series.seconds.values()), default=0)

    @property
    def waiting(self) -> int:
        """The most connections at a time that were on their way into hardware or out of it."""
        return max((second.waiting for second in self.series.seconds.values()), default=0)

    @property
    def refused(self) -> dict[str, int]:
        return {name: self.counters[f"refused_{name}"] for name in ("full", "unsupported", "other")}

    @property
    def busiest(self) -> tuple[int, int]:
        """Packets of the busiest second, and the most that software had in one."""
        seconds = self.series.seconds.values()
        most = max((second.packets for second in seconds), default=0)
        return most, max((second.packets - second.hardware_packets for second in seconds), default=0)

    def reasons(self) -> list[tuple[str, int, int]]:
        """(code, packets, bytes) of what stayed in software, the most packets first."""
        each = [(code, reason.packets, reason.bytes) for code, reason in self.series.reasons.items()]
        return sorted(each, key=lambda one: (-one[1], one[0]))


def tried(captures: Sequence[str], tracking: Tracking, scenario: Scenario, progress: Progress | None = None) -> Outcome:
    """Replay captures behind a scenario's NIC. Raises KeyboardInterrupt, and whatever ends a replay."""
    made: list[Series] = []

    def watch(work: Offloaded) -> Series:
        made.append(Series(work))
        return made[0]

    tracking, kind = behind_nic(tracking, NicGiven(scenario.profile, scenario.policy, watch, framed=True))
    result = replay(captures, tracking, Outputs(), summary=False, progress=progress, kind=kind)
    if result.interrupted:
        raise KeyboardInterrupt
    work: Offloaded = result.nic
    shares = work.shares
    return Outcome(
        scenario, made[0], shares.frames, shares.hardware, shares.bytes, shares.hardware_bytes, result.counters["new"], shares.syns,
        work.mirror.counters(), tuple(result.errors), work.framed, max(shares.hardware - counted_of(work).all, 0), tuple(hints_of(result, OF_RULES)),
    )  # fmt: skip


def share(part: int, whole: int) -> float | None:
    """None of nothing."""
    return part / whole if whole else None


def figures(outcome: Outcome) -> dict[str, Any]:
    """All figures of a scenario, for JSON. Shares are from 0 to 1; `start` is a second since the epoch."""
    scenario, (came, software) = outcome.scenario, outcome.busiest
    sums = {
        name: {"all": whole, "hardware": part, "share": share(part, whole)}
        for name, part, whole in (
            ("packets", outcome.hardware_packets, outcome.packets),
            ("bytes", outcome.hardware_bytes, outcome.bytes),
            ("connections", outcome.hardware_connections, outcome.connections),
        )
    }
    return {
        "nic": scenario.profile.name, "policy": scenario.policy, "table": scenario.table, "inserts": scenario.inserts, **sums,
        "entries_most": outcome.entries, "waiting_most": outcome.waiting, "refused": outcome.refused,
        "loose": outcome.loose,
        "inserted": outcome.counters["accepted"], "evictions": outcome.counters["evictions"], "cpu_packets_saved": outcome.hardware_packets,
        "busiest_second": {"packets": came, "software": software}, "syns_in_hardware": outcome.syns,
        "reasons": [{"code": code, "packets": packets, "bytes": size, "says": says(code)} for code, packets, size in outcome.reasons()],
        "seconds": [{"start": start, **asdict(second)} for start, second in sorted(outcome.series.seconds.items())],
    }  # fmt: skip


def document(captures: Sequence[str], rules: str | None, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The JSON of a plan. framed: packets that were given an Ethernet header; hints: sentences.

    Invariant: packets in hardware and those of all reasons are all packets.
    """
    framed, hints = (outcomes[0].framed, outcomes[0].hints) if outcomes else (0, ())
    each = [figures(outcome) for outcome in outcomes]
    return {"captures": list(captures), "rules": rules, "framed": framed, "hints": list(hints), "scenarios": each}


def rereadable(captures: Sequence[str], times: int) -> None:
    """Raises CtmirrorError where several scenarios would read what can be read once only."""
    if times > 1 and "-" in captures:
        raise CtmirrorError(f"-: stdin can be read once, and there are {times} scenarios: expected a file")

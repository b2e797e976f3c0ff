"""What the kernel has otherwise than it is meant, finding by finding, each with a word: connections of a mirror, and its conntrack zone by zone.

Theory of operation: three sides are compared two by two: what a mirror means with the entries that a backend holds (the mirror's own audit); these
with what the kernel says of them, which knows marks and flow tables; and the kernel's conntrack with the zones that rules speak of.
Invariant: what is as it happens to be while packets flow is a note and no drift: a connection that nobody has sent a packet of lately is in no flow
table.
Not here: filters, which only rules can be compared with (datapath.commands.offload_drift); asking (conntrack_entries, netlink.conntrack).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.types import Proto, Status, TcpState
from offload.mirror import Found
from offload.netlink.conntrack import HW_OFFLOAD, OFFLOAD

DIRECTIONS = ("original", "reply")


class Drift(StrEnum):
    """What is otherwise."""

    DEVICE_MISSING = "device missing"
    DEVICE_DOWN = "device down"
    QDISC_MISSING = "qdisc missing"
    CHAIN_MISSING = "chain missing"
    FILTER_MISSING = "filter missing"
    FILTER_CHANGED = "filter changed"
    FILTER_EXTRA = "filter extra"
    FILTER_FOREIGN = "filter foreign"
    ENTRY_MISSING = "entry missing"
    ENTRY_CHANGED = "entry changed"
    ENTRY_EXTRA = "entry extra"
    MARK_CHANGED = "mark changed"
    OFFLOADED_ELSEWHERE = "offloaded elsewhere"
    NOT_OFFLOADED = "not offloaded"
    SUSPENDED = "suspended"
    NO_FLOWER = "no flower"


NOTES = frozenset({Drift.NOT_OFFLOADED, Drift.NO_FLOWER})  # the latter is why filters are missing, which are counted
OF_AUDIT = {int(Found.MISSING): Drift.ENTRY_MISSING, int(Found.DIFFERENT): Drift.ENTRY_CHANGED, int(Found.EXTRA): Drift.ENTRY_EXTRA}


class Finding(NamedTuple):
    """about: a connection, a filter as tc has it, a device, a zone; why: more of it, or ""."""

    what: Drift
    about: str
    why: str = ""

    @property
    def drift(self) -> bool:
        return self.what not in NOTES

    def told(self) -> str:
        return f"{self.what}: {self.about}" + (f": {self.why}" if self.why else "")

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"what": self.what.replace(" ", "_"), "drift": self.drift, "about": self.about, "why": self.why or None}


class Zone(NamedTuple):
    """Of the kernel's conntrack: connections that are not over, those of them that act_ct would offload (A2.7), and has, and hardware has."""

    zone: int
    connections: int
    established: int
    offloaded: int
    in_hardware: int


class Entries(NamedTuple):
    """Of a backend's entries in the kernel: those a flow table has, and hardware; the others have no packets just now, or no rule offloads them."""

    entries: int
    offloaded: int
    in_hardware: int


def of_connections(audit: NDArray[Any], states: NDArray[Any]) -> Iterator[Finding]:
    """audit: AUDIT_DTYPE[n], of Mirror.audit() with what a backend holds; states: entry_lists.STATE_DTYPE[n] of the same time."""
    named = states[np.isin(states["cookie"] >> np.uint64(1), audit["cookie"] >> np.uint64(1))]
    yield from of_audit(audit, {int(row["cookie"]) >> 1: int(row["conn"]) for row in named})
    yield from of_states(states)


def of_audit(audit: NDArray[Any], conns: Mapping[int, int]) -> Iterator[Finding]:
    """Of Mirror.audit(). conns: connections by cookie >> 1, where they are known."""
    for row in audit:
        conn = conns.get(int(row["cookie"]) >> 1)
        about = f"connection {conn}" if conn is not None else f"flow {int(row['row'])}"
        yield Finding(OF_AUDIT[int(row["found"])], f"{about}, {DIRECTIONS[row['dir']]} direction")


def of_states(states: NDArray[Any]) -> Iterator[Finding]:
    """What the kernel says of entries; marks first. Only what is found takes time."""
    for row in states[states["mark"] != states["meant"]]:
        why = f"{int(row['mark']):#x}, and was made with {int(row['meant']):#x}"
        yield Finding(Drift.MARK_CHANGED, f"connection {int(row['conn'])}", why)
    waiting = states["counted"] & states["packets"].any(axis=1) & (states["status"] & OFFLOAD == 0)
    for row in states[waiting]:
        why = "packets have come, and no flow table has it: none lately, or none by a ct action"
        yield Finding(Drift.NOT_OFFLOADED, f"connection {int(row['conn'])}", why)


def entries_of(states: NDArray[Any]) -> Entries:
    offloaded, in_hardware = (int(np.count_nonzero(states["status"] & bit)) for bit in (OFFLOAD, HW_OFFLOAD))
    return Entries(len(states), offloaded, in_hardware)


def zones_of(rows: NDArray[Any], status: NDArray[Any]) -> list[Zone]:
    """Of the kernel's list (KernelConntrack.all)."""
    zones = rows["flow"]["key"]["zone"][:, 0]
    established = _established(rows, status)
    offloaded, in_hardware = (status & OFFLOAD) != 0, (status & HW_OFFLOAD) != 0
    return [
        Zone(int(zone), *(int(np.count_nonzero((zones == zone) & which)) for which in (zones == zone, established, offloaded, in_hardware)))
        for zone in np.unique(zones)
    ]


def _established(rows: NDArray[Any], status: NDArray[Any]) -> NDArray[Any]:
    """Assured; TCP that is not about to end. Of what a flow table has the kernel tells no state."""
    proto, state = rows["flow"]["key"]["proto"][:, 0], rows["tcp"]["state"]
    talks = (proto != Proto.PROTO_TCP) | (state == TcpState.TCP_ESTABLISHED) | ((status & OFFLOAD) != 0)
    able = np.isin(proto, [Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_GRE])
    return able & talks & ((status & Status.ASSURED) != 0)


def of_zones(zones: Collection[Zone], meant: Collection[int]) -> Iterator[Finding]:
    """meant: the zones that rules track connections in."""
    for zone in zones:
        if zone.offloaded and zone.zone not in meant:
            yield Finding(Drift.OFFLOADED_ELSEWHERE, f"zone {zone.zone}", f"{zone.offloaded:,} of its connections, and no rule has this zone")
        elif zone.zone in meant and zone.established > zone.offloaded:
            less = zone.established - zone.offloaded
            why = f"{less:,} of {zone.established:,} established: none of their packets came lately, or none by a ct action"
            yield Finding(Drift.NOT_OFFLOADED, f"zone {zone.zone}", why)

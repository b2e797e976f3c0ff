"""What a NIC takes of a capture, second by second: packets, bytes, entries, the queue; and why the others stayed in software.

One slice: 256 packets -> 200 by the NIC -> its second gets 256 and 200; each of the 56 others has one reason.
Invariant: packets in hardware and those of all reasons together are all packets; so are bytes.
Not here: how frames go (offloaded), what is told to people (offload_shown).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.flow_changes import Answered, Asked
from ctcore.types import Offload, State
from datapath.commands.offload_said import lacking, missed
from datapath.commands.offload_watch import Seen, misses
from datapath.commands.offloaded import Offloaded
from offload.contract.why import OF_OFFLOAD
from offload.contract.why import Why as Contract

SECOND = 1_000_000_000


@dataclass
class Second:
    """What came in a second of the capture's time. entries, in CT and CT_NAT together, and waiting: the most at a time; the latter are connections
    that are on their way into hardware or out of it (contract A3.24)."""

    packets: int = 0
    hardware_packets: int = 0
    bytes: int = 0
    hardware_bytes: int = 0
    entries: int = 0
    waiting: int = 0


@dataclass
class Reason:
    """What stayed in software for the same reason."""

    packets: int = 0
    bytes: int = 0


class Reasons:
    """Why a packet that software had was not the NIC's: what the flow table says of its connection, else the mirror, else the NIC."""

    def __init__(self, work: Offloaded) -> None:
        self.work = work
        self.row: dict[int, int] = {}  # of the flow table, by the number of a connection that is in it

    def asked(self, asks: NDArray[Any]) -> None:
        for ask, conn, row in zip(asks["ask"].tolist(), asks["conn"].tolist(), asks["row"].tolist(), strict=True):
            if ask == Asked.REMOVE:
                self.row.pop(conn, None)
            else:
                self.row[conn] = row

    def of(self, seen: Seen) -> Iterator[tuple[int, str]]:
        """(row of the slice, code) of all that software had."""
        if seen.decisions is None:
            return
        whys, kept = misses(seen, self.work.nic.kept())
        decided = (seen.decisions[name].tolist() for name in ("offload", "state", "conn"))
        for row, *said in zip(seen.soft.tolist(), whys.tolist(), kept.tolist(), *decided, strict=True):
            yield row, self._code(*said)

    def _code(self, why: int, kept: int, offload: int, state: int, conn: int) -> str:
        if why < 0:
            return "egress"
        said = self.of_conn(conn, why) if offload == Offload.OFFLOAD_SOFTWARE else OF_OFFLOAD[offload]
        if said is not None:
            return said.value
        return "invalid" if state == State.INVALID else missed(why, kept)

    def of_conn(self, conn: int, why: int) -> Contract | None:
        """Why a packet of a connection that is in the flow table was none of hardware's; None: the NIC knows, which missed it for `why`."""
        row = self.row.get(conn)
        known = None if row is None else self.work.mirror.why(row)
        if known is None or known["conn"] != conn:
            return Contract.PENDING
        return lacking(known, why) if known["why"] is None else known["why"]


@dataclass
class Series:
    """A Watch that counts. conns: the connections that were in hardware at some time."""

    work: Offloaded
    seconds: dict[int, Second] = field(default_factory=dict)
    reasons: dict[str, Reason] = field(default_factory=dict)
    conns: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._why = Reasons(self.work)
        self._conn = np.full(self.work.mirror.size, -1, dtype=np.int64)  # by row of the flow table

    def _at(self, second: int) -> Second:
        return self.seconds.setdefault(second, Second())

    def slice(self, seen: Seen) -> None:
        hard = np.ones(len(seen.frames), dtype=bool)
        hard[seen.soft] = False
        sizes = seen.frames["len"].astype(np.int64)
        seconds = seen.frames["ts"] // SECOND
        for second in np.unique(seconds).tolist():
            of_it = seconds == second
            at = self._at(second)
            at.packets += int(of_it.sum())
            at.bytes += int(sizes[of_it].sum())
            at.hardware_packets += int((of_it & hard).sum())
            at.hardware_bytes += int(sizes[of_it & hard].sum())
        for row, code in self._why.of(seen):
            reason = self.reasons.setdefault(code, Reason())
            reason.packets += 1
            reason.bytes += int(sizes[row])

    def asked(self, asks: NDArray[Any], now: int) -> None:
        self._why.asked(asks)
        self._conn[asks["row"]] = asks["conn"]

    def answered(self, answers: NDArray[Any], now: int) -> None:
        there = answers["row"][answers["answer"] == Answered.INSTALLED]
        self.conns.update(self._conn[there].tolist())

    def turned(self, now: int) -> None:
        if not self.seconds:  # nothing has come yet
            return
        at = self._at(now // SECOND)
        at.entries = max(at.entries, self.work.nic.tabled)
        gauges = self.work.mirror.counters()
        at.waiting = max(at.waiting, gauges["pending_add"] + gauges["pending_del"])

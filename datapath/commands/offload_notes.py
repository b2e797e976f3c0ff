"""What is remembered of the flows that a mirror keeps in hardware, and of packets that stayed in software: for who asks a node that runs.

Theory of operation: asks and answers go by between flow table and mirror; of a flow, by its row, there is kept what hardware has counted of it, how
many SYNs it forwarded as if established, and why the NIC missed a packet of it last. A flow that has left is remembered by its connection, with the
cause, as long as not too many others have left since.
Invariants: memory is bounded by the flow table, and MOST_LEFT; what hardware has not told is unknown, and never 0 (contract A6.50).
Not here: words (offload_said), what a node is told (offload_live).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.flow_changes import Answered, Asked, FlowFlag
from ctcore.types import Offload, State
from datapath.commands.offload_said import lacking, missed
from datapath.commands.offload_watch import Seen, misses
from offload.contract.why import OF_OFFLOAD, Why
from offload.mirror import Mirror
from offload.simnic.kept import Kept
from offload.simnic.results import Flag

MOST_LEFT = 65_536  # flows that have left, and are remembered
EGRESS, INVALID = "egress", "invalid"
DECIDED = ("offload", "state", "conn")


@dataclass(frozen=True)
class Counts:
    """Packets and bytes that hardware has counted of a flow: each direction's, None where unknown, and both together, None if it has told nothing."""

    original: tuple[int, int] | None
    reply: tuple[int, int] | None
    both: tuple[int, int] | None


class FlowNotes:
    """A Watch (offload_watch) of a node that runs. packets, sizes: in software, by why; kept: of the NIC's rules (Nic.kept), who has one says it."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror, size = mirror, mirror.size
        self.kept: Mapping[int, Kept] = {}
        self.packets: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        self.row: dict[int, int] = {}  # of the flow table, by the number of a connection
        self.left: OrderedDict[int, str] = OrderedDict()  # why, by the number of a connection
        self._conn = np.full(size, -1, dtype=np.int64)
        self._told = np.zeros((size, 2, 2), dtype=np.int64)  # packets, bytes; original, reply
        self._unsplit = np.zeros((size, 2), dtype=np.int64)
        self._reports, self._syns = np.zeros(size, dtype=np.uint32), np.zeros(size, dtype=np.uint32)
        self._missed = np.zeros((size, 2), dtype=np.uint8)  # the NIC's why, and why it has not the rule

    # --- flows -----------------------------------------------------------------------------------------------------------------------------

    def asked(self, asks: NDArray[Any], now: int) -> None:
        """See Watch."""
        gone = asks["ask"] == Asked.REMOVE
        fresh = np.flatnonzero(~gone & (self._conn[asks["row"]] != asks["conn"]))
        rows, conns = asks["row"][fresh], asks["conn"][fresh]
        self._conn[rows] = conns
        for each in (self._told, self._unsplit, self._reports, self._syns, self._missed):
            each[rows] = 0
        for row, conn in zip(rows.tolist(), conns.tolist(), strict=True):
            self.row[conn] = row
            self.left.pop(conn, None)
        for conn, cause in zip(asks["conn"][gone].tolist(), asks["cause"][gone].tolist(), strict=True):
            self.left[conn] = str(OF_OFFLOAD[cause] or Why.DYING)
        while len(self.left) > MOST_LEFT:
            self.left.popitem(last=False)

    def answered(self, answers: NDArray[Any], now: int) -> None:
        """See Watch."""
        known = answers["packets"].any(axis=1) | (answers["used"] != 0)
        counted = answers[(answers["answer"] == Answered.COUNTED) & known]
        if len(counted):
            each = np.stack([counted["packets"], counted["bytes"]], axis=1).astype(np.int64)
            split = (counted["flags"] & FlowFlag.FLOW_SPLIT) != 0
            np.add.at(self._told, counted["row"][split], each[split])
            np.add.at(self._unsplit, counted["row"][~split], each[~split].sum(axis=2))
            np.add.at(self._reports, counted["row"], 1)
        for row in answers["row"][answers["answer"] == Answered.REMOVED].tolist():
            if self.row.get(int(self._conn[row])) == row:
                del self.row[int(self._conn[row])]
            self._conn[row] = -1

    def counts(self, row: int) -> Counts:
        """What hardware has told of the flow of a row."""
        if not self._reports[row]:
            return Counts(None, None, None)
        told, unsplit = self._told[row], self._unsplit[row]
        packets, size = (told.sum(axis=1) + unsplit).tolist()
        if unsplit.any():
            return Counts(None, None, (packets, size))
        (a, b), (c, d) = told.T.tolist()
        return Counts((a, b), (c, d), (packets, size))

    def syns(self, row: int) -> int:
        """SYNs of this flow that hardware forwarded as of an established connection (contract A4.27)."""
        return int(self._syns[row])

    def missed(self, row: int) -> str | None:
        """Why the NIC gave a packet of a flow that it had to software last."""
        why, kept = self._missed[row].tolist()
        return self._of_row(self.mirror.why(row), why, kept) if why else None

    # --- packets ---------------------------------------------------------------------------------------------------------------------------

    def slice(self, seen: Seen) -> None:
        """See Watch."""
        flagged = (seen.found["flags"] & Flag.SYN) != 0
        if flagged.any():
            rows = [self.row[conn] for conn in seen.found["conn"][flagged].tolist() if conn in self.row]
            np.add.at(self._syns, rows, 1)
        if seen.decisions is None:
            return
        told = np.zeros(len(seen.soft), dtype=[(name, "i8") for name in ("why", "kept", *DECIDED)])
        told["why"], told["kept"] = misses(seen, self.kept)
        for name in DECIDED:
            told[name] = seen.decisions[name]
        told["conn"][told["offload"] != Offload.OFFLOAD_SOFTWARE] = -1
        kinds, which = np.unique(told, return_inverse=True)
        which = which.reshape(-1)
        packets, sizes = np.bincount(which), np.bincount(which, seen.frames["len"][seen.soft])
        for kind, n, size in zip(kinds.tolist(), packets.tolist(), sizes.tolist(), strict=True):
            code = self._code(*kind)
            self.packets[code] += n
            self.sizes[code] += int(size)

    def _code(self, why: int, kept: int, offload: int, state: int, conn: int) -> str:
        """What the flow table says of its connection, else the mirror, else the NIC; as offload_series.Reasons has it."""
        if why < 0:
            return EGRESS
        if offload != Offload.OFFLOAD_SOFTWARE:
            said = OF_OFFLOAD[offload]
            return str(said) if said is not None else INVALID if state == State.INVALID else missed(why, kept)
        row = self.row.get(conn)
        known = None if row is None else self.mirror.why(row)
        if row is None or known is None:
            return str(Why.PENDING)
        if known["why"] is not None:
            return str(known["why"])
        self._missed[row] = why, kept
        return self._of_row(known, why, kept)

    @staticmethod
    def _of_row(known: Mapping[str, Any] | None, why: int, kept: int) -> str:
        """The code of a packet that the NIC has missed though something of its flow is in hardware. known: Mirror.why()."""
        return str((known and lacking(known, why)) or missed(why, kept))

    def turned(self, now: int) -> None:
        """See Watch."""

    def codes(self) -> Iterator[tuple[str, int, int]]:
        """(why, packets, bytes) of all that stayed in software."""
        for code, packets in self.packets.most_common():
            yield code, packets, self.sizes[code]

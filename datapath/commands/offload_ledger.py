"""What is known of each connection that the flow table has had: whether hardware has it, why not, and what hardware has counted of it. For records.

One connection: admitted, asked for -> in hardware -> 12 packets told -> left with a FIN -> its record says so. Each step is an event, too.
Invariants: a record holds what was known when its event happened; what nobody knows is None, and never 0 (contract A6.50).
Not here: what flow table and mirror decide, what records look like otherwise (fields).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.flow_changes import Answered, Asked, FlowFlag
from ctcore.types import EVENT_DTYPE, Dir, EventKind, Status
from datapath.commands.offload_watch import Seen
from datapath.commands.offloaded import Offloaded
from datapath.fields import Record
from offload.contract.why import OF_OFFLOAD, Why
from offload.simnic.unheard import UNHEARD_DTYPE

TABLE, HARDWARE = "offload", "hw-offload"  # what events of a connection's way into hardware and out of it tell of
BOTH = ("packets", "bytes")
NOTHING = (0, 0)
CAUSES = {int(code): str(why or Why.DYING) for code, why in OF_OFFLOAD.items()}


@dataclass(slots=True)
class Account:
    """One connection. row, serial: of the flow table; key: its tuple; cause: why it leaves the table; left: whether that was told; here, entered:
    whether it is in hardware, or was at some time, as far as the answers that came tell; asked: whether hardware has ever told; split, unsplit,
    unheard: packets and bytes, told by direction, told for both together, and told to nobody."""

    row: int
    serial: int
    key: bytes
    cause: str | None = None
    left: bool = False
    here: bool = False
    entered: bool = False
    asked: bool = False
    split: tuple[int, int] = NOTHING
    unsplit: tuple[int, int] = NOTHING
    unheard: tuple[int, int] = NOTHING


class Ledger:
    """A Watch. drain: has what happened until now written; tell: writes events (EVENT_DTYPE[n], and what each tells of), None: nobody wants them."""

    def __init__(self, work: Offloaded, drain: Callable[[], None], tell: Callable[[NDArray[Any], str], None] | None) -> None:
        self.work, self._drain, self._tell = work, drain, tell
        self.accounts: dict[int, Account] = {}
        self._conn = np.full(work.mirror.size, -1, dtype=np.int64)  # by row of the flow table
        self._touched: set[int] = set()
        self._split = work.nic.profile.counters.accounting
        work.nic.unheard.follow()

    # --- a watch ----------------------------------------------------------------------------------------------------------------------------

    def slice(self, seen: Seen) -> None:
        """Packets have their own records."""

    def asked(self, asks: NDArray[Any], now: int) -> None:
        self._conn[asks["row"]] = asks["conn"]
        leaving = asks[asks["ask"] == Asked.REMOVE]
        for conn, cause in zip(leaving["conn"].tolist(), leaving["cause"].tolist(), strict=True):
            if conn in self.accounts:  # before what has happened is told: those that end with it shall say why
                self.accounts[conn].cause = CAUSES[cause]
        self._past()
        for ask in asks[asks["ask"] != Asked.COUNTERS]:
            conn, row, serial = int(ask["conn"]), int(ask["row"]), int(ask["serial"])
            account = self.accounts.get(conn)
            if ask["ask"] == Asked.REMOVE:
                if account is not None and not account.left:
                    account.left = True
                    self._happened(conn, TABLE, now)
            elif account is None or (account.row, account.serial) != (row, serial):
                if account is None:
                    account = self.accounts[conn] = Account(row, serial, ask["key"][Dir.ORIG].tobytes())
                account.row, account.serial, account.cause, account.left = row, serial, None, False
                self._happened(conn, TABLE, now)

    def answered(self, answers: NDArray[Any], now: int) -> None:
        self._past()
        conns = self._conn[answers["row"]].tolist()
        self._touched.update(conns)
        for answer in np.flatnonzero(answers["answer"] == Answered.COUNTED).tolist():
            self._count(conns[answer], answers[answer])

    def turned(self, now: int) -> None:
        """The flow table has the answers: who is in hardware by now, and who is not any more?"""
        self._past()
        self._forgotten(self.work.nic.unheard.take())
        for conn in self._touched:
            there = self._alive(conn)
            if there is None:
                continue
            account, here = self.accounts[conn], bool(there["status"] & Status.HW_OFFLOAD)
            if here != account.here:
                account.here, account.entered = here, True
                self._happened(conn, HARDWARE, now)
        self._touched.clear()

    def close(self) -> None:
        """Nothing more comes: what hardware has counted and not told is told to nobody."""
        self._forgotten(self.work.nic.unheard.take())
        self._forgotten(self.work.nic.untold())
        for conn in self.work.looked & self.accounts.keys():
            self.accounts[conn].asked = True

    def _past(self) -> None:
        """What has happened until now is told before accounts change."""
        if self.work.tracker.events_waiting:
            self._drain()

    def _alive(self, conn: int) -> Any:
        """The connection (CONN_DTYPE), or None: it is unknown, or has ended."""
        account = self.accounts.get(conn)
        found = None if account is None else self.work.tracker.find(account.key)
        return None if found is None or found["flow"]["id"][0, Dir.ORIG] != conn else found[0]

    def _count(self, conn: int, answer: Any) -> None:
        each = (int(answer["packets"].sum()), int(answer["bytes"].sum()))
        if not (each[0] or answer["used"]) or self._alive(conn) is None:
            return  # hardware has told nothing, or of a connection that is no more
        account = self.accounts[conn]
        account.asked = True
        if answer["flags"] & FlowFlag.FLOW_SPLIT:
            account.split = added(account.split, each)
        else:
            account.unsplit = added(account.unsplit, each)

    def _forgotten(self, rows: NDArray[Any]) -> None:
        assert rows.dtype == UNHEARD_DTYPE
        for conn, packets, size in rows.tolist():
            if conn in self.accounts:
                self.accounts[conn].unheard = added(self.accounts[conn].unheard, (packets, size))

    def _happened(self, conn: int, what: str, now: int) -> None:
        there = None if self._tell is None else self._alive(conn)
        if self._tell is None or there is None:
            return
        event = np.zeros(1, dtype=EVENT_DTYPE)
        event["kind"], event["time"], event["conn"], event["timeout"] = EventKind.EVENT_UPDATE, now, there, there["timeout"]
        self._tell(event, what)

    # --- records ----------------------------------------------------------------------------------------------------------------------------

    def told(self, records: Iterable[Record]) -> Iterator[Record]:
        """Records of connections or events, with `offload`, `total` and `hardware`, and counters that nobody knows as None."""
        left: dict[int, tuple[int, int]] | None = None
        for record in records:
            account = self.accounts.get(record["conn"])
            record["offload"] = None if account is None else self._code(account, record)
            sides = [record["original"], record["reply"]]
            record["total"] = dict.fromkeys(BOTH) if sides[0]["packets"] is None else {name: sides[0][name] + sides[1][name] for name in BOTH}
            if record["stop"] is not None and HARDWARE in record["status"] and left is None:
                left = {conn: (packets, size) for conn, packets, size in self.work.nic.untold().tolist()}
            ends = left.get(record["conn"], NOTHING) if left and record["stop"] is not None else NOTHING
            had = account is not None and (account.entered or account.asked or account.unheard != NOTHING or ends != NOTHING)
            record["hardware"] = self._hardware(account, ends) if account is not None and had else None
            if account is not None and account.unsplit[0] and sides[0]["packets"] is not None:
                record["total"] = {name: record["total"][name] + more for name, more in zip(BOTH, account.unsplit, strict=True)}
                for side in ("original", "reply"):
                    record[side] = {**record[side], **dict.fromkeys(BOTH)}
            yield record

    def _code(self, account: Account, record: Record) -> str:
        """Rules live on for a while when a connection has left the flow table: why it has is more than that they do."""
        if account.cause is not None and (account.left or record["stop"] is not None):
            return f"not:{account.cause}"
        if HARDWARE in record["status"]:
            return "hardware"
        known = self.work.mirror.why(account.row)
        same = known is not None and known["serial"] == account.serial
        return f"not:{(known['why'] if same and known else None) or Why.PENDING}"

    def _hardware(self, account: Account, left: tuple[int, int]) -> Record:
        """left: what its rules have counted and not told, when nobody will ask any more."""
        told = added(account.split, account.unsplit) if account.asked else (None, None)
        unheard = added(account.unheard, left)
        return {
            "packets": told[0], "bytes": told[1], "split": self._split if account.asked else None,
            "unheard_packets": unheard[0], "unheard_bytes": unheard[1],
        }  # fmt: skip

    def whole(self, conns: NDArray[Any]) -> NDArray[Any]:
        """CONN_DTYPE[n] for who adds both directions up: with what is of none in the first."""
        conns = conns.copy()
        for i, conn in enumerate(conns["flow"]["id"][:, Dir.ORIG].tolist()):
            account = self.accounts.get(conn)
            if account is not None:
                for name, more in zip(BOTH, account.unsplit, strict=True):
                    conns["flow"][name][i, Dir.ORIG] += more
        return conns

    def forget(self, conns: Iterable[int]) -> None:
        """They have ended, and their records are written."""
        for conn in conns:
            self.accounts.pop(conn, None)


def added(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]

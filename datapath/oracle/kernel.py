"""The kernel's decisions as records of ours: what one side of a comparison says of packets.

A connection is named by where it lies in the kernel's memory as long as it lives; a packet that leaves with a confirmed connection which was not
confirmed when it was judged has made a new one, and gives it the next ordinal. So ordinals count as the engine's do.
Not here: the engine (lockstep), how observations are made (oracle).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ctcore.types import CONN_DTYPE, DECISION_DTYPE, KEY_DTYPE, Dir, Proto, Reason, State, Verdict
from datapath.fields import WITHOUT_PORTS
from datapath.oracle.exhibit import is_fragment
from datapath.oracle.oracle import Oracle
from datapath.oracle.probes import UNTRACKED, Record
from datapath.oracle.witness import CTINFO, Sighting

NONE = 255
ETHERNET = 14  # bytes of its header

ANY_TICKS = 1 << 31


@dataclass
class Side:
    """What one side says of n packets.

    conns: the connection each packet's tuple belongs to, as it is after the packet, also where the packet is invalid; has_conn: where there is one;
    out: the IP packets that left because of each, of fragments and if addresses are translated, else nothing.
    """

    decisions: np.ndarray  # DECISION_DTYPE[n]
    conns: np.ndarray  # CONN_DTYPE[n]
    has_conn: np.ndarray  # bool[n]
    out: list[tuple[bytes, ...]]

    @classmethod
    def empty(cls, n: int) -> Side:
        decisions = np.zeros(n, DECISION_DTYPE)
        decisions["conn"] = decisions["timeout"] = -1
        decisions["dir"] = decisions["l4state"] = NONE
        return cls(decisions, np.zeros(n, CONN_DTYPE), np.zeros(n, bool), [()] * n)

    def first(self, n: int) -> Side:
        """Of the first n packets."""
        return Side(self.decisions[:n], self.conns[:n], self.has_conn[:n], self.out[:n])


@dataclass
class Kernel:
    """Shows packets to an oracle and fills in a Side."""

    oracle: Oracle
    born: int = 0
    ordinals: dict[int, int] = field(default_factory=dict)  # where a connection lies in the kernel -> its ordinal
    deadlines: dict[int, tuple[int, int]] = field(default_factory=dict)  # and -> its deadline, and the ticks that passed while that was set
    _records: list[Record] = field(default_factory=list)
    _ticks: list[int] = field(default_factory=list)

    def show(self, family: int, packet: bytes, parsed: Callable[[], np.void], side: Side, i: int, zone: int | None = None) -> Sighting:
        """Row i of `side`, but for the connection.

        family: 4 or 6; packet: IP; parsed: the packet as we see it, PACKET_DTYPE, asked for when it has been judged; of a fragment that completes a
        datagram, the datagram; zone: in place of the oracle's.
        """
        sighting = self.oracle.show(family, packet, lambda: key_of(parsed()), zone)
        row = parsed()
        record = self._judge(sighting, row, side.decisions[i])
        if self.oracle.translates or is_fragment(family, packet):
            side.out[i] = tuple(frame[ETHERNET:] for frame in sighting.came)
        if record:
            self._records.append(record)
            self._ticks.append(sighting.tick)
            side.has_conn[i] = True
        return sighting

    def finish(self, side: Side) -> None:
        """Fill in the connections of all packets shown since the last call."""
        if self._records:
            side.conns[side.has_conn] = self.oracle.layout.conns(self._records, self._ticks)
            side.conns["master"][side.has_conn] = [self.ordinals.get(self.oracle.layout.master_of(record), -1) for record in self._records]
        self._records, self._ticks = [], []

    def slack(self, sighting: Sighting) -> int:
        """How far the timeout of the last packet's connection may be off: as many ticks as passed while that packet was judged that set it."""
        record = sighting.final or sighting.asked
        if record is None:
            return 0
        if self.oracle.config.helpers and sighting.leaving is None and record is sighting.judged:
            return ANY_TICKS  # a helper dropped it, after it had renewed a timeout that was seen before
        deadline = self.oracle.layout.number(record, self.oracle.layout.timeout, 4)
        if self.deadlines.get(record.address, (None,))[0] != deadline:
            self.deadlines[record.address] = deadline, sighting.slack
        return self.deadlines[record.address][1]

    def _judge(self, sighting: Sighting, row: np.void, decision: np.void) -> Record | None:
        """The decision from what was seen; the observation of the connection, if it lives on."""
        layout = self.oracle.layout
        # A kernel that keeps a fragment is as silent as one that drops it.
        held = Verdict.HELD if row["reason"] == Reason.R_FRAGMENT else Verdict.DROP
        decision["zone"], decision["proto"], decision["family"] = (row["key"][name] for name in ("zone", "proto", "family"))
        decision["verdict"] = Verdict.ACCEPT if sighting.came else held
        judged, final = sighting.judged, sighting.final
        if judged is None:
            decision["state"] = State.NOT_SEEN
            return None
        if final is None:
            decision["state"] = State.UNTRACKED if judged.nfct == UNTRACKED else State.INVALID
            if sighting.asked:
                decision["l4state"] = self._l4state(sighting.asked)
            return sighting.asked
        if not layout.is_confirmed(final):
            decision["state"] = State.NOT_SEEN  # dropped at confirm: the connection never was
            return None
        decision["state"], decision["dir"] = CTINFO[judged.ctinfo]
        decision["conn"] = self._ordinal(judged, final)
        decision["status"] = layout.status_of(final) or 0
        decision["mark"] = layout.number(final, layout.mark, 4)
        decision["timeout"] = max(layout.left(final, sighting.tick), 0)
        decision["l4state"] = self._l4state(final)
        return final if layout.is_live(final) else None

    def chosen(self, sighting: Sighting) -> tuple[int | None, int | None]:
        """The ports, or id, that a connection got which the packet began, even in vain: of the source, and before that of the destination.

        None: it began none, or was dropped before.
        """
        layout, judged = self.oracle.layout, sighting.judged
        if judged is None or not judged.address or layout.is_confirmed(judged):
            return None, None
        replies = [layout.keys(record.conn)[Dir.REPLY] if record else None for record in (sighting.translated, sighting.redirected)]
        source, destination = (np.frombuffer(reply, KEY_DTYPE)[0] if reply else None for reply in replies)
        icmp = layout.proto(judged) in (Proto.PROTO_ICMP, Proto.PROTO_ICMPV6)
        return (
            None if source is None else int(source["sport" if icmp else "dport"]),
            None if destination is None else int(destination["sport"]),
        )

    def _ordinal(self, judged: Record, final: Record) -> int:
        if not self.oracle.layout.is_confirmed(judged):
            self.ordinals[final.address] = self.born
            self.born += 1
        return self.ordinals.get(final.address, -1)

    def _l4state(self, record: Record) -> int:
        layout = self.oracle.layout
        proto = Proto(layout.proto(record)) if layout.proto(record) in layout.l4state else None
        return record.conn[layout.l4state[proto]] if proto else NONE


def key_of(row: np.void) -> bytes:
    """A packet's tuple (the bytes of a KEY_DTYPE), or nothing if it has none, since what the key holds of ports means nothing then."""
    return b"" if int(row["reason"]) in WITHOUT_PORTS else row["key"].tobytes()

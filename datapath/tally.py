"""Connections counted as they end: how many of each protocol ended how, and which were the largest.

Not here: text (report). Invariants: memory does not grow with the number of connections; all work on a batch of them is NumPy's; the result does
not depend on how the connections were split into batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctcore import spec
from ctcore.config import Config
from ctcore.types import CONN_DTYPE, Dir, End, Proto, Status, TcpState
from datapath.fields import END_NAMES

# How a connection left the table, by the records' words; a TCP connection that left by timeout is told by how it was closed, if it was.
HOW = ("fin", "rst", "timeout", "reset", "evicted", "replaced", "flushed", "alive")
# Those of them that do not explain themselves.
HOW_MEANS = {
    "rst": "closed by a RST, and gone after its timeout",
    "reset": "a RST before any reply, which deletes at once",
    "replaced": "a new SYN took the place of a closed connection",
}
_CLOSING: dict[int, str] = {
    TcpState.FIN_WAIT: "fin",
    TcpState.CLOSE_WAIT: "fin",
    TcpState.LAST_ACK: "fin",
    TcpState.TIME_WAIT: "fin",
    TcpState.CLOSE: "rst",
}
_HOW_OF_END = np.array([HOW.index(END_NAMES[end]) for end in range(End.N_ENDS)], dtype=np.int64)
_HOW_OF_STATE = np.array([HOW.index(_CLOSING.get(state, "timeout")) for state in range(256)], dtype=np.int64)


@dataclass(frozen=True)
class Large:
    """One of the largest connections. stop: ns, the last packet that renewed its timeout; how: one of HOW."""

    conn: np.void
    bytes: int
    packets: int
    start: int
    stop: int
    how: str


def how_of(conns: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How connections left, as indexes of HOW. conns: CONN_DTYPE[n]; ends: End[n]."""
    told = (conns["flow"]["key"]["proto"][:, Dir.ORIG] == Proto.PROTO_TCP) & (ends == End.END_TIMEOUT)
    return np.where(told, _HOW_OF_STATE[conns["tcp"]["state"]], _HOW_OF_END[ends])


class Tally:
    """Counts connections. config: the tracker's, whose timeouts tell when a connection was last renewed; keep: how many large ones to remember."""

    def __init__(self, config: Config, keep: int = 5) -> None:
        self.config, self.keep = config, keep
        self.counts = np.zeros((256, len(HOW)), dtype=np.int64)
        self.tcp_unreplied = 0
        self._large = np.zeros(0, dtype=CONN_DTYPE)
        self._ends = np.zeros(0, dtype=np.uint8)
        self._times = np.zeros(0, dtype=np.int64)

    def add(self, conns: np.ndarray, ends: np.ndarray, times: np.ndarray) -> None:
        """Count connections. conns: CONN_DTYPE[n]; ends: End[n]; times: ns[n], when they ended, or now for live ones."""
        proto = conns["flow"]["key"]["proto"][:, Dir.ORIG].astype(np.int64)
        how = how_of(conns, ends)
        self.counts += np.bincount(proto * len(HOW) + how, minlength=self.counts.size).reshape(self.counts.shape)
        self.tcp_unreplied += int(np.count_nonzero((proto == Proto.PROTO_TCP) & (conns["status"] & Status.SEEN_REPLY == 0)))
        self._keep_largest(conns, ends, times)

    def _keep_largest(self, conns: np.ndarray, ends: np.ndarray, times: np.ndarray) -> None:
        """The batch's largest join those kept, and the largest of both stay; of equals the earlier connection."""
        total = conns["flow"]["bytes"].sum(axis=1)
        if len(total) > self.keep:
            # Everything as large as the keep-th: who of equals stays is decided below, by age.
            rows = np.flatnonzero(total >= np.partition(total, -self.keep)[-self.keep])
            conns, ends, times = conns[rows], ends[rows], times[rows]
        conns = np.concatenate([self._large, conns])
        ends, times = np.concatenate([self._ends, ends]), np.concatenate([self._times, times])
        order = np.lexsort((conns["flow"]["id"][:, Dir.ORIG], -conns["flow"]["bytes"].sum(axis=1).astype(np.int64)))[: self.keep]
        self._large, self._ends, self._times = conns[order], ends[order], times[order]

    def by_protocol(self) -> list[tuple[int, int, dict[str, int]]]:
        """(protocol number, connections, how they ended), the most frequent protocol first."""
        totals = self.counts.sum(axis=1)
        order = sorted(np.flatnonzero(totals).tolist(), key=lambda proto: (-totals[proto], proto))
        return [(p, int(totals[p]), {how: int(n) for how, n in zip(HOW, self.counts[p], strict=True) if n}) for p in order]

    def largest(self) -> list[Large]:
        """The largest connections by bytes of both directions, as far as bytes were counted."""
        rows = zip(self._large, how_of(self._large, self._ends), self._times.tolist(), strict=True)
        return [self._one(conn, HOW[how], time) for conn, how, time in rows if conn["flow"]["bytes"].sum()]

    def _one(self, conn: np.void, how: str, time: int) -> Large:
        tick = 1_000_000_000 // self.config.hz
        start, deadline = int(conn["start"]), time + int(conn["timeout"]) * tick
        # What renewed the timeout last was a full timeout before the deadline; if that is before the start, a shortened one was in force.
        stops = [deadline - seconds * 1_000_000_000 for seconds in self._timeouts(conn)]
        stop = next((stop for stop in stops if start <= stop <= time), start)
        size, packets = int(conn["flow"]["bytes"].sum()), int(conn["flow"]["packets"].sum())
        return Large(conn, size, packets, start, stop, how)

    def _timeouts(self, conn: np.void) -> list[int]:
        """Timeouts in seconds that may have been given to the connection last, the usual one first."""
        proto, assured = int(conn["flow"][0]["key"]["proto"]), bool(conn["status"] & Status.ASSURED)
        seconds = {**spec.timeouts(), **self.config.timeouts}
        if proto in (Proto.PROTO_TCP, Proto.PROTO_SCTP):
            name, state = ("tcp", conn["tcp"]["state"]) if proto == Proto.PROTO_TCP else ("sctp", conn["sctp"]["state"])
            table = spec.tcp() if name == "tcp" else spec.sctp()
            usual = table.timeouts[int(state)]
            first = int(usual) if usual.isdigit() else seconds.get(f"{name}_timeout_{usual}", 0)
            return [first, seconds["tcp_timeout_unacknowledged"], seconds["tcp_timeout_max_retrans"]] if name == "tcp" else [first]
        names: dict[int, tuple[str, str]] = {
            Proto.PROTO_UDP: ("udp_timeout", "udp_timeout_stream"), Proto.PROTO_UDPLITE: ("udp_timeout", "udp_timeout_stream"),
            Proto.PROTO_GRE: ("gre_timeout", "gre_timeout_stream"), Proto.PROTO_ICMP: ("icmp_timeout",) * 2,
            Proto.PROTO_ICMPV6: ("icmpv6_timeout",) * 2,
        }  # fmt: skip
        return [seconds[names.get(proto, ("generic_timeout",) * 2)[assured]]]

"""What the observations say: struct nf_conn as the engine's own records, so that both sides can be compared field by field.

Theory of operation: the kernel's layout is a NumPy dtype made from its BTF; a batch of copies of struct nf_conn becomes CONN_DTYPE by columns.
Numbers of states, status bits and flags are the same on both sides, since the engine uses the kernel's own.
Not here: how observations are made (probes), differences (datapath.compare).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctcore.types import CONN_DTYPE, KEY_DTYPE, Dir, Proto, State, Status
from datapath.oracle.btf import Types
from datapath.oracle.probes import Record

# enum ip_conntrack_info: (state, direction) by its numbers.
CTINFO = {
    0: (State.ESTABLISHED, Dir.ORIG), 1: (State.RELATED, Dir.ORIG), 2: (State.NEW, Dir.ORIG),
    3: (State.ESTABLISHED, Dir.REPLY), 4: (State.RELATED, Dir.REPLY),
}  # fmt: skip
AF_INET6 = 10
KNOWN_STATUS = sum(Status)
KEY = struct.Struct("=16s16sHHHBB")
TUPLE = struct.Struct("=16s2sH16s2sBB")  # nf_conntrack_tuple: address, port, family; address, port, protocol, direction
PROTO_AT = 38  # in it

U8, U16, U32 = np.uint8, np.uint16, np.uint32
MEMBERS = ("timeout", "status", "mark", "zone.id", "zone.dir", "tuplehash", "proto", "ct_net", "master")
TCP = {
    "state": U8, "last_dir": U8, "retrans": U8, "last_index": U8, "last_seq": U32, "last_ack": U32, "last_end": U32, "last_win": U16,
    "last_wscale": U8, "last_flags": U8,
}  # fmt: skip
TCP_SIDE = {"td_end": "end", "td_maxend": "maxend", "td_maxwin": "maxwin", "td_maxack": "maxack"}
# Tags are kept as they are on the wire.
SCTP = {"state": (U8, ()), "vtag": (np.dtype(">u4"), (2,)), "init": (U8, (2,)), "last_dir": (U8, ()), "flags": (U8, ())}


class Layout:
    """Where the running kernel has what of a connection."""

    def __init__(self, types: Types) -> None:
        conn = {name: types.offset("nf_conn", name) for name in MEMBERS}
        self.timeout, self.status, self.zone, self.zone_dir, self.mark = (conn[name] for name in ("timeout", "status", "zone.id", "zone.dir", "mark"))
        self.l4, self.net = conn["proto"], conn["ct_net"]
        self.master = conn["master"]
        self.l4state = {
            Proto.PROTO_TCP: self.l4 + types.offset("ip_ct_tcp", "state"),
            Proto.PROTO_SCTP: self.l4 + types.offset("ip_ct_sctp", "state"),
        }
        hash_size, at = types.size("nf_conntrack_tuple_hash"), types.offset("nf_conntrack_tuple_hash", "tuple")
        self.tuples = tuple(conn["tuplehash"] + d * hash_size + at for d in Dir)
        self.dtype = self._dtype(types)

    def _dtype(self, types: Types) -> np.dtype:
        """The fields of CONN_DTYPE that the kernel has, where it has them."""
        tcp, side_size = types.offset("ip_ct_tcp", "seen"), types.size("ip_ct_tcp_state")
        fields: list[tuple[str, Any, int]] = [("timeout", U32, self.timeout), ("status", U32, self.status), ("mark", U32, self.mark)]
        fields += [(f"tcp.{name}", kind, self.l4 + types.offset("ip_ct_tcp", name)) for name, kind in TCP.items()]
        for d in Dir:
            side = self.l4 + tcp + d * side_size
            fields += [(f"tcp.side.{d}.{ours}", U32, side + types.offset("ip_ct_tcp_state", theirs)) for theirs, ours in TCP_SIDE.items()]
            fields += [(f"tcp.scale.{d}", U8, side + types.offset("ip_ct_tcp_state", "td_scale"))]
            fields += [(f"tcp.flags.{d}", U8, side + types.offset("ip_ct_tcp_state", "flags"))]
        fields += [(f"sctp.{name}", kind, self.l4 + types.offset("ip_ct_sctp", name)) for name, kind in SCTP.items()]
        names, kinds, offsets = zip(*fields, strict=True)
        return np.dtype({"names": names, "formats": kinds, "offsets": offsets, "itemsize": types.size("nf_conn")})

    def keys(self, conn: bytes) -> tuple[bytes, bytes]:
        """Both tuples as keys (KEY_DTYPE): what a packet of each direction shows."""
        zone = int.from_bytes(conn[self.zone : self.zone + 2], "little")
        covered = conn[self.zone_dir]  # a bit for each direction in which the zone counts; in the other one it is 0
        original, reply = (self._key(conn, at, zone if covered >> d & 1 else 0) for d, at in enumerate(self.tuples))
        return original, reply

    def _key(self, conn: bytes, at: int, zone: int) -> bytes:
        src, sport, family, dst, dport, proto, _ = TUPLE.unpack_from(conn, at)
        version = 6 if family == AF_INET6 else 4
        return KEY.pack(src, dst, int.from_bytes(sport, "big"), int.from_bytes(dport, "big"), zone, proto, version)

    def conns(self, records: Sequence[Record], ticks: Sequence[int]) -> np.ndarray:
        """CONN_DTYPE[n] of observations that have a connection; ordinals and what the kernel does not keep are 0.

        ticks: int[n], when each packet was judged, from which on timeout counts.
        """
        theirs = np.frombuffer(b"".join(record.conn for record in records), self.dtype)
        ours = np.zeros(len(records), CONN_DTYPE)
        keys = b"".join(key for record in records for key in self.keys(record.conn))
        ours["flow"]["key"] = np.frombuffer(keys, KEY_DTYPE).reshape(-1, 2)
        counters = np.array([record.counters for record in records], np.uint64).reshape(-1, 2, 2)
        ours["flow"]["packets"], ours["flow"]["bytes"] = counters[:, :, 0], counters[:, :, 1]
        tcp = ours["flow"]["key"]["proto"][:, 0] == Proto.PROTO_TCP
        sctp = ours["flow"]["key"]["proto"][:, 0] == Proto.PROTO_SCTP
        self._tcp(ours["tcp"], theirs, tcp)
        for name in SCTP:
            ours["sctp"][name][sctp] = theirs[f"sctp.{name}"][sctp]
        ours["timeout"] = [max(self.left(record, tick), 0) for record, tick in zip(records, ticks, strict=True)]
        ours["status"], ours["mark"] = theirs["status"] & KNOWN_STATUS, theirs["mark"]
        return ours

    def _tcp(self, ours: np.ndarray, theirs: np.ndarray, chosen: np.ndarray) -> None:
        for name in TCP:
            ours[name][chosen] = theirs[f"tcp.{name}"][chosen]
        for d in Dir:
            for name in TCP_SIDE.values():
                ours["side"][name][chosen, d] = theirs[f"tcp.side.{d}.{name}"][chosen]
            for name in ("scale", "flags"):
                ours[name][chosen, d] = theirs[f"tcp.{name}.{d}"][chosen]

    def left(self, record: Record, tick: int) -> int:
        """Ticks the connection had left at `tick`; below 0: overdue."""
        return (self.number(record, self.timeout, 4) - tick + (1 << 31)) % (1 << 32) - (1 << 31)

    def is_confirmed(self, record: Record) -> bool:
        """In the table, or was."""
        return bool(self.number(record, self.status, 4) & Status.CONFIRMED)

    def is_live(self, record: Record) -> bool:
        """In the table, and not on its way out."""
        return self.number(record, self.status, 4) & (Status.CONFIRMED | Status.DYING) == Status.CONFIRMED

    def master_of(self, record: Record) -> int:
        """Where the connection lies that announced this one; 0: none."""
        return self.number(record, self.master, 8)

    def namespace(self, record: Record) -> int:
        """Where the connection's network namespace lies."""
        return self.number(record, self.net, 8)

    def status_of(self, record: Record | None) -> int | None:
        """Status bits; None without a connection."""
        return self.number(record, self.status, 4) & KNOWN_STATUS if record and record.address else None

    def proto(self, record: Record) -> int:
        return record.conn[self.tuples[Dir.ORIG] + PROTO_AT]

    @staticmethod
    def number(record: Record, at: int, size: int) -> int:
        """A member of the connection, by its offset."""
        return int.from_bytes(record.conn[at : at + size], "little")


@dataclass(frozen=True)
class Sighting:
    """What was seen of one packet.

    judged, leaving: observations, or None; asked: one of the connection that an invalid packet's tuple belongs to; came: the frames that left the
    bridge; tick: the kernel's clock when it was judged; slack: ticks that passed while it was; said: the kernel's sentences; events: new, update,
    destroy; redirected, translated: observations behind the two halves of address translation, also of a packet that is dropped later.
    """

    judged: Record | None
    leaving: Record | None
    asked: Record | None
    came: Sequence[bytes]
    tick: int
    slack: int = 0
    said: Sequence[str] = ()
    events: Sequence[str] = ()
    redirected: Record | None = None
    translated: Record | None = None

    @property
    def final(self) -> Record | None:
        """The latest observation of the packet's own connection."""
        return next((record for record in (self.leaving, self.judged) if record and record.address), None)

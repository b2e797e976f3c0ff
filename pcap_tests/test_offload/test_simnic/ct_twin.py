"""CT tables in plain Python: dicts, and frames taken apart field by field. What the interpreter of rules is given to compare a NIC with.

It holds connections as a NIC does that trims, with entries in one table; what is not there has missed, and is dropped here, so that what came before
can be compared. Checksums are adjusted by RFC 1624, equation 3, over the bytes that differ. Not here: rules, which the interpreter has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from datapath.craft import address
from datapath.pipeline.interpret import NOT_TRACKED, Piece, Tracked, seen_in
from datapath.pipeline.munge import layers
from datapath.pipeline.rules import Ct
from datapath.refragment import ip_length
from offload.records import Ctinfo
from pcap_tests.test_offload.test_simnic.nic_side import EST, NEW, RPL, TCP, TRK, UDP, Conn

Key = tuple[int, int, bytes, bytes, int, int]  # zone, protocol, addresses, ports


class Held(NamedTuple):
    """conn: what Tracked.conn is of; nat: whether it was looked up with translation."""

    conn: Conn
    nat: bool


def adjusted(data: bytes, at: int, old: bytes, new: bytes) -> bytes:
    """The checksum at `at` as it is when `old` has become `new`."""
    words = [int.from_bytes(each[i : i + 2], "big") for each in (bytes(byte ^ 0xFF for byte in old), new) for i in range(0, len(old), 2)]
    total = (int.from_bytes(data[at : at + 2], "big") ^ 0xFFFF) + sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    value = total ^ 0xFFFF
    return data[:at] + (0 if value == 0xFFFF else value).to_bytes(2, "big") + data[at + 2 :]


class CtTwin:
    """missed: whether the last frame did; begin() forgets that."""

    def __init__(self, conns: Iterable[Conn]) -> None:
        self.conns: dict[Key, Conn] = {(c.zone, c.proto, address(c.src), address(c.dst), c.sport, c.dport): c for c in conns}
        self.missed = False
        self.served: list[Conn] = []

    def begin(self) -> None:
        self.missed, self.served = False, []

    def act(self, action: Ct, frame: bytes, now: int, before: Tracked, missing: int = 0) -> tuple[str, bytes, Tracked]:
        if action.clear:
            return "go on", frame, NOT_TRACKED
        nat = action.nat is not None
        if before.state & TRK and before.zone == action.zone and (not nat or before.conn.nat):
            return "go on", frame, before
        conn = self._found(frame, missing, action.zone)
        if conn is None or (translates(conn) and not nat):
            self.missed = True
            return "drop", b"", NOT_TRACKED._replace(reason="ct")
        self.served.append(conn)
        state = TRK | (NEW if conn.ctinfo == Ctinfo.NEW else EST) | (RPL if conn.cookie & 1 else 0)
        l3 = layers(frame).l3
        end = l3 + ip_length(frame[l3:])
        frame, missing = frame[:end], min(max(end - len(frame), 0), missing)
        tracked = Tracked(state, action.zone, conn.mark, conn.label, Held(conn, nat), missing=missing)
        return "go on", translated(frame, conn) if nat else frame, tracked

    def _found(self, frame: bytes, missing: int, zone: int) -> Conn | None:
        seen = seen_in(frame, missing, 0, 0, 0, 0)
        if seen["ip_proto"] == TCP and seen["tcp_flags"] & 5:
            return None
        where = layers(frame)
        at = where.l3 + (12 if where.kind == 0x0800 else 8)
        size = 4 if where.kind == 0x0800 else 16
        return self.conns.get((zone, seen["ip_proto"], frame[at : at + size], frame[at + size : at + 2 * size], seen["src_port"], seen["dst_port"]))

    def leave(self, tracked: Tracked) -> None:
        pass

    def cut(self, frame: bytes, tracked: Tracked, missing: int = 0) -> list[Piece]:
        return [Piece(frame, missing)]


def target(conn: Conn) -> tuple[bytes, bytes]:
    """Addresses and ports to leave with."""
    ports = (conn.to_sport or conn.sport).to_bytes(2, "big") + (conn.to_dport or conn.dport).to_bytes(2, "big")
    return address(conn.to_src or conn.src) + address(conn.to_dst or conn.dst), ports


def translates(conn: Conn) -> bool:
    return target(conn) != target(Conn(conn.src, conn.dst, conn.sport, conn.dport))


def translated(frame: bytes, conn: Conn) -> bytes:
    if not translates(conn):
        return frame
    where = layers(frame)
    four = where.kind == 0x0800
    at, l4 = where.l3 + (12 if four else 8), where.l3 + (20 if four else 40)
    addresses, ports = target(conn)
    old = frame[at : at + len(addresses)], frame[l4 : l4 + 4]
    frame = frame[:at] + addresses + frame[at + len(addresses) : l4] + ports + frame[l4 + 4 :]
    if four:
        frame = adjusted(frame, where.l3 + 10, old[0], addresses)
    field = l4 + (16 if conn.proto == TCP else 6)
    if conn.proto == UDP and frame[field : field + 2] == b"\0\0":
        return frame
    frame = adjusted(frame, field, b"".join(old), addresses + ports)
    return frame[:field] + b"\xff\xff" + frame[field + 2 :] if conn.proto == UDP and frame[field : field + 2] == b"\0\0" else frame

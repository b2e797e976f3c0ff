"""A connection as ctnetlink writes it, and as ctmirror has it: one message's attributes into a row of CONN_DTYPE, and back.

Theory of operation: attributes are read into a dictionary, level by level; what is missing is nought, what does not fit is a reason not to take it.
Written are those that ctnetlink wants of a new entry. Of a translated connection that is the tuple of answers without translation, and what each half
becomes: the kernel translates it itself, and so has its own record of it.
Taken apart by hand: a node has a hundred thousand of them, and objects cost fifty times more. This is the readable twin of ctnetlink_pack
and ctnetlink_read, which do the same for many connections at once; all are of the core, for a node and a mirror both hand connections to the kernel.
Source: linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_netlink.c.
Not here: sockets.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.nat_rules import HELPERS
from ctcore.types import CONN_DTYPE, Proto, Status

ATTRIBUTE = struct.Struct("=HH")
NESTED, KIND = 0x8000, 0x3FFF
TUPLE = {0: 1, 1: 2}  # by direction
COUNTERS = {0: 9, 1: 10}
STATUS, PROTOINFO, HELP, TIMEOUT, MARK, ZONE, TIMESTAMP, LABELS = 3, 4, 5, 7, 8, 18, 20, 22
NAT_SRC, NAT_DST = 6, 13
# in a tuple
IP, PROTO, TUPLE_ZONE = 1, 2, 3
SOURCE, DESTINATION = {4: 1, 6: 3}, {4: 2, 6: 4}
NUMBER, SPORT, DPORT = 1, 2, 3
ICMP = {Proto.PROTO_ICMP: (4, 5, 6), Proto.PROTO_ICMPV6: (7, 8, 9)}  # id, type, code
# of protocols
TCP, SCTP = 1, 3
TCP_STATE, TCP_SCALE, TCP_FLAGS = 1, {0: 2, 1: 3}, {0: 4, 1: 5}
SCTP_STATE, SCTP_TAG = 1, {0: 2, 1: 3}
# of a translation
NAT_LOW, NAT_HIGH, NAT_PORTS, PORT_LOW, PORT_HIGH = {4: 1, 6: 4}, {4: 2, 6: 5}, 3, 1, 2
PACKETS, BYTES, START, HELPER_NAME = 1, 2, 1, 1
TAKEN_STATUS = sum(
    int(bit)
    for bit in (
        Status.EXPECTED, Status.SEEN_REPLY, Status.ASSURED, Status.CONFIRMED, Status.SRC_NAT, Status.DST_NAT, Status.SEQ_ADJUST,
        Status.SRC_NAT_DONE, Status.DST_NAT_DONE, Status.FIXED_TIMEOUT,
    )
)  # fmt: skip
GIVEN_STATUS = int(Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED | Status.FIXED_TIMEOUT)
LIBERAL = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL
AF_INET, AF_INET6 = 2, 10
Attributes = dict[int, bytes]


class Odd(Exception):
    """A message that is none of a connection that can be taken: why not."""


# --- reading ----------------------------------------------------------------------------------------------------------------------------


def attributes(data: bytes) -> Attributes:
    """One level. The last one of a kind counts. What is cut off ends it."""
    found, at, end = {}, 0, len(data)
    while at + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > end:
            break
        found[kind & KIND] = data[at + 4 : at + length]
        at += length + 3 & ~3
    return found


def number(of: Attributes, kind: int, size: int) -> int:
    """In network order; nought if it is not there. Raises Odd if it has another size."""
    data = of.get(kind)
    if data is None:
        return 0
    if len(data) != size:
        raise Odd("an attribute of an unexpected size")
    return int.from_bytes(data, "big")


def row_of(data: bytes, hz: int) -> NDArray[Any]:
    """CONN_DTYPE[1] of a message's attributes. Raises Odd: in a few words, why it cannot be taken."""
    top = attributes(data)
    row = np.zeros(1, dtype=CONN_DTYPE)
    conn = row[0]
    for d in range(2):
        _read_tuple(conn["flow"][d]["key"], top.get(TUPLE[d], b""), number(top, ZONE, 2))
        counted = attributes(top.get(COUNTERS[d], b""))
        conn["flow"][d]["packets"], conn["flow"][d]["bytes"] = number(counted, PACKETS, 8), number(counted, BYTES, 8)
    status = number(top, STATUS, 4)
    if status & Status.DYING:
        raise Odd("dying")
    conn["status"] = status & TAKEN_STATUS | Status.CONFIRMED
    conn["timeout"] = min(number(top, TIMEOUT, 4) * hz, (1 << 31) - 1)
    conn["mark"] = number(top, MARK, 4)
    conn["start"] = number(attributes(top.get(TIMESTAMP, b"")), START, 8) & (1 << 63) - 1
    conn["label"] = struct.unpack("<2Q", top.get(LABELS, b"")[:16].ljust(16, b"\0"))
    conn["master"] = -1
    name = attributes(top.get(HELP, b"")).get(HELPER_NAME, b"").rstrip(b"\0").decode(errors="replace")
    conn["helper"] = HELPERS.index(name) + 1 if name in HELPERS else 0
    _read_protocol(conn, attributes(top.get(PROTOINFO, b"")))
    return row


def _read_tuple(key: Any, data: bytes, zone: int) -> None:
    parts = attributes(data)
    addresses, ports = attributes(parts.get(IP, b"")), attributes(parts.get(PROTO, b""))
    family = 4 if SOURCE[4] in addresses else 6
    size = 4 if family == 4 else 16
    source, destination = addresses.get(SOURCE[family], b""), addresses.get(DESTINATION[family], b"")
    if len(source) != size or len(destination) != size:
        raise Odd("without addresses")
    key["src"][:size], key["dst"][:size] = np.frombuffer(source, np.uint8), np.frombuffer(destination, np.uint8)
    key["family"], key["proto"] = family, number(ports, NUMBER, 1)
    key["zone"] = zone or number(parts, TUPLE_ZONE, 2)
    if int(key["proto"]) in ICMP:
        ident, kind, code = ICMP[Proto(int(key["proto"]))]
        key["sport"], key["dport"] = number(ports, ident, 2), number(ports, kind, 1) << 8 | number(ports, code, 1)
    else:
        key["sport"], key["dport"] = number(ports, SPORT, 2), number(ports, DPORT, 2)


def _read_protocol(conn: Any, info: Attributes) -> None:
    proto = int(conn["flow"][0]["key"]["proto"])
    if proto == Proto.PROTO_TCP:
        tcp, told = conn["tcp"], attributes(info.get(TCP, b""))
        tcp["state"] = number(told, TCP_STATE, 1)
        for d in range(2):
            tcp["scale"][d] = number(told, TCP_SCALE[d], 1)
            tcp["flags"][d] = number(told, TCP_FLAGS[d], 2) >> 8  # a byte of flags, a byte of mask
    elif proto == Proto.PROTO_SCTP:
        sctp, told = conn["sctp"], attributes(info.get(SCTP, b""))
        sctp["state"] = number(told, SCTP_STATE, 1)
        sctp["vtag"] = [number(told, SCTP_TAG[d], 4) for d in range(2)]


# --- writing ----------------------------------------------------------------------------------------------------------------------------


def attribute(kind: int, data: bytes) -> bytes:
    return ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def family_of(conn: Any) -> int:
    return AF_INET if conn["flow"][0]["key"]["family"] == 4 else AF_INET6


def address(key: Any, half: str) -> bytes:
    return bytes(key[half][: 4 if key["family"] == 4 else 16])


def tuple_attribute(d: int, src: bytes, dst: bytes, sport: int, dport: int, key: Any, zone: int) -> bytes:
    """key: for what both halves have in common. zone: of this direction alone, or 0."""
    proto, family = int(key["proto"]), int(key["family"])
    ports = [attribute(NUMBER, bytes([proto]))]
    if proto in ICMP:
        ident, kind, code = ICMP[Proto(proto)]
        ports += [attribute(ident, sport.to_bytes(2, "big")), attribute(kind, bytes([dport >> 8])), attribute(code, bytes([dport & 0xFF]))]
    else:
        ports += [attribute(SPORT, sport.to_bytes(2, "big")), attribute(DPORT, dport.to_bytes(2, "big"))]
    parts = [nested(IP, attribute(SOURCE[family], src), attribute(DESTINATION[family], dst)), nested(PROTO, *ports)]
    if zone:
        parts.append(attribute(TUPLE_ZONE, zone.to_bytes(2, "big")))
    return nested(TUPLE[d], *parts)


def tuples_of(conn: Any) -> bytes:
    """Both tuples, that of the answers as if nothing were translated."""
    orig, reply = (conn["flow"][d]["key"] for d in range(2))
    zones = int(orig["zone"]), int(reply["zone"])
    split = zones[0] != zones[1]
    src, dst, sport, dport = address(orig, "src"), address(orig, "dst"), int(orig["sport"]), int(orig["dport"])
    ahead = tuple_attribute(0, src, dst, sport, dport, orig, zones[0] if split else 0)
    if int(orig["proto"]) in ICMP:
        back = tuple_attribute(1, dst, src, sport, int(reply["dport"]), orig, zones[1] if split else 0)
    else:
        back = tuple_attribute(1, dst, src, dport, sport, orig, zones[1] if split else 0)
    return ahead + back + (b"" if split else attribute(ZONE, zones[0].to_bytes(2, "big")))


def translation_of(conn: Any) -> bytes:
    """What becomes of each half: what answers are sent to, and come from."""
    orig, reply = (conn["flow"][d]["key"] for d in range(2))
    icmp = int(orig["proto"]) in ICMP
    parts = b""
    if conn["status"] & Status.SRC_NAT:
        parts += _half(NAT_SRC, reply, "dst", int(reply["sport"] if icmp else reply["dport"]))
    if conn["status"] & Status.DST_NAT:
        parts += _half(NAT_DST, reply, "src", int(reply["sport"]))
    return parts


def _half(kind: int, reply: Any, half: str, port: int) -> bytes:
    family, where, ports = int(reply["family"]), address(reply, half), port.to_bytes(2, "big")
    return nested(
        kind, attribute(NAT_LOW[family], where), attribute(NAT_HIGH[family], where),
        nested(NAT_PORTS, attribute(PORT_LOW, ports), attribute(PORT_HIGH, ports)),
    )  # fmt: skip


def state_of(conn: Any, hz: int) -> bytes:
    """What a connection has beside its tuples, and what of an entry that is there already can be changed."""
    seconds = -(-int(conn["timeout"]) // hz)
    parts = attribute(TIMEOUT, seconds.to_bytes(4, "big")) + attribute(STATUS, (int(conn["status"]) & GIVEN_STATUS).to_bytes(4, "big"))
    parts += attribute(MARK, int(conn["mark"]).to_bytes(4, "big"))
    if any(conn["label"]):
        parts += attribute(LABELS, struct.pack("<2Q", *conn["label"].tolist()))
    proto = int(conn["flow"][0]["key"]["proto"])
    if proto == Proto.PROTO_TCP:
        tcp = conn["tcp"]
        told = [attribute(TCP_STATE, bytes([int(tcp["state"])]))]
        told += [attribute(TCP_SCALE[d], bytes([int(tcp["scale"][d])])) for d in range(2)]
        # Windows are what it is not told: it learns them anew, and had better be liberal.
        told += [attribute(TCP_FLAGS[d], bytes([int(tcp["flags"][d]) & 0x07 | LIBERAL, 0x07 | LIBERAL])) for d in range(2)]
        parts += nested(PROTOINFO, nested(TCP, *told))
    elif proto == Proto.PROTO_SCTP:
        sctp = conn["sctp"]
        tags = [attribute(SCTP_TAG[d], int(sctp["vtag"][d]).to_bytes(4, "big")) for d in range(2)]
        parts += nested(PROTOINFO, nested(SCTP, attribute(SCTP_STATE, bytes([int(sctp["state"])])), *tags))
    return parts


def helper_of(conn: Any) -> bytes:
    return nested(HELP, attribute(HELPER_NAME, HELPERS[int(conn["helper"]) - 1].encode() + b"\0")) if conn["helper"] else b""


# --- whole requests -------------------------------------------------------------------------------------------------------------------------

MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
FAMILY = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
CT_NEW, CT_GET, CT_DELETE = (1 << 8 | number for number in range(3))  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
REQUEST, ACK, EXCLUSIVE, CREATE = 0x1, 0x4, 0x200, 0x400


class Ask(IntEnum):
    """What is asked for a connection: a new entry; one that is there, changed; removed; told."""

    CREATE = 1
    CHANGE = 2
    DELETE = 3
    GET = 4


KINDS = {Ask.CREATE: (CT_NEW, ACK | CREATE | EXCLUSIVE), Ask.CHANGE: (CT_NEW, ACK), Ask.DELETE: (CT_DELETE, ACK), Ask.GET: (CT_GET, ACK)}


def request(conn: Any, hz: int, ask: Ask, helper: bool = True) -> bytes:
    """One request, its sequence number nought. What is to be removed or told goes by its original tuple, and its zone, without which it is another
    one.

    helper: a new entry has the connection's.
    """
    if ask in (Ask.CREATE, Ask.CHANGE):
        body = tuples_of(conn) + state_of(conn, hz)
        body += translation_of(conn) + (helper_of(conn) if helper else b"") if ask == Ask.CREATE else b""
    else:
        body = name_of(conn)
    kind, flags = KINDS[ask]
    return MESSAGE.pack(MESSAGE.size + FAMILY.size + len(body), kind, REQUEST | flags, 0, 0) + FAMILY.pack(family_of(conn), 0, 0) + body


def name_of(conn: Any) -> bytes:
    """The original tuple and its zone."""
    orig, reply = (conn["flow"][d]["key"] for d in range(2))
    zones = int(orig["zone"]), int(reply["zone"])
    split = zones[0] != zones[1]
    sport, dport = int(orig["sport"]), int(orig["dport"])
    ahead = tuple_attribute(0, address(orig, "src"), address(orig, "dst"), sport, dport, orig, zones[0] if split else 0)
    return ahead + (b"" if split else attribute(ZONE, zones[0].to_bytes(2, "big")))

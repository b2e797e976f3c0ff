"""A connection as an entry of the kernel's conntrack: made out of a mirror's commands, and held against what the kernel says of it.

Theory of operation: either direction's command has both tuples, since what leaves is the other one turned round. Rows for ctnetlink are made of many
entries at once. An entry's name, the request that asks for it, is kept, for it begins every other request about it, too.
Invariants: TCP and GRE are assured from the beginning, UDP when its reply direction is there (A2.7, A2.10-12); the window check is liberal, and the
scales the widest, for nobody tells the kernel the windows; what the kernel has seen itself (`seen`) is never taken back, which it refuses.
Not here: asking (conntrack_entries), bytes (ctcore.ctnetlink_pack).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.types import CONN_DTYPE, KEY_DTYPE, Proto, Status, TcpState
from offload.backend import BYPASS_KEY
from offload.netlink.conntrack import OFFLOAD, UNCOUNTED
from offload.records import COMMAND_DTYPE, Ctinfo

PROTOS = (Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_GRE)
RAISED = int(Status.SEEN_REPLY | Status.ASSURED)  # that the kernel never takes back
COMMAND = Struct("=40s40sQq16sIBBBx")  # struct Command, keys whole
KEY = Struct("=16s16sHHHBB")
PROTO_AT, FAMILY_AT, ZONE_AT = 38, 39, 36
SCALE, TCP_FLAGS = 14, 0x03  # the most there is; IP_CT_TCP_FLAG_WINDOW_SCALE, SACK_PERM
LABEL_NONE = bytes(16)
FRESH = 500_000_000  # ns for which counters that were told serve the other direction, too
SLACK = 1.5  # s: lifetimes are told in whole ones
assert COMMAND.size == COMMAND_DTYPE.itemsize and KEY.size == KEY_DTYPE.itemsize


Pair = Sequence[int]  # by direction
NONE: Pair = (0, 0)  # shared by all: an entry of few objects is made in half of the time


class Command(NamedTuple):
    """Keys and label as bytes."""

    match: bytes
    to: bytes
    cookie: int
    conn: int
    label: bytes
    mark: int
    op: int
    ctinfo: int
    dir: int


class Meant(NamedTuple):
    """What commands have made of an entry."""

    ctinfo: list[int]
    conn: int
    mark: int
    label: bytes


class Told(NamedTuple):
    """An entry as the kernel tells it. keys: bytes, by direction; left: s, 0: not told; state: of TCP, 0: not told; packets, octets: by direction."""

    keys: tuple[bytes, bytes]
    status: int
    left: float
    state: int
    mark: int
    label: bytes
    packets: Pair
    octets: Pair

    @property
    def counted(self) -> bool:
        return not self.status & UNCOUNTED

    @property
    def over(self) -> bool:
        """Its talk is about to end, or has: no flow table takes it any more (A2.7)."""
        return self.state not in (TcpState.TCP_NONE, TcpState.TCP_ESTABLISHED)


class Entry:
    """number: of the cookies of its directions; keys: by direction, as packets come; ctinfo: by direction, 0: that one is not there; packets, octets:
    by direction, as the kernel told last; said_*: of these, to the mirror; used: by direction, when they last grew, ns; left: s, as of `read`, ns,
    of its lifetime; counted: whether it has counters; over: its talk is about to end; doubtful: nobody knows what became of the last command; let:
    directions that are in the bypass, as bits; owed: the direction that has not been told what was asked for the other one, -1: none."""

    __slots__ = (
        "conn", "counted", "ctinfo", "doubtful", "keys", "label", "left", "let", "mark", "name", "number", "octets", "over", "owed", "packets",
        "read", "said_octets", "said_packets", "seen", "used",
    )  # fmt: skip

    def __init__(self, command: Command, lease: float, now: int) -> None:
        d = command.cookie & 1
        other = turned(command.to)
        self.number, self.conn = command.cookie >> 1, command.conn
        self.keys = (other, command.match) if d else (command.match, other)
        self.ctinfo, self.mark, self.label = [0, 0], command.mark, command.label
        self.packets = self.octets = self.said_packets = self.said_octets = self.used = NONE
        self.seen, self.left, self.read, self.name, self.owed = 0, lease, now, b"", -1
        self.counted, self.over, self.doubtful, self.let = True, False, False, 0

    def meant(self) -> Meant:
        """As it is now, whatever is meant later."""
        return Meant(list(self.ctinfo), self.conn, self.mark, self.label)

    def means(self, command: Command) -> bool:
        d = command.cookie & 1
        return self.keys[d] == command.match and self.keys[1 - d] == turned(command.to)

    def cookie(self, d: int) -> int:
        return self.number << 1 | d

    @property
    def proto(self) -> int:
        return self.keys[0][PROTO_AT]

    @property
    def translated(self) -> bool:
        return self.keys[0] != turned(self.keys[1])

    @property
    def there(self) -> list[int]:
        """Directions."""
        return [d for d in range(2) if self.ctinfo[d]]

    def known(self, d: int, now: int) -> bool:
        """Whether what there is to tell of a direction has just been asked for with the other one."""
        return self.owed == d and 0 <= now - self.read < FRESH

    def untold(self, d: int) -> tuple[int, int]:
        """Packets and bytes of a direction since this was asked last. One that has fewer than before was made anew, and has counted these."""
        packets, octets, before = self.packets[d], self.octets[d], self.said_packets[d]
        if packets == before:
            return 0, 0
        new = (packets - before, max(octets - self.said_octets[d], 0)) if packets > before else (packets, octets)
        self.said_packets, self.said_octets = _with(self.said_packets, d, packets), _with(self.said_octets, d, octets)
        return new

    def forgive(self) -> None:
        """What has been counted until now is nobody's here."""
        self.said_packets, self.said_octets, self.used = self.packets, self.octets, NONE

    def takes(self, told: Told, now: int) -> None:
        """What the kernel says of it at `now` (ns).

        Without counters its lifetime says whether packets have come: each begins it anew, and it does not just go on. One that a flow table of the
        kernel has is one that packets came of not long ago, for that lets go of idle ones.
        """
        self.counted, self.seen, self.over = told.counted, told.status & RAISED, told.over
        if not told.counted and (told.status & OFFLOAD or abs(told.left - self.left + (now - self.read) / 1e9) > SLACK):
            self.used = (now, now)
        for d in range(2):
            if told.packets[d] != self.packets[d]:
                self.used = _with(self.used, d, now)
        self.packets, self.octets, self.left, self.read = told.packets, told.octets, told.left, now


class Wish(NamedTuple):
    """What the entry of a connection should become. before: what it was meant to be; None: it is new; cookies: commands that are to be answered."""

    entry: Entry
    before: Meant | None
    cookies: list[int]

    @property
    def certain(self) -> bool:
        """The kernel has had its entry."""
        return self.before is not None and not self.entry.doubtful


def _with(pair: Pair, d: int, value: int) -> Pair:
    return (pair[0], value) if d else (value, pair[1])


def turned(key: bytes) -> bytes:
    """A tuple as its answers have it."""
    return key[16:32] + key[:16] + key[34:36] + key[32:34] + key[36:]


def bypass_key(key: bytes) -> bytes:
    src, dst, sport, dport, _, proto, family = KEY.unpack(key)
    return BYPASS_KEY.pack(src, dst, sport, dport, proto, family)


def commands_of(commands: NDArray[Any]) -> Iterator[Command]:
    return map(Command._make, COMMAND.iter_unpack(commands.tobytes()))


def in_one_go(commands: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Commands of one kind, and one of each cookie."""
    ops, cookies = commands["op"].tolist(), commands["cookie"].tolist()
    start = 0
    seen: set[int] = set()
    for at, (op, cookie) in enumerate(zip(ops, cookies, strict=True)):
        if at > start and (op != ops[start] or cookie in seen):
            yield ops[start], commands[start:at]
            start, seen = at, set()
        seen.add(cookie)
    if ops:
        yield ops[start], commands[start:]


def told_of(rows: NDArray[Any], status: NDArray[Any], hz: int) -> Iterator[Told]:
    """Of CONN_DTYPE[n] and the kernel's status of each."""
    if not len(rows):
        return
    orig, reply = (_bytes_of(rows["flow"]["key"][:, d]) for d in range(2))
    tcp = rows["flow"]["key"][:, 0]["proto"] == Proto.PROTO_TCP
    columns = (
        zip(orig, reply, strict=True), status.tolist(), (rows["timeout"] / hz).tolist(), np.where(tcp, rows["tcp"]["state"], 0).tolist(),
        rows["mark"].tolist(), _bytes_of(rows["label"]), rows["flow"]["packets"].tolist(), rows["flow"]["bytes"].tolist(),
    )  # fmt: skip
    yield from map(Told._make, zip(*columns, strict=True))


def _bytes_of(column: NDArray[Any]) -> list[bytes]:
    """Each element's."""
    data = np.ascontiguousarray(column).tobytes()
    size = len(data) // len(column)
    return [data[at : at + size] for at in range(0, len(data), size)]


def rows_for(entries: Sequence[Entry], ticks: int) -> NDArray[Any]:
    """CONN_DTYPE[n] as the kernel should have them, with so many ticks to live."""
    rows = np.zeros(len(entries), dtype=CONN_DTYPE)
    keys = [np.frombuffer(b"".join([entry.keys[d] for entry in entries]), dtype=KEY_DTYPE) for d in range(2)]
    for d in range(2):
        rows["flow"]["key"][:, d] = keys[d]
    rows["status"] = _status_of(entries, keys)
    rows["timeout"] = ticks
    rows["mark"] = [entry.mark for entry in entries]
    rows["label"] = np.frombuffer(b"".join([entry.label for entry in entries]), dtype=np.uint64).reshape(-1, 2)
    tcp = keys[0]["proto"] == Proto.PROTO_TCP
    rows["tcp"]["state"][tcp], rows["tcp"]["scale"][tcp], rows["tcp"]["flags"][tcp] = TcpState.TCP_ESTABLISHED, SCALE, TCP_FLAGS
    return rows


def _status_of(entries: Sequence[Entry], keys: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """SEEN_REPLY, ASSURED, and what is translated, of each."""
    orig, reply = keys
    answered = np.array([entry.ctinfo[1] != 0 for entry in entries])
    seen = np.array([entry.ctinfo[0] == Ctinfo.ESTABLISHED for entry in entries]) | answered
    stream = orig["proto"] != Proto.PROTO_UDP
    status = np.array([entry.seen for entry in entries], dtype=np.uint16) | int(Status.CONFIRMED)
    status[seen | stream] |= int(Status.SEEN_REPLY)
    status[answered | stream] |= int(Status.ASSURED)
    for bit, half, other, port, back in ((Status.SRC_NAT, "src", "dst", "sport", "dport"), (Status.DST_NAT, "dst", "src", "dport", "sport")):
        status[(orig[half] != reply[other]).any(axis=1) | (orig[port] != reply[back])] |= int(bit)
    return status

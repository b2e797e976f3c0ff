"""The kernel's connections taken over, and given back, through ctnetlink, in the network namespace that this thread is in.

Theory of operation: a dump is read message by message and handed to the tracker in groups; what cannot be taken is counted by its reason. The kernel
keeps its entries: no packet reaches them any more, and they expire. Giving back creates each entry with its translation; one that the kernel still
has is changed instead.
Not taken over or given back: expectations, and connections whose sequence numbers a helper has moved.
Invariants: no more is read than the tracker has places for; a kernel that stops answering is an error after PATIENCE.
Not here: messages' contents (ctcore.ctnetlink).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctcore.ctnetlink import CT_GET, CT_NEW, FAMILY, MESSAGE, REQUEST, Ask
from ctcore.ctnetlink_pack import requests
from ctcore.ctnetlink_read import rows_of
from ctcore.steering import owner
from ctcore.tracker import Tracker
from ctcore.types import CONN_DTYPE, Status
from datapath.errors import KernelError

NETLINK_NETFILTER, NETLINK_CAP_ACK, SOL_NETLINK = 12, 10, 270
SO_RCVBUFFORCE = 33
BUFFER = 1 << 22
LONGEST = 1 << 18  # bytes of one answer
PATIENCE = 10.0  # seconds
NUMBER, NUMBER_AT = struct.Struct("=I"), 8  # a message's sequence number
CODE = struct.Struct("=i")
ERROR, DONE = 2, 3
DUMP = 0x300
GROUP = 4096  # connections handed to the tracker at a time
AT_ONCE = 64  # requests before their answers are read


class Moved(NamedTuple):
    """How many connections, and of the others how many for which reason."""

    conns: int
    left_out: dict[str, int]

    def told(self) -> dict[str, Any]:
        return {"conns": self.conns, "left_out": self.left_out}


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    sock.bind((0, 0))
    sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    sock.settimeout(PATIENCE)
    return sock


def _received(sock: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """The messages of one answer: (type, sequence number, what follows). Raises KernelError if there is none in time."""
    try:
        data, _, _, sender = sock.recvmsg(LONGEST)
    except TimeoutError:
        raise KernelError(f"ctnetlink: no answer within {PATIENCE:.0f} s") from None
    if sender[0] != 0:
        return  # another process may send to this socket; the kernel is 0
    at = 0
    while at + MESSAGE.size <= len(data):
        length, kind, _, sequence, _ = MESSAGE.unpack_from(data, at)
        if length < MESSAGE.size or at + length > len(data):
            return
        yield kind, sequence, data[at + MESSAGE.size : at + length]
        at += length + 3 & ~3


# --- taking over ------------------------------------------------------------------------------------------------------------------------


def dumped(sock: socket.socket) -> Iterator[bytes]:
    """The attributes of each connection that the kernel tracks. Raises KernelError."""
    body = FAMILY.pack(socket.AF_UNSPEC, 0, 0)
    sock.send(MESSAGE.pack(MESSAGE.size + len(body), CT_GET, REQUEST | DUMP, 1, 0) + body)
    while True:
        for kind, _, data in _received(sock):
            if kind == DONE:
                return
            if kind == ERROR:
                code = -CODE.unpack_from(data)[0]
                raise KernelError(f"ctnetlink: {os.strerror(code)}: expected a list of connections (CAP_NET_ADMIN, nf_conntrack_netlink)")
            if kind == CT_NEW:
                yield data[FAMILY.size :]


def adopt(trackers: Sequence[Tracker], now: int) -> Moved:
    """Enter the kernel's connections into the trackers that share them, whose clocks move on to now (ns). Raises KernelError, OSError; then some may
    be in them."""
    for tracker in trackers:
        tracker.expire(now)
    hz, places = trackers[0].config.hz, sum(tracker.config.capacity for tracker in trackers)
    out: Counter[str] = Counter()
    taken, told = 0, []
    with _socket() as sock:
        for data in dumped(sock):
            told.append(data)
            if len(told) == GROUP:
                taken += _enter(trackers, told, hz, out)
                told = []
            if sum(tracker.count for tracker in trackers) >= places:
                out["no place: what followed was not read"] += 1
                break
    return Moved(taken + _enter(trackers, told, hz, out), dict(out))


def _enter(trackers: Sequence[Tracker], told: list[bytes], hz: int, out: Counter[str]) -> int:
    conns, _, odd = rows_of(told, hz)
    out.update(odd)
    owners = _owners(conns, len(trackers))
    out.update({"answers would come to another worker": int((owners < 0).sum())} if (owners < 0).any() else {})
    entered = 0
    for number, tracker in enumerate(trackers):
        taken, refused = tracker.adopt(np.ascontiguousarray(conns[owners == number]))
        entered += taken
        out.update(refused)
    return entered


def _owners(conns: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Whose each connection is, of `count` workers; -1: packets of one direction would come to another one than those of the other."""
    if count == 1:
        return np.zeros(len(conns), dtype=np.int64)
    keys = conns["flow"]["key"]
    pairs = ([owner(keys[i, d].tobytes(), count) for d in range(2)] for i in range(len(conns)))
    return np.array([one if one == other else -1 for one, other in pairs], dtype=np.int64)


# --- giving back ------------------------------------------------------------------------------------------------------------------------


def _ask(sock: socket.socket, asked: list[bytes]) -> list[int]:
    """The error number of each, numbered from 0 on."""
    sock.send(b"".join(each[:NUMBER_AT] + NUMBER.pack(i) + each[NUMBER_AT + NUMBER.size :] for i, each in enumerate(asked)))
    codes: dict[int, int] = {}
    while len(codes) < len(asked):
        for kind, sequence, data in _received(sock):
            if kind == ERROR and sequence < len(asked):
                codes[sequence] = -CODE.unpack_from(data)[0]
    return [codes[i] for i in range(len(asked))]


def hand_over(trackers: Sequence[Tracker]) -> Moved:
    """Create the trackers' connections in the kernel. What is in a flow table is to be flushed before. Raises KernelError, OSError."""
    conns = np.concatenate([tracker.conns() for tracker in trackers]).astype(CONN_DTYPE, copy=False)
    hz = trackers[0].config.hz
    out: Counter[str] = Counter()
    moved = (conns["status"] & Status.SEQ_ADJUST) != 0
    out.update({"its sequence numbers are moved": int(moved.sum())} if moved.any() else {})
    conns, given = conns[~moved], 0
    with _socket() as sock:
        for start in range(0, len(conns), AT_ONCE):
            given += _give(sock, conns[start : start + AT_ONCE], hz, out)
    return Moved(given, dict(out))


def _give(sock: socket.socket, conns: NDArray[Any], hz: int, out: Counter[str]) -> int:
    """New ones; then what of them was there already, or has a helper that this kernel has not."""
    codes = np.array(_ask(sock, requests(conns, hz, Ask.CREATE)))
    there, bare = codes == errno.EEXIST, (codes == errno.EOPNOTSUPP) & (conns["helper"] != 0)
    again = requests(conns[there], hz, Ask.CHANGE) + requests(conns[bare], hz, Ask.CREATE, helper=False)
    second = _ask(sock, again) if again else []
    out.update(os.strerror(code) for code in (*second, *codes[~there & ~bare].tolist()) if code)
    return int((codes == 0).sum()) + second.count(0)

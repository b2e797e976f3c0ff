"""What becomes of the kernel's connections without our doing: changed and destroyed ones, as ctnetlink tells it.

Theory of operation: a socket in two of nfnetlink's groups, with the filter of offload.netlink.monitor that lets changes and ends through, and of
these none that our own socket has asked for. Messages are read many at a time, into rows.
Invariants: reading never waits, and reads a limited number at once; what was lost for want of room is told as `overrun`, so that somebody looks at
all there is. An entry has events only if somebody listened when it was made (nf_conntrack_events).
Source: linux/netfilter/nfnetlink_compat.h, nfnetlink_conntrack.h. Not here: what is to be done about it (offload.conntrack_entries).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from ctcore import ctnetlink
from ctcore.ctnetlink_read import rows_of
from offload.netlink.channel import LONGEST, NETFILTER, messages, widen
from offload.netlink.conntrack import SETTINGS
from offload.netlink.monitor import attach, program

UPDATE_GROUP, DESTROY_GROUP = 1 << 1, 1 << 2  # NF_NETLINK_CONNTRACK_UPDATE, NF_NETLINK_CONNTRACK_DESTROY
MOST = 65_536  # events read at once
WATCHED = (ctnetlink.CT_NEW, ctnetlink.CT_DELETE)  # in the group of changes a new state is a CT_NEW


class ConntrackEvents:
    """Of the network namespace that this thread is in. ours: the socket that asks for our own changes; hz: ticks a second of rows. A context manager.

    Raises PermissionError without CAP_NET_ADMIN.
    """

    def __init__(self, ours: socket.socket, hz: int) -> None:
        self.hz, self.overrun = hz, False
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
        attach(self.socket, program(ours.getsockname()[0], WATCHED))
        widen(self.socket)
        try:
            self.socket.bind((0, UPDATE_GROUP | DESTROY_GROUP))
        except OSError:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def __enter__(self) -> ConntrackEvents:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    @property
    def told(self) -> bool:
        """Whether the kernel tells any: of this thread's namespace."""
        try:
            return (SETTINGS / "nf_conntrack_events").read_text().strip() != "0"
        except OSError:
            return False

    def events(self) -> Iterator[tuple[bool, NDArray[Any], NDArray[Any]]]:
        """What has come since the last time, in order: whether they are destroyed, CONN_DTYPE[n], the kernel's status of each. Raises Malformed."""
        told: list[bytes] = []
        of = 0
        for kind, data in self._read():
            if kind != of and told:
                yield self._rows(of, told)
                told = []
            of = kind
            told.append(data)
        if told:
            yield self._rows(of, told)

    def _rows(self, kind: int, told: list[bytes]) -> tuple[bool, NDArray[Any], NDArray[Any]]:
        rows, status, _ = rows_of(told, self.hz, True)
        return kind == ctnetlink.CT_DELETE, rows, status

    def _read(self) -> Iterator[tuple[int, bytes]]:
        """Kind and attributes."""
        left = MOST
        while left > 0:
            try:
                data, _, _, sender = self.socket.recvmsg(LONGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overrun = True
                continue
            if sender[0] == 0:
                for kind, _, _, body in messages(data):
                    if kind in WATCHED:
                        yield kind, body[ctnetlink.FAMILY.size :]
                        left -= 1

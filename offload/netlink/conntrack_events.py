"""What becomes of the kernel's connections without our doing: changed and destroyed ones, as ctnetlink tells it.

Theory of operation: a socket in two of nfnetlink's groups, with the filter of offload.netlink.monitor that lets changes and ends through, and of
these none that our own socket has asked for. Messages are read many at a time, into rows.
An entry has events only if somebody listened when it was made (nf_conntrack_events).
Source: linux/netfilter/nfnetlink_compat.h, nfnetlink_conntrack.h. Not here: the socket (listener), what is done about it (offload.conntrack_entries).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ctcore import ctnetlink
from ctcore.ctnetlink_read import rows_of
from offload.netlink.channel import NETFILTER
from offload.netlink.conntrack import SETTINGS
from offload.netlink.listener import Listener
from offload.netlink.monitor import program

UPDATE_GROUP, DESTROY_GROUP = 1 << 1, 1 << 2  # NF_NETLINK_CONNTRACK_UPDATE, NF_NETLINK_CONNTRACK_DESTROY
WATCHED = (ctnetlink.CT_NEW, ctnetlink.CT_DELETE)  # in the group of changes a new state is a CT_NEW


class ConntrackEvents(Listener):
    """Of the network namespace that this thread is in. ours: the socket that asks for our own changes; hz: ticks a second of rows. A context manager.

    Raises PermissionError without CAP_NET_ADMIN.
    """

    def __init__(self, ours: socket.socket, hz: int) -> None:
        super().__init__(NETFILTER, program(ours.getsockname()[0], WATCHED), UPDATE_GROUP | DESTROY_GROUP)
        self.hz = hz

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
        for kind, body in self.heard():
            if kind not in WATCHED:
                continue
            if kind != of and told:
                yield self._rows(of, told)
                told = []
            of = kind
            told.append(body[ctnetlink.FAMILY.size :])
        if told:
            yield self._rows(of, told)

    def _rows(self, kind: int, told: list[bytes]) -> tuple[bool, NDArray[Any], NDArray[Any]]:
        rows, status, _ = rows_of(told, self.hz, True)
        return kind == ctnetlink.CT_DELETE, rows, status

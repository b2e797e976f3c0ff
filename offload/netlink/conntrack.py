"""Connections put into the kernel's conntrack, changed, removed, and listed: many at once, through ctnetlink.

What act_ct is to offload has to be an entry of the kernel's: ESTABLISHED, assured, with zone, mark, labels and translation, and its window check
liberal, since nobody tells it the windows (ctcore.ctnetlink writes all of that). An entry without its zone in the request is another zone's.
Labels: Linux 6.12 and later keeps them only where the namespace uses labels, which an action `ct ... label` that is installed makes it do; elsewhere
a new entry comes without, and a change of them is ENOSPC.
Counters: an entry has them if the namespace counted when it was made (nf_conntrack_acct), and never otherwise.
Not here: which connections (mirror), their bytes (ctcore.ctnetlink, ctnetlink_pack, ctnetlink_read), what others do (conntrack_events).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ctcore import ctnetlink
from ctcore.ctnetlink import Ask
from ctcore.ctnetlink_pack import requests
from ctcore.ctnetlink_read import UNCOUNTED, rows_of
from ctcore.types import CONN_DTYPE
from offload.netlink.attributes import BYTES, Level
from offload.netlink.channel import NETFILTER, Channel
from offload.netlink.extack import Answer
from offload.netlink.filters import DUMP

NAMES = (
    "TUPLE_ORIG", "TUPLE_REPLY", "STATUS", "PROTOINFO", "HELP", "NAT_SRC", "TIMEOUT", "MARK", "COUNTERS_ORIG", "COUNTERS_REPLY", "USE", "ID",
    "NAT_DST", "TUPLE_MASTER", "SEQ_ADJ_ORIG", "SEQ_ADJ_REPLY", "SECMARK", "ZONE", "SECCTX", "TIMESTAMP", "MARK_MASK", "LABELS", "LABELS_MASK",
    "SYNPROXY", "FILTER", "STATUS_MASK",
)  # fmt: skip
__all__ = ["HW_OFFLOAD", "OFFLOAD", "UNCOUNTED", "Counting", "KernelConntrack", "count_from_now", "lease_of", "removal_of"]
CONNTRACK = Level("conntrack", "CTA_", {number: (name, BYTES) for number, name in enumerate(NAMES, 1)})
OFFLOAD, HW_OFFLOAD = 1 << 14, 1 << 15  # IPS_OFFLOAD, IPS_HW_OFFLOAD
GROUP = 4096  # connections listed at a time
SETTINGS = Path("/proc/sys/net/netfilter")  # of the namespace that the thread which opens them is in
_HEAD = Struct("=IHH")  # length, type, flags
_SECONDS = Struct(">I")


class Counting(NamedTuple):
    """Whether new entries have counters. changed: since they were asked for just now; why: they have none."""

    on: bool
    changed: bool = False
    why: str = ""


def count_from_now() -> Counting:
    """New entries of this thread's namespace have counters from now on, if that can be set.

    It stays set: it costs a few bytes an entry, and whoever makes or reads entries after us may have come to rely on it.
    """
    setting = SETTINGS / "nf_conntrack_acct"
    try:
        if setting.read_text().strip() != "0":
            return Counting(True)
        setting.write_text("1")
        return Counting(True, changed=True)
    except OSError as error:
        return Counting(False, why=f"{setting}: {error.strerror}")


def removal_of(name: bytes) -> bytes:
    """The request to remove what a request for an entry (Ask.GET) asks for."""
    return _HEAD.pack(len(name), ctnetlink.CT_DELETE, ctnetlink.REQUEST | ctnetlink.ACK) + name[_HEAD.size :]


def lease_of(name: bytes, seconds: int) -> bytes:
    """The request that lets an entry live for so long from now on, whatever else it is. 0: it is over, also if a flow table has the entry."""
    more = ctnetlink.attribute(ctnetlink.TIMEOUT, _SECONDS.pack(seconds))
    return _HEAD.pack(len(name) + len(more), ctnetlink.CT_NEW, ctnetlink.REQUEST | ctnetlink.ACK) + name[_HEAD.size :] + more


class KernelConntrack:
    """The conntrack of the network namespace that this thread is in now. hz: ticks a second of the rows' timeouts. A context manager."""

    def __init__(self, hz: int = 250) -> None:
        self.hz = hz
        self.channel = Channel(NETFILTER, CONNTRACK, ctnetlink.FAMILY.size)
        self.odd: Counter[str] = Counter()  # of the last list: what was left out, by why

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.channel.close()

    def ask(self, conns: NDArray[Any], ask: Ask, *, helper: bool = True) -> list[Answer]:
        """conns: CONN_DTYPE[n]; an answer for each. Raises NetlinkError if the kernel does not answer.

        CREATE of what is there is EEXIST, CHANGE and DELETE of what is not ENOENT; LOST: not known.
        """
        return self.channel.ask(requests(conns, self.hz, ask, helper), sparing=True)

    def tell(self, requests: Sequence[bytes]) -> list[Answer]:
        """Ask for what is asked for already as bytes; `told` has what came of Ask.GET. Raises NetlinkError if the kernel does not answer."""
        return self.channel.ask(requests, sparing=True)

    def told(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The entries that the last `tell` was answered with: as of `listed`, in the order of the requests, without those that are about to die."""
        return self._read([data[ctnetlink.FAMILY.size :] for _, data in sorted(self.channel.told.items())])

    def listed(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """All of them, in groups: CONN_DTYPE[n] and the kernel's status of each, uint32[n], which has OFFLOAD and HW_OFFLOAD, and
        UNCOUNTED, where it has no counters. Raises NetlinkError."""
        self.odd = Counter()
        body = ctnetlink.FAMILY.pack(0, 0, 0)
        size = ctnetlink.MESSAGE.size + len(body)
        told: list[bytes] = []
        for _, data in self.channel.dump(ctnetlink.MESSAGE.pack(size, ctnetlink.CT_GET, ctnetlink.REQUEST | DUMP, 0, 0) + body):
            told.append(data[ctnetlink.FAMILY.size :])
            if len(told) == GROUP:
                yield self._read(told)
                told = []
        if told:
            yield self._read(told)

    def _read(self, told: list[bytes]) -> tuple[NDArray[Any], NDArray[Any]]:
        rows, status, odd = rows_of(told, self.hz)
        self.odd.update(odd)
        return rows, status

    def all(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The whole list as one."""
        groups = list(self.listed())
        if not groups:
            return np.empty(0, dtype=CONN_DTYPE), np.empty(0, dtype=np.uint32)
        return _joined([rows for rows, _ in groups]), np.concatenate([status for _, status in groups])


def _joined(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """As one array of CONN_DTYPE, whose fields overlap, which np.concatenate does not keep."""
    whole = np.empty(sum(map(len, rows)), dtype=CONN_DTYPE)
    at = 0
    for each in rows:
        whole[at : at + len(each)].view(np.uint8).reshape(-1)[:] = each.view(np.uint8).reshape(-1)
        at += len(each)
    return whole

"""What tests of connections as entries of the kernel's conntrack have in common: connections, a feigned bypass, what others do there, and how it is
looked at. Not here: namespaces and backends (test_entries/conftest.py).
"""

from __future__ import annotations

import errno
import subprocess

import numpy as np

from ctcore.ctnetlink import Ask
from ctcore.types import Status, TcpState
from offload.conntrack_entries import ConntrackEntries
from offload.entry import Entry, commands_of, rows_for
from offload.netlink.conntrack import KernelConntrack
from offload.records import Op
from pcap_tests.test_offload.commanded import GRE, UDP, Flow, S, commands

SNAT = Flow(2, UDP, sport=5000, dport=53, to=("198.51.100.1", 6000, "192.0.2.9", 53))
DNAT = Flow(3, src="2001:db8:1::7", dst="2001:db8:2::9", to=("2001:db8:1::7", 40_000, "2001:db8:3::1", 8080))
BOTH = Flow(4, sport=41_000, to=("198.51.100.1", 6000, "203.0.113.5", 8080), zone=9, mark=0x42)
PLAIN = Flow(1)
ALL = (PLAIN, SNAT, DNAT, BOTH, Flow(5, GRE, sport=0, dport=0), Flow(6, UDP, dst="192.0.2.77"))
FIN_WAIT = int(TcpState.FIN_WAIT)
EVERYTHING = int(Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED)
LABELLED = Flow(7, dport=88, label=0x1122334455667788 << 64 | 5)


class FakeBypass:
    """Keys that are let by; those of `taken` are another's, and there is room for `most`."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.taken: set[bytes] = set()
        self.most = 1 << 20

    def put(self, keys) -> list[int]:
        errors = []
        for key in keys:
            error = errno.EBUSY if key in self.taken or key in self.keys else errno.ENOSPC if len(self.keys) >= self.most else 0
            errors.append(error)
            if not error:
                self.keys.add(key)
        return errors

    def remove(self, keys) -> None:
        assert set(keys) <= self.keys
        self.keys -= set(keys)

    def shut(self) -> None:
        self.keys.clear()

    def open(self) -> None:
        pass


def ours(kernel: KernelConntrack) -> int:
    return len(kernel.all()[0])


def listed(kernel: KernelConntrack) -> dict[int, tuple[np.void, int]]:
    """Row and status by the source port of the original direction."""
    rows, status = kernel.all()
    return {int(row["flow"][0]["key"]["sport"]): (row, int(bits)) for row, bits in zip(rows, status, strict=True)}


def conntrack(*words: str) -> None:
    subprocess.run(["conntrack", *words], check=True, capture_output=True)


def emptied(backend: ConntrackEntries, now: int = S) -> None:
    """As somebody does who ends it."""
    for _ in backend.empty(now):
        pass


def gone(backend: ConntrackEntries) -> set[int]:
    """Cookies of rules of which news say that they are there no more."""
    return {int(row["cookie"]) for row in backend.replies(S) if row["op"] == Op.GONE}


def counted(backend: ConntrackEntries, flow: Flow, now: int) -> list[tuple[int, int, int]]:
    backend.submit(commands(Op.STATS, flow), now)
    return [(int(row["packets"]), int(row["bytes"]), int(row["used"])) for row in backend.replies(now) if row["op"] == Op.STATS]


def told_to(kernel: KernelConntrack, ask: Ask, *flows: Flow, **changes) -> None:
    """Somebody else makes or changes entries."""
    entries: dict[int, Entry] = {}
    for command in commands_of(commands(Op.REPLACE, *flows)):
        entry = entries.setdefault(command.cookie >> 1, Entry(command, 300.0, 0))
        entry.ctinfo[command.cookie & 1] = command.ctinfo
    rows = rows_for(list(entries.values()), 300 * 250)
    for name, value in changes.items():
        (rows["tcp"] if name == "state" else rows)[name] = value
    assert [answer.error for answer in kernel.ask(rows, ask)] == [0] * len(rows)


def left_over(kernel: KernelConntrack, *flows: Flow, **changes) -> None:
    """Entries of an earlier run."""
    told_to(kernel, Ask.CREATE, *flows, **changes)


def kind_of(request: bytes) -> Ask:
    kind, flags = int.from_bytes(request[4:6], "little") & 0xFF, int.from_bytes(request[6:8], "little")
    return (Ask.CREATE if flags & 0x400 else Ask.CHANGE, Ask.GET, Ask.DELETE)[kind]

"""Entries of a backend as the kernel lists them: as rules that are held, for a mirror, and with all that the kernel says of them, for an audit.

Both are made of pairs: an entry, and what the kernel has told of it. Not here: asking for the list (conntrack_entries), what an audit makes of it
(drift).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.types import Status
from offload.entry import COMMAND, Entry, Told, turned
from offload.netlink.conntrack import OFFLOAD
from offload.records import COMMAND_DTYPE, Ctinfo, Op

STATE_DTYPE = np.dtype([
    ("conn", "i8"), ("cookie", "u8"), ("status", "u4"), ("left", "f4"), ("mark", "u4"), ("meant", "u4"), ("state", "u1"), ("counted", "?"),
    ("packets", "u8", 2), ("bytes", "u8", 2),
])  # fmt: skip


def held_of(listed: Iterable[tuple[Entry, Told]]) -> NDArray[Any]:
    """COMMAND_DTYPE[n], of each direction that is there."""
    rows = []
    for entry, told in listed:
        ctinfo = list(entry.ctinfo)
        if ctinfo[0] and not told.status & Status.SEEN_REPLY:
            ctinfo[0] = Ctinfo.NEW
        for d in entry.there:
            match, to = told.keys[d], turned(told.keys[1 - d])
            rows.append(COMMAND.pack(match, to, entry.cookie(d), entry.conn, told.label, told.mark, Op.REPLACE, ctinfo[d], d))
    return np.frombuffer(b"".join(rows), dtype=COMMAND_DTYPE)


def states_of(listed: Iterable[tuple[Entry, Told]]) -> NDArray[Any]:
    """STATE_DTYPE[n].

    status: the kernel's bits, of which OFFLOAD: a flow table has it, HW_OFFLOAD: hardware has; left: s of its lifetime, nan while a flow table
    has it; meant: the mark that it was made with; state: of TCP, 0: not told; counted: else packets and bytes are not known.
    """
    rows = [
        (entry.conn, entry.cookie(0), told.status & 0xFFFF, np.nan if told.status & OFFLOAD else told.left, told.mark, entry.mark,
         told.state, told.counted, told.packets, told.octets)
        for entry, told in listed
    ]  # fmt: skip
    return np.array(rows, dtype=STATE_DTYPE)

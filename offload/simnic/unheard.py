"""What CT tables have counted and nobody will ever be told: of rules that went before anybody asked again, of answers that were lost, of resets.

A real NIC does not know this, and its driver does not either: it is what a simulation can tell of the unknown. Invariant: what was told, what is
unheard, and what is still to be told are together all that was counted. Not here: counting (connections), telling (commands).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.simnic.tables import C_BYTES, C_PACKETS, E_CONN, E_LABELS, E_META, Tables

# conn: ordinal of a connection, -1: nobody knows.
UNHEARD_DTYPE = np.dtype([("conn", "i8"), ("packets", "i8"), ("bytes", "i8")])


class Unheard:
    """packets, bytes: all so far. Which connections they were of is kept only for who has asked for that, until it is taken."""

    def __init__(self) -> None:
        self.packets = self.bytes = 0
        self._parts: list[NDArray[Any]] | None = None

    def follow(self) -> None:
        """From now on, keep whose they are for take()."""
        self._parts = self._parts or []

    def add(self, rows: NDArray[Any]) -> None:
        """UNHEARD_DTYPE[n]."""
        self.packets += int(rows["packets"].sum())
        self.bytes += int(rows["bytes"].sum())
        if self._parts is not None and len(rows):
            self._parts.append(rows)

    def take(self) -> NDArray[Any]:
        """UNHEARD_DTYPE[n]: those since the last call."""
        parts = self._parts or []
        if parts:
            self._parts = []
        return np.concatenate(parts) if parts else np.zeros(0, dtype=UNHEARD_DTYPE)


def rows_of(conns: Any, packets: Any, bytes_: Any) -> NDArray[Any]:
    """UNHEARD_DTYPE[n] of columns."""
    rows = np.zeros(len(packets), dtype=UNHEARD_DTYPE)
    rows["conn"], rows["packets"], rows["bytes"] = conns, packets, bytes_
    return rows


def untold(t: Tables) -> NDArray[Any]:
    """UNHEARD_DTYPE[n]: what counters have that was not told yet, each with one of the connections that use it."""
    used = np.flatnonzero(t.entry[:, E_META])
    counters, first = np.unique(t.entry[used, E_LABELS] & 0xFFFFFFFF, return_index=True)
    left = t.counter[counters][:, [C_PACKETS, C_BYTES]] - t.told[counters]
    some = left[:, 0] > 0
    return rows_of(t.entry[used[first[some]], E_CONN], left[some, 0], left[some, 1])

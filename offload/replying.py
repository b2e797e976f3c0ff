"""What backends that ask a kernel have in common: answers collected until somebody takes them, and what the kernel said of those it refused.

Invariant: sentences are remembered of the last MOST_REFUSALS connections that were refused, and of no other.
Not here: commands (records), which of them is answered how (exact_rules, conntrack_entries).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.netlink.extack import Answer
from offload.records import REPLY_DTYPE, Op

MOST_REFUSALS = 65_536
_COLUMNS = ("cookie", "used", "packets", "bytes", "error", "op", "shared")


class Replies:
    """What has been answered, and why what was refused was."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, int, int, bool]] = []
        self._sentences: OrderedDict[int, str] = OrderedDict()

    def say(self, cookie: int, op: int, error: int = 0, *, used: int = 0, packets: int = 0, octets: int = 0, shared: bool = False) -> None:
        self._rows.append((cookie, used, packets, octets, error, op, shared))

    def refuse(self, cookie: int, conn: int, answer: Answer) -> None:
        """A REPLACE that came to nothing."""
        self._sentences[conn] = answer.told()
        self._sentences.move_to_end(conn)
        if len(self._sentences) > MOST_REFUSALS:
            self._sentences.popitem(last=False)
        self.say(cookie, Op.REPLACE, answer.error)

    def accept(self, conn: int) -> None:
        """Whatever was said of it before no longer holds."""
        self._sentences.pop(conn, None)

    def refusal(self, conn: int) -> str:
        return self._sentences.get(conn, "")

    def clear(self) -> None:
        """Of what was asked before nothing is answered any more."""
        self._rows.clear()

    def taken(self) -> NDArray[Any]:
        """REPLY_DTYPE[n], each once."""
        told = np.zeros(len(self._rows), dtype=REPLY_DTYPE)
        if self._rows:
            for name, column in zip(_COLUMNS, zip(*self._rows, strict=True), strict=True):
                told[name] = np.array(column, dtype=REPLY_DTYPE[name])
        self._rows = []
        return told

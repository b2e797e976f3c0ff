"""What backends that ask a kernel have in common: answers collected until somebody takes them, and what the kernel said of those it refused.

Invariant: sentences are remembered of the last MOST_REFUSALS connections that were refused, and of no other.
Not here: commands (records), which of them is answered how (exact_rules, conntrack_entries).
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.netlink.extack import Answer
from offload.records import REPLY_DTYPE, Op

MOST_REFUSALS = 65_536
_COLUMNS = ("cookie", "used", "packets", "bytes", "error", "op", "shared")


OF_BYPASS = {
    errno.EBUSY: Answer(
        errno.EOPNOTSUPP, "a connection of another zone has the same addresses and ports, and what lets packets by to the kernel knows no zones"
    ),
    errno.ENOSPC: Answer(errno.ENOSPC, "no room among what is let by to the kernel"),
}


def not_let_by(error: int) -> Answer:
    """The kernel would have it, but its packets would not come to it. error: of Bypass.put()."""
    return OF_BYPASS.get(error, Answer(error, "its packets cannot be let by to the kernel"))


class Refusals:
    """What was said of connections when they were refused last."""

    def __init__(self) -> None:
        self._sentences: OrderedDict[int, str] = OrderedDict()

    def remember(self, conn: int, answer: Answer) -> None:
        self._sentences[conn] = answer.told()
        self._sentences.move_to_end(conn)
        if len(self._sentences) > MOST_REFUSALS:
            self._sentences.popitem(last=False)

    def accept(self, conn: int) -> None:
        """Whatever was said of it before no longer holds."""
        self._sentences.pop(conn, None)

    def refusal(self, conn: int) -> str:
        return self._sentences.get(conn, "")


class Replies(Refusals):
    """What has been answered, and why what was refused was."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[int, int, int, int, int, int, bool]] = []

    def say(self, cookie: int, op: int, error: int = 0, *, used: int = 0, packets: int = 0, octets: int = 0, shared: bool = False) -> None:
        self._rows.append((cookie, used, packets, octets, error, op, shared))

    def refuse(self, cookie: int, conn: int, answer: Answer) -> None:
        """A REPLACE that came to nothing."""
        self.remember(conn, answer)
        self.say(cookie, Op.REPLACE, answer.error)

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

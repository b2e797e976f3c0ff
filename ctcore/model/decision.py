"""What comes of a packet in the model: first which connection it has met, then what is decided about it.

Not here: how either comes about (tracker, act).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ctcore.model import nat
from ctcore.model.conn import NO_L4STATE, Conn, Key
from ctcore.types import Dir, Reason, State, Status, Verdict

NO_DIR = 255


@dataclass(frozen=True)
class Decision:
    """What comes out for one packet; without a connection all but the reason is empty."""

    state: int
    reason: int = Reason.R_OK
    verdict: int = Verdict.ACCEPT
    conn: int = -1
    dir: int = NO_DIR
    timeout: int = -1
    status: int = 0
    mark: int = 0
    l4state: int = NO_L4STATE
    rewrite: nat.Rewrite | None = None

    def store(self, record: np.void, key: Key) -> None:
        for name in ("state", "reason", "verdict", "conn", "dir", "timeout", "status", "mark", "l4state"):
            record[name] = getattr(self, name)
        record["zone"], record["proto"], record["family"] = key.zone, key.proto, key.family


class Met(NamedTuple):
    """A packet's connection, which may not be confirmed yet, as the protocol has left it. reason: the protocol's.

    error: the packet is no packet of it, but an ICMP error about one of the other direction.
    """

    conn: Conn
    dir: int
    state: int
    reason: int = Reason.R_OK
    error: bool = False


def state_of(conn: Conn, d: int) -> int:
    """What the packet is to its connection, before it changes anything there."""
    if d == Dir.REPLY or conn.has(Status.SEEN_REPLY):
        return State.ESTABLISHED
    return State.RELATED if conn.has(Status.EXPECTED) else State.NEW


def untranslated(decision: Decision, reason: int) -> Decision:
    """The packet is what it is to its connection, and is dropped: it cannot leave as it should."""
    return replace(decision, reason=reason, verdict=Verdict.DROP, rewrite=None)

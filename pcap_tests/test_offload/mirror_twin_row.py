"""A flow as the mirror's twin knows it. Not here: what becomes of it (mirror_twin)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from offload.mirror import Job
from offload.records import Ctinfo


@dataclass
class Row:
    """A flow. desired: bidirectional, seen_reply, going; held: by direction, the Ctinfo of its rule in hardware, 0: none; doubt: directions of which
    nobody knows; waits, queued: directions whose command is not answered, and of these not even taken."""

    key: Any
    conn: int
    serial: int
    epoch: int
    bytes: int
    measured: int
    label: Any = (0, 0)
    mark: int = 0
    bidirectional: bool = False
    seen_reply: bool = False
    going: bool = False
    leaving: bool = False
    waiting: bool = False
    evicted: bool = False
    fresh: bool = False
    stuck: bool = False
    held: list[int] = field(default_factory=lambda: [0, 0])
    doubt: set[int] = field(default_factory=set)
    job: Job = Job.NONE
    waits: set[int] = field(default_factory=set)
    queued: set[int] = field(default_factory=set)
    due: int = 0
    rate: Any = 0.0
    error: int = 0
    tries: int = 0
    lost: int = 0

    @property
    def installed(self) -> set[int]:
        return {direction for direction in (0, 1) if self.held[direction]}

    def wanted(self, direction: int) -> int:
        """A4.35, A2.10."""
        if direction:
            return Ctinfo.ESTABLISHED_REPLY if self.bidirectional else 0
        return Ctinfo.ESTABLISHED if self.seen_reply else Ctinfo.NEW

    @property
    def needed(self) -> set[int]:
        return {direction for direction in (0, 1) if self.wanted(direction) and self.held[direction] != self.wanted(direction)}

    @property
    def translated(self) -> bool:
        a, b = self.key
        return (a["src"].tobytes(), a["dst"].tobytes(), a["sport"], a["dport"]) != (b["dst"].tobytes(), b["src"].tobytes(), b["dport"], b["sport"])

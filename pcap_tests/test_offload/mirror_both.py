"""A mirror and its twin in plain Python as one. Not here: either of them (offload.mirror, mirror_twin)."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from offload.mirror import Mirror
from offload.mirror_settings import MirrorSettings
from offload.records import Ctinfo
from pcap_tests.test_offload.mirror_twin import BUDGET, MirrorTwin


class Both:
    """A mirror and its twin as one: each is told the same, and has to say the same."""

    def __init__(self, flows: int, settings: MirrorSettings) -> None:
        self.mirror, self.twin = Mirror(flows, settings), MirrorTwin(flows, settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mirror, name)

    @property
    def resets(self) -> int:
        return self.mirror.resets

    @resets.setter
    def resets(self, number: int) -> None:
        self.mirror.resets = number

    def feed(self, asks: NDArray[Any], now: int) -> None:
        self.mirror.feed(asks, now)
        self.twin.feed(asks, now)

    def replies(self, rows: NDArray[Any], now: int) -> None:
        self.mirror.replies(rows, now)
        self.twin.replies(rows, now)

    def advance(self, now: int) -> None:
        self.mirror.advance(now)
        self.twin.advance(now)

    def reset(self, now: int) -> None:
        self.mirror.reset(now)
        self.twin.reset(now)

    def sent(self, n: int, now: int) -> None:
        self.mirror.sent(n, now)
        self.twin.sent(n, now)

    def commands(self, most: int = BUDGET) -> NDArray[Any]:
        ours, theirs = self.mirror.commands(most), self.twin.commands(most)
        assert ours.tobytes() == theirs.tobytes(), f"commands: {ours}, and of the twin: {theirs}"
        return ours

    def answers(self) -> NDArray[Any]:
        ours, theirs = self.mirror.answers(), self.twin.answers()
        assert ours.tobytes() == theirs.tobytes(), f"answers: {ours}, and of the twin: {theirs}"
        return ours

    def check(self) -> None:
        """Everything that either counts, and knows of its flows."""
        self.mirror.check()
        ours, theirs = self.mirror.counters(), self.twin.counters()
        wrong = {name: (ours[name], theirs.get(name, 0)) for name in ours if ours[name] != theirs.get(name, 0)}
        assert not wrong, f"counters, and those of the twin: {wrong}"
        for number, row in self.twin.rows.items():
            told, current = self.mirror.why(number) or {}, row.epoch == self.twin.epoch
            known = {
                "serial": row.serial, "conn": row.conn, "held": [Ctinfo(has) if has and current else None for has in row.held], "error": row.error,
                "job": row.job.name.lower() if row.job and current else None, "refusals": row.tries, "going": row.going, "waiting": row.waiting,
                "doubt": bool(row.doubt), "mark": row.mark, "bytes": row.bytes, "rate": float(row.rate),
            }  # fmt: skip
            differ = {name: (told.get(name), value) for name, value in known.items() if told.get(name) != value}
            assert not differ, f"row {number}, and of the twin: {differ}"

"""The running kernel as judge of scenarios (datapath.scenario.judge).

Its clock cannot be set, so it really waits; and it goes on while packets are judged. Records bear the kernel's time, by which scenario.run sees how
late a packet was.
Not here: exact comparison by one clock (lockstep).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from ctcore.batch import Batch
from ctcore.config import Config
from datapath.defragment import Gatherer
from datapath.errors import KernelError
from datapath.fields import OUT_NAMES, Record, conn_records, endpoints, packet_records
from datapath.frame import frames_of
from datapath.link import inner
from datapath.oracle.exhibit import Unshown, exhibit
from datapath.oracle.kernel import Kernel, Side
from datapath.oracle.oracle import Oracle
from datapath.scenario.judge import Seen
from datapath.wire import parse_batch

LONGEST_WAIT = 30.0  # seconds
SECOND = 1_000_000_000


class KernelJudge:
    """A judge that asks the kernel. It does not tell its reasons."""

    name = "kernel"
    unknown = frozenset({"reason"})

    def __init__(self, oracle: Oracle, zone: int) -> None:
        self.kernel, self.config, self.zone = Kernel(oracle), oracle.config, zone
        self.gatherer = Gatherer(self.config, zone=zone)
        self.packets = 0
        self.tolerance = 2 / self.config.hz  # a tick for each end of what is measured

    def packet(self, frame: bytes, wait: float, zone: int | None = None) -> Seen:
        if wait > LONGEST_WAIT:
            raise KernelError(
                f"a wait of {wait:g} s: expected at most {LONGEST_WAIT:g} s, for the kernel's clock cannot be set: shorten the timeout instead"
            )
        time.sleep(wait)
        memory, frames = frames_of([frame])
        place = inner(memory, frames)[0]
        packet = exhibit(parse_batch(memory, frames, checksum=self.config.checksum).array[0], place, memory)
        if isinstance(packet, Unshown):
            raise KernelError(f"a packet that cannot be shown to the kernel: {packet}: expected a whole IP packet")

        @cache
        def gathered() -> Batch:
            frames["ts"] = self.kernel.oracle.tick * SECOND // self.config.hz
            return self.gatherer.parse(memory, frames)

        side = Side.empty(1)
        self.gatherer.zone = zone = self.zone if zone is None else zone
        sighting = self.kernel.show(int(place["family"]), packet, lambda: gathered().array[0], side, 0, zone)
        row = gathered().array[0]
        self.kernel.finish(side)
        side.conns["flow"]["id"] = side.decisions["conn"]
        record = next(packet_records(frames, side.decisions, row["key"].reshape(1), self.packets, self.config.hz))
        self.packets += 1
        record["out"] = left_with(row["key"], sighting.came) if self.kernel.oracle.translates else None
        conn = next(conn_records(side.conns, self.config.hz, self.config.acct)) if side.has_conn[0] else None
        return Seen(record | {"reason": None}, conn)


def left_with(key: np.void, came: Sequence[bytes]) -> Record | None:
    """The ends a packet left with, if they are not those it came with (key: KEY_DTYPE): `out` of its record."""
    if not came:
        return None
    frames = frames_of(came)
    left = (parse_batch(*frames) if len(came) == 1 else Gatherer().parse(*frames)).array["key"][-1]  # several: fragments of one datagram
    ends, before = (endpoints(each.tobytes()) for each in (left, key))
    return {name: ends[name] for name in OUT_NAMES if name in ends} if ends != before else None


@contextmanager
def kernel(config: Config, zone: int) -> Iterator[KernelJudge]:
    with Oracle(config, zone=zone) as oracle:
        yield KernelJudge(oracle, zone)

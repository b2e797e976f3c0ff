"""The running kernel as judge of scenarios (datapath.scenario.judge).

Its clock cannot be set, so it really waits; and it goes on while packets are judged. Records bear the kernel's time, by which scenario.run sees how
late a packet was.
Not here: exact comparison by one clock (lockstep).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ctcore.config import Config
from datapath.defragment import Gatherer
from datapath.fields import OUT_NAMES, Record, conn_records, endpoints, packet_records
from datapath.frame import frames_of
from datapath.link import inner
from datapath.oracle.errors import KernelError
from datapath.oracle.exhibit import FRAGMENT, Unshown, exhibit
from datapath.oracle.kernel import Kernel, Side
from datapath.oracle.oracle import Oracle
from datapath.scenario.judge import Seen
from datapath.wire import parse_batch

LONGEST_WAIT = 30.0  # seconds
SECOND = 1_000_000_000


class KernelJudge:
    """A judge that asks the kernel. It does not tell its reasons, nor whether a fragment waits or was dropped."""

    name = "kernel"
    unknown = frozenset({"reason", "held"})

    def __init__(self, oracle: Oracle, zone: int) -> None:
        self.kernel, self.config, self.zone = Kernel(oracle), oracle.config, zone
        self.packets, self.gatherer = 0, Gatherer(replace(self.config, nat=(), helpers=()), zone=zone)  # which datagram a fragment completes
        self.tolerance = 2 / self.config.hz  # a tick for each end of what is measured

    def packet(self, frame: bytes, wait: float, zone: int | None = None) -> Seen:
        if wait > LONGEST_WAIT:
            raise KernelError(
                f"a wait of {wait:g} s: expected at most {LONGEST_WAIT:g} s, for the kernel's clock cannot be set: shorten the timeout instead"
            )
        time.sleep(wait)
        memory, frames = frames_of([frame], ts=time.monotonic_ns())
        row = parse_batch(memory, frames, zone=self.zone if zone is None else zone, checksum=self.config.checksum).array[0]
        self.gatherer.zone = int(row["key"]["zone"])
        key = self.gatherer.parse(memory, frames).array["key"][0]
        place = inner(memory, frames)[0]
        shown = exhibit(row, place, memory)
        if isinstance(shown, Unshown) and shown is not FRAGMENT:
            raise KernelError(f"a packet that cannot be shown to the kernel: {shown}: expected a whole IP packet")
        side = Side.empty(1)
        packet = shown if isinstance(shown, bytes) else memory[int(place["offset"]) :].tobytes()
        sighting = self.kernel.show(int(place["family"]), packet, row, side, 0)
        self.kernel.finish(side)
        frames["ts"] = sighting.tick * SECOND // self.config.hz
        side.conns["flow"]["id"] = side.decisions["conn"]
        record = next(packet_records(frames, side.decisions, row["key"].reshape(1), self.packets, self.config.hz))
        self.packets += 1
        record["out"] = left_with(key, sighting.came) if self.kernel.oracle.translates else None
        conn = next(conn_records(side.conns, self.config.hz, self.config.acct)) if side.has_conn[0] else None
        return Seen(record | {"reason": None}, conn)


def left_with(key: np.void, came: Sequence[bytes]) -> Record | None:
    """The ends a packet left with, if they are not those it came with (key: KEY_DTYPE, of the whole datagram): `out` of its record."""
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

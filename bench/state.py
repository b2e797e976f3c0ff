"""How long a restart takes: connections saved, written, read and taken up again, each step by itself.

    python -m bench.state --conns 1000000 --rounds 7 [--nat] [--file /var/tmp/bench.state]

The connections are assured TCP over IPv4, entered as somebody else's (Tracker.adopt) into a tracker with room for as many. Each round restores into a
fresh tracker with another seed, whose memory is touched for the first time then. Not here: what follows a restart, the start of Python.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config
from ctcore.tracker import Tracker
from ctcore.types import CONN_DTYPE, Proto, Status, TcpState
from datapath.live.state_file import Saved, read_state, write_state

SECOND = 1_000_000_000
STEPS = ("save", "write", "read", "restore")


def conns(n: int) -> NDArray[Any]:
    """CONN_DTYPE[n]: clients of 10/8 at one server."""
    rows = np.zeros(n, dtype=CONN_DTYPE)
    client = (10 << 24 | np.arange(n)).astype(">u4").view(np.uint8).reshape(n, 4)
    server = np.frombuffer(bytes([198, 51, 100, 1]), dtype=np.uint8)
    key = rows["flow"]["key"]
    key["src"][:, 0, :4] = key["dst"][:, 1, :4] = client
    key["dst"][:, 0, :4] = key["src"][:, 1, :4] = server
    key["sport"][:, 0] = key["dport"][:, 1] = 40000
    key["dport"][:, 0] = key["sport"][:, 1] = 443
    key["proto"], key["family"] = Proto.PROTO_TCP, 4
    rows["flow"]["packets"], rows["flow"]["bytes"], rows["start"] = 7, 1400, 1_700_000_000 * SECOND
    rows["status"] = Status.CONFIRMED | Status.SEEN_REPLY | Status.ASSURED
    rows["tcp"]["state"], rows["timeout"] = TcpState.TCP_ESTABLISHED, 432_000 * 250
    rows["tcp"]["scale"] = 7
    return rows


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = step()
    return time.perf_counter() - start, result


def round_of(tracker: Tracker, config: Config, path: str) -> list[float]:
    """Seconds of each step."""
    save, state = timed(tracker.save)
    write, _ = timed(lambda: write_state(path, Saved(time.time_ns(), [state])))
    read, saved = timed(lambda: read_state(path))
    after = Tracker(config)
    restore, _ = timed(lambda: after.restore(saved.parts[0]))
    if after.count != tracker.count:
        raise SystemExit(f"{after.count} connections: expected {tracker.count}")
    return [save, write, read, restore]


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a restart takes.")
    parser.add_argument("--conns", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--nat", action="store_true", help="with address translation: chains by source are built as well")
    parser.add_argument("--file", help="where the file is written; default: a temporary folder")
    told = parser.parse_args()
    tracker = Tracker(Config(max=told.conns, nat_actions=told.nat))
    taken, _ = tracker.adopt(conns(told.conns))
    fresh = Config(max=told.conns, nat_actions=told.nat, seed=7)
    with tempfile.TemporaryDirectory() as folder:
        path = told.file or os.path.join(folder, "state")
        rounds = np.array([round_of(tracker, fresh, path) for _ in range(told.rounds)])
        size = os.path.getsize(path)
        os.unlink(path)
    print(f"{taken:,} connections, {size / taken:.0f} bytes each; median of {told.rounds} (least-most), ms")
    for name, times in [*zip(STEPS, rounds.T, strict=True), ("save + restore", rounds[:, 0] + rounds[:, 3]), ("all", rounds.sum(axis=1))]:
        print(f"{name:<16}{np.median(times) * 1e3:7.0f} ({times.min() * 1e3:.0f}-{times.max() * 1e3:.0f})")


if __name__ == "__main__":
    main()

"""Benchmarks: how fast the engine is, what a connection costs, and how near that is to what this machine allows.

Every figure of the engine is taken beside the limit kernel (datapath.limit) on the same frames in the same run, round by round, so that
each is also a ratio that a noisy machine cannot spoil. Frames are made by NumPy, deterministic by seed.
Not here: rules (benchmark_rules), the command line (cli), large synthetic captures (bench/traffic.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config
from ctcore.errors import CtmirrorError
from datapath.capture import PcapSource
from datapath.export import STDOUT
from datapath.frame import FRAME_DTYPE
from datapath.limit import limit_pass
from datapath.rule_text import parse_rule
from datapath.worker import Pipeline

if TYPE_CHECKING:
    from datapath.ruled import RulePipeline

FRAME = 60  # bytes: Ethernet's least without the FCS
PAYLOAD = FRAME - 54
SYN, ACK = 0x02, 0x10
CHUNK = 16384  # frames per call
OUTSTANDING = 4096  # handshakes under way at a time
ROUNDS = 5
MIN_PACKETS = 2_000_000  # per round, so that a round lasts long enough to be timed
WEIGHED = 100_000  # connections held at once, at least, to see what one costs
WEIGHINGS = 3
OUTSIDE = "192.0.2.1"  # where all sources are translated to


@dataclass(frozen=True)
class Segments:
    """TCP segments to be made: one array element each. conn: connection; reply: direction; the rest as in the header. outside: the address to which
    replies go where all sources are translated to it, 0 where none is."""

    conn: NDArray[np.int64]
    reply: NDArray[np.bool_]
    flags: NDArray[np.uint8]
    seq: NDArray[np.uint32]
    ack: NDArray[np.uint32]
    payload: int
    outside: int = 0


def _sum16(words: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The checksum over the last axis (RFC 1071), of big-endian words."""
    total = words.astype(np.uint32).sum(axis=-1, dtype=np.uint32)
    total = (total & 0xFFFF) + (total >> 16)
    return (~((total & 0xFFFF) + (total >> 16))).astype(np.uint16)


def make_frames(segments: Segments) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Ethernet/IPv4/TCP frames of 60 bytes with right checksums, back to back: (uint8[60 n], FRAME_DTYPE[n])."""
    n = len(segments.conn)
    words = np.zeros((n, FRAME // 2), dtype=">u2")
    words[:, 0:6] = 0x0200
    words[:, 6] = 0x0800
    words[:, 7], words[:, 8], words[:, 10], words[:, 11] = 0x4500, 40 + segments.payload, 0x4000, 0x4006
    conn = segments.conn
    client = 0x0A000000 + conn // 60000
    server = 0x0B000001 + conn % 251
    client_port, server_port = 1024 + conn % 60000, np.full(n, 443)
    source, target = np.where(segments.reply, server, client), np.where(segments.reply, segments.outside or client, server)
    words[:, 13], words[:, 14], words[:, 15], words[:, 16] = source >> 16, source & 0xFFFF, target >> 16, target & 0xFFFF
    words[:, 17] = np.where(segments.reply, server_port, client_port)
    words[:, 18] = np.where(segments.reply, client_port, server_port)
    words[:, 19], words[:, 20] = segments.seq >> 16, segments.seq & 0xFFFF
    words[:, 21], words[:, 22] = segments.ack >> 16, segments.ack & 0xFFFF
    words[:, 23], words[:, 24] = segments.flags + np.uint16(0x5000), 0xFFFF
    words[:, 12] = _sum16(words[:, 7:17])
    pseudo = np.concatenate([words[:, 13:30], np.full((n, 1), 6), np.full((n, 1), 20 + segments.payload)], axis=1).astype(np.uint16)
    words[:, 25] = _sum16(pseudo)
    frames = np.zeros(n, dtype=FRAME_DTYPE)
    frames["offset"] = np.arange(n, dtype=np.uint64) * FRAME
    frames["caplen"] = frames["len"] = FRAME
    frames["link"] = 1
    return words.view(np.uint8).reshape(-1), frames


def initial(conn: NDArray[np.int64], reply: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Initial sequence numbers, scattered over the whole range."""
    return ((conn * 2 + reply) * 2654435761).astype(np.uint32)


def handshakes(order: NDArray[np.int64], outside: int = 0) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """SYN, SYN/ACK and ACK of every connection, a few thousand handshakes under way at a time. outside: as in Segments."""
    conn, step = [], []
    for start in range(0, len(order), OUTSTANDING):
        block = order[start : start + OUTSTANDING]
        conn.append(np.tile(block, 3))
        step.append(np.repeat(np.arange(3), len(block)))
    conns, steps = np.concatenate(conn), np.concatenate(step)
    reply = steps == 1
    seq = initial(conns, reply) + (steps == 2).astype(np.uint32)
    ack = np.where(steps == 0, 0, initial(conns, ~reply) + np.uint32(1)).astype(np.uint32)
    flags = np.array([SYN, SYN | ACK, ACK], dtype=np.uint8)[steps]
    return make_frames(Segments(conns, reply, flags, seq, ack, 0, outside))


def openings(order: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """A SYN of every connection, which nobody answers."""
    none, seq = np.zeros(len(order), dtype=bool), initial(order, np.zeros(len(order), dtype=bool))
    return make_frames(Segments(order, none, np.full(len(order), SYN, dtype=np.uint8), seq, np.zeros_like(seq), 0))


def acknowledgements(order: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """An empty segment of every connection from its client, then one from its server: the first packet of each flow after the handshakes."""
    conn, reply = np.tile(order, 2), np.repeat([False, True], len(order))
    seq, ack = initial(conn, reply) + np.uint32(1), initial(conn, ~reply) + np.uint32(1)
    return make_frames(Segments(conn, reply, np.full(len(conn), ACK, dtype=np.uint8), seq, ack, 0))


def established(flows: int, packets: int, seed: int, outside: int = 0) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Data segments of established connections, both directions, in random order of flows; each acknowledges all that came before. outside: as in
    Segments."""
    rng = np.random.default_rng(seed)
    conn = rng.permutation(np.arange(packets, dtype=np.int64) % flows)
    reply = rng.integers(0, 2, packets).astype(bool)
    by_conn = np.argsort(conn, kind="stable")
    first = np.flatnonzero(np.diff(conn[by_conn], prepend=-1))
    lengths = np.diff(first, append=packets)
    sent = np.zeros((2, packets), dtype=np.int64)
    for d in (0, 1):
        mine = (reply[by_conn] == d).astype(np.int64)
        before = np.cumsum(mine) - mine
        sent[d, by_conn] = before - np.repeat(before[first], lengths)
    own, other = np.where(reply, sent[1], sent[0]), np.where(reply, sent[0], sent[1])
    seq = (initial(conn, reply) + 1 + PAYLOAD * own).astype(np.uint32)
    ack = (initial(conn, ~reply) + 1 + PAYLOAD * other).astype(np.uint32)
    return make_frames(Segments(conn, reply, np.full(packets, ACK, dtype=np.uint8), seq, ack, PAYLOAD, outside))


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(pipeline: Pipeline | RulePipeline, memory: NDArray[np.uint8], frames: NDArray[Any]) -> None:
    for start in range(0, len(frames), CHUNK):
        pipeline.process(memory, frames[start : start + CHUNK])


def _forward(pipeline: Pipeline, memory: NDArray[np.uint8], frames: NDArray[Any]) -> None:
    for start in range(0, len(frames), CHUNK):
        pipeline.forward(memory, frames[start : start + CHUNK])


def _resident() -> int:
    """Bytes of memory this process holds, page by page: what /proc/self/statm says may be off by half a megabyte."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024


def _held(flows: int, memory: NDArray[np.uint8], frames: NDArray[Any], batch: int) -> float:
    """Bytes of memory a connection costs: growth over full pipelines of `flows` connections each, held at once, WEIGHED connections at least.

    The median of WEIGHINGS, since the system may give a huge page for a small one at any time. So many connections, since memory grows by pages. Free
    memory is given back to the system before, so that nothing is taken from there unseen; then one pipeline more, not counted, touches code and
    allocators. All that a pipeline holds is in the growth: slab, table, wheel, buffer of events, expectations, the rows of its batch and its
    Python objects.
    """
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    warm = Pipeline(Config(max=flows), batch=batch)
    run(warm, memory, frames[: 3 * OUTSTANDING])
    _resident()  # as the code under test: once for its own memory
    grown = []
    for _ in range(WEIGHINGS):
        pipelines: list[Pipeline] = []
        before = _resident()
        while len(pipelines) * flows < WEIGHED:
            pipelines.append(Pipeline(Config(max=flows), batch=batch))
            run(pipelines[-1], memory, frames)
        grown.append((_resident() - before) / (len(pipelines) * flows))
    return statistics.median(grown)


def _set_up(flows: int, seed: int, rounds: int, batch: int) -> tuple[Pipeline, float, float]:
    """A pipeline with all connections established, seconds a set-up took (median), and bytes of memory a connection costs."""
    memory, frames = handshakes(np.random.default_rng(seed).permutation(flows).astype(np.int64))
    held = _held(flows, memory, frames, batch)
    spent = []
    for _ in range(rounds):
        pipeline = Pipeline(Config(max=flows), batch=batch)
        spent.append(timed(partial(run, pipeline, memory, frames)))
    return pipeline, statistics.median(spent), held


Turn = tuple[list[float], Callable[[], object]]  # where the seconds go, and what is timed


def by_turns(works: list[Turn], turn: int) -> None:
    """Time each, the first one first every other time: whoever comes second finds the memory nearer."""
    for times, work in works if turn % 2 else works[::-1]:
        times.append(timed(work))


def check_accepted(pipeline: Pipeline | RulePipeline, flows: int) -> None:
    """Raises CtmirrorError if something else was measured than meant."""
    wrong = int(pipeline.summary()["reason_packets"][1:].sum())
    if wrong or pipeline.tracker.count != flows:
        live = pipeline.tracker.count
        raise CtmirrorError(f"bench: {wrong} packets were not plainly accepted, {live} of {flows} connections live: expected 0 and all")


def measure_engine(flows: int, *, seed: int = 1, rounds: int = ROUNDS, batch: int = 64) -> dict[str, Any]:
    """Set up `flows` connections, then `rounds` rounds of established traffic, each beside the limit kernel on the same frames.

    Returns the medians: mpps and limit_mpps (million packets/s), ns_per_packet, ratio_to_limit (median of the rounds' own ratios), setup_per_s
    (connections/s by SYN, SYN/ACK, ACK), bytes_per_conn (see _held). Raises CtmirrorError if not every packet was accepted, for then something
    else was measured.
    """
    packets = max(MIN_PACKETS, flows)
    memory, frames = established(flows, packets * rounds, seed)
    pipeline, setup, held = _set_up(flows, seed, rounds, batch)
    mine: list[float] = []
    limits: list[float] = []
    for i in range(rounds):
        part = frames[i * packets : (i + 1) * packets]
        works: list[Turn] = [
            (limits, partial(limit_pass, pipeline.tracker, memory, part, batch)),
            (mine, partial(run, pipeline, memory, part)),
        ]
        by_turns(works, i)
    check_accepted(pipeline, flows)
    return {
        "flows": flows,
        "mpps": packets / statistics.median(mine) / 1e6,
        "ns_per_packet": statistics.median(mine) / packets * 1e9,
        "limit_mpps": packets / statistics.median(limits) / 1e6,
        "ratio_to_limit": statistics.median(limit / own for limit, own in zip(limits, mine, strict=True)),
        "setup_per_s": flows / setup,
        "bytes_per_conn": held,
    }


def _translated(flows: int, seed: int, rounds: int, batch: int) -> tuple[Pipeline, float]:
    """A pipeline with all connections established and source-translated, and seconds a set-up took (median), rewriting included."""
    config = Config(max=flows, nat=(parse_rule("snat", OUTSIDE),))
    memory, frames = handshakes(np.random.default_rng(seed).permutation(flows).astype(np.int64), int(ip_address(OUTSIDE)))
    spent = []
    for _ in range(rounds):
        pipeline, writable = Pipeline(config, batch=batch), memory.copy()
        spent.append(timed(partial(_forward, pipeline, writable, frames)))
    return pipeline, statistics.median(spent)


def measure_nat(flows: int, *, seed: int = 1, rounds: int = ROUNDS, batch: int = 64) -> dict[str, Any]:
    """The same traffic with every connection source-translated and every frame rewritten in place, beside the engine without translation.

    The rewriting is timed, writable copies of the frames are made before. All connections share one address and keep their ports. Returns the
    medians: mpps, ns_per_packet, ratio_to_plain (median of the rounds' own ratios), setup_per_s. Raises CtmirrorError if not every packet was
    accepted, and those of every connection translated.
    """
    packets = max(MIN_PACKETS, flows)
    plain_memory, frames = established(flows, packets * rounds, seed)
    nat_memory, _ = established(flows, packets * rounds, seed, int(ip_address(OUTSIDE)))
    plain = Pipeline(Config(max=flows), batch=batch)
    run(plain, *handshakes(np.random.default_rng(seed).permutation(flows).astype(np.int64)))
    nat, setup = _translated(flows, seed, rounds, batch)
    mine: list[float] = []
    plains: list[float] = []
    for i in range(rounds):
        part = frames[i * packets : (i + 1) * packets]
        works: list[Turn] = [(plains, partial(run, plain, plain_memory, part)), (mine, partial(_forward, nat, nat_memory, part))]
        by_turns(works, i)
    check_accepted(plain, flows)
    check_accepted(nat, flows)
    stats = nat.summary()
    if stats["translated"] != stats["total_packets"]:
        raise CtmirrorError(f"bench: {stats['translated']} of {stats['total_packets']} packets were translated: expected all")
    return {
        "flows": flows,
        "mpps": packets / statistics.median(mine) / 1e6,
        "ns_per_packet": statistics.median(mine) / packets * 1e9,
        "ratio_to_plain": statistics.median(other / own for other, own in zip(plains, mine, strict=True)),
        "setup_per_s": flows / setup,
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "huge_pages": Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip(),
    }


def apart(measure: Callable[..., Any], *arguments: int, **options: int | list[int]) -> Any:
    """A function of a module in a process of its own, so that nothing is measured in the memory of what ran before."""
    given = ", ".join([*map(repr, arguments), *(f"{name}={value!r}" for name, value in options.items())])
    call = f"{measure.__name__}({given})"
    code = f"import json; from {measure.__module__} import {measure.__name__}; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CtmirrorError(f"bench: {call}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    return json.loads(done.stdout)


def engine(flows: list[int], *, seed: int = 1, rounds: int = ROUNDS, nat: bool = False) -> dict[str, Any]:
    """{"machine": ..., "engine": [measure_engine() of each number of flows]}, and with nat {"nat": [measure_nat() of each]}."""
    figures = {"machine": machine(), "engine": [apart(measure_engine, n, seed=seed, rounds=rounds) for n in flows]}
    return figures | ({"nat": [apart(measure_nat, n, seed=seed, rounds=rounds) for n in flows]} if nat else {})


def _command(capture: str) -> None:
    done = subprocess.run([sys.executable, "-m", "datapath", "replay", "--quiet", capture], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CtmirrorError(f"bench: {(done.stderr.strip().splitlines() or ['killed'])[-1].removeprefix('ctmirror: ')}")


def replay(capture: str, runs: int) -> dict[str, Any]:
    """The whole command on a capture, start of the interpreter included.

    Returns {"machine": ..., "replay": {"capture", "packets", "runs", "seconds" (median), "mpps"}}. Raises CaptureError as `replay` would.
    """
    if capture == STDOUT:
        raise CtmirrorError("bench: stdin can be read once only: expected the name of a file")
    packets = 0
    with PcapSource(capture) as source:
        while n := len(source.read(1 << 16)[1]):
            packets += n
    seconds = statistics.median(timed(lambda: _command(capture)) for _ in range(runs))
    row = {"capture": capture, "packets": packets, "runs": runs, "seconds": seconds, "mpps": packets / seconds / 1e6}
    return {"machine": machine(), "replay": row}

"""What a mirror costs the engine whose flows all stay in software: packets of established connections through rules, with and without one, by turns.

    python -m bench.mirrored [--flows 100000] [--rounds 7] [--json]

Hardware refuses everything (profile `none`), so that every flow asks again and again, and is held back. `ratio` is the median of the rounds' own
ratios, of the speed with a mirror to that without. Not here: what commands cost (bench.mirror).
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from typing import Any

import numpy as np

from ctcore.config import Config
from datapath.benchmark import CHUNK, acknowledgements, established, handshakes, timed
from datapath.benchmark_rules import HOOK, firewall
from datapath.ruled import RulePipeline
from offload.mirror import Mirror
from offload.pump import pump
from offload.simnic import profile
from offload.simnic.nic import Nic

RULES = 10
PACKETS = 2_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measured(options.flows, options.rounds)
    print(json.dumps(found) if options.json else "\n".join(f"{name:<10} {value:,.3f}" for name, value in found.items()))


def measured(flows: int, rounds: int) -> dict[str, float]:
    """mpps without a mirror, mpps with one, ratio, refused: installs that hardware refused."""
    memory, frames = established(flows, PACKETS, 1)
    order = np.random.default_rng(1).permutation(flows).astype(np.int64)
    alone, with_one = (RulePipeline(firewall(RULES), Config(max=flows)) for _ in range(2))
    mirror, nic = Mirror(flows), Nic(profile.load("none"))
    assert with_one.flows is not None
    with_one.flows.mirrored()
    for pipeline in (alone, with_one):
        pipeline.arrive([HOOK])
        for part in (handshakes(order), acknowledgements(order)):
            run(pipeline, *part, mirror=mirror if pipeline is with_one else None, nic=nic)
    times: dict[str, list[float]] = {"alone": [], "with": []}
    for i in range(rounds):
        turns = [("alone", alone, None), ("with", with_one, mirror)]
        for name, pipeline, one in turns if i % 2 else turns[::-1]:
            times[name].append(timed(partial(run, pipeline, memory, frames, mirror=one, nic=nic)))
    ratio = statistics.median(a / b for a, b in zip(times["alone"], times["with"], strict=True))
    mpps = {name: PACKETS / statistics.median(spent) / 1e6 for name, spent in times.items()}
    return {"alone_mpps": mpps["alone"], "with_mpps": mpps["with"], "ratio": ratio, "refused": float(mirror.counters()["refused_unsupported"])}


def run(pipeline: RulePipeline, memory: Any, frames: Any, *, mirror: Mirror | None, nic: Nic) -> None:
    for start in range(0, len(frames), CHUNK):
        part = frames[start : start + CHUNK]
        pipeline.process(memory, part, decisions=False)
        if mirror is not None and pipeline.flows is not None:
            pump(pipeline.flows, mirror, nic, int(part["ts"].max()))


if __name__ == "__main__":
    main()

"""How many frames a second the simulated NIC takes through its tables, on one thread.

    python -m bench.simnic [--flows 1000,100000,1000000] [--frames 2000000] [--nat] [--json]

All frames are of 64 bytes (60 without the FCS) and hit: chain 0 asks the CT table, chain 1 redirects. Flows come in random order, so that
an entry is in a cache only if the cache holds all of them. inserts: commands carried out a second, with their answers.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datapath.frame import FRAME_DTYPE
from offload.records import COMMAND_DTYPE, Ctinfo, Op
from offload.simnic import profile
from offload.simnic.nic import Nic
from offload.simnic.results import Verdict
from offload.simnic.rules import Ct, Match, NicRule, NicRules, Send, Then

FRAME, BATCH, ZONE = 60, 16384, 1
TRACK = (Match("eth_type", 0x0800, 0xFFFF), Match("ct_state", 0, 0x08))
ESTABLISHED = (Match("eth_type", 0x0800, 0xFFFF), Match("ct_state", 0x0A, 0x0A))


def rules(nat: bool) -> NicRules:
    track = NicRule(0, 0, 0, TRACK, (Ct(zone=ZONE, nat=nat, then=Then("goto", 1)),))
    return NicRules((track, NicRule(1, 0, 1, ESTABLISHED, (Send(2),))), {1: 0})


def commands(flows: int, nat: bool) -> NDArray[Any]:
    """A REPLACE for one direction of each connection: 10.0.0.0/8 to 192.0.2.1 port 443, a client's address for each 50,000."""
    made = np.zeros(flows, dtype=COMMAND_DTYPE)
    number = np.arange(flows)
    made["op"], made["ctinfo"], made["cookie"], made["conn"] = Op.REPLACE, Ctinfo.ESTABLISHED, number << 1, number
    match = made["match"]
    match["src"][:, :4] = (0x0A000001 + number // 50000).astype(">u4").view(np.uint8).reshape(-1, 4)
    match["dst"][:, :4] = 192, 0, 2, 1
    match["sport"], match["dport"], match["zone"], match["proto"], match["family"] = 1024 + number % 50000, 443, ZONE, 6, 4
    made["to"] = match
    if nat:
        made["to"]["src"][:, :4] = 198, 51, 100, 1
    return made


def frames(orders: NDArray[Any], n: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """n ACKs of random flows, one after the other."""
    flow = orders["match"][np.random.default_rng(1).integers(len(orders), size=n)]
    memory = np.zeros((n, FRAME), dtype=np.uint8)
    memory[:, 12:24] = 8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 6
    memory[:, 26:30], memory[:, 30:34] = flow["src"][:, :4], flow["dst"][:, :4]
    memory[:, 34:36] = flow["sport"].astype(">u2").view(np.uint8).reshape(-1, 2)
    memory[:, 36:38] = flow["dport"].astype(">u2").view(np.uint8).reshape(-1, 2)
    memory[:, 46], memory[:, 47] = 0x50, 0x10
    rows = np.zeros(n, dtype=FRAME_DTYPE)
    rows["offset"], rows["caplen"], rows["len"], rows["link"], rows["iface"] = np.arange(n) * FRAME, FRAME, FRAME, 1, 1
    rows["ts"] = np.arange(n) * 200
    return memory.reshape(-1), rows


def measure(flows: int, n: int, nat: bool, rounds: int = 3) -> dict[str, float]:
    """The best of some rounds."""
    nic = Nic(profile.load("perfect"), rules(nat))
    orders = commands(flows, nat)
    nic.submit(orders[:1], 0)
    nic.process(*frames(orders, 1))  # compiled
    start = time.perf_counter()
    nic.submit(orders[1:], 0)
    nic.advance(0)
    inserting = time.perf_counter() - start
    memory, rows = frames(orders, n)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        hits = 0
        for first in range(0, n, BATCH):
            hits += np.count_nonzero(nic.process(memory, rows[first : first + BATCH])["verdict"] == Verdict.FORWARDED)
        best = min(best, time.perf_counter() - start)
        assert hits == n
    return {"flows": flows, "nat": nat, "mpps": n / best / 1e6, "ns": best / n * 1e9, "inserts": (flows - 1) / inserting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=lambda text: [int(part) for part in text.split(",")], default=[1000, 100_000, 1_000_000])
    parser.add_argument("--frames", type=int, default=2_000_000)
    parser.add_argument("--nat", action="store_true", help="with a source address translated")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.json:
        print(f"{'flows':>9} {'Mpps':>7} {'ns':>6} {'inserts/s':>11}")
    for flows in options.flows:
        row = measure(flows, options.frames, options.nat)
        text = f"{flows:>9,} {row['mpps']:>7.2f} {row['ns']:>6.0f} {row['inserts']:>11,.0f}"
        print(json.dumps(row) if options.json else text, flush=True)


if __name__ == "__main__":
    main()

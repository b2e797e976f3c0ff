"""Fuzzer of parse(), coverage-guided.

Invariant: whatever bytes a frame of any link type holds and however many of them were captured, parse() touches no other byte (there are guard pages
on both sides), gives the same row at either end of memory, and that row is pending with a tuple or final with a reason, its l4 within the capture.

Run: python pcap_tests/fuzz/fuzz_wire.py [CORPUS] [-max_total_time=60]. The compiled parser has no coverage counters; in their place every outcome
(IP version, protocol, reason, L4 reason) has a function of its own that is instrumented and called, so that a new outcome is new coverage.
Input: link type, flags (1: verify checksums, 2: repair the IPv4 header's checksum, 4: IP at once, as if behind Ethernet), bytes not captured, frame.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

from datapath import craft as t
from datapath.wire import parse_batch
from pcap_tests.test_datapath.guarded import LINKS, Guarded, check_row
from pcap_tests.test_datapath.hostile import repaired

MARKS = 4096
guarded = Guarded()


def make_mark():
    def mark() -> None:
        return None

    return atheris.instrument_func(mark)


marks = [make_mark() for _ in range(MARKS)]


def test_one_input(data: bytes) -> None:
    if len(data) < 3:
        return
    link, flags, missing, packet = LINKS[data[0] % len(LINKS)], data[1], data[2], data[3:4096]
    if flags & 4:
        packet = t.eth(packet, t.ETH_IPV6 if packet[:1] >= b"\x60" else t.ETH_IPV4)
        link = LINKS[1]
    if flags & 2:
        packet = repaired(packet, 14 if link == LINKS[1] else 0)
    rows = []
    for place in (guarded.at_end, guarded.at_start):
        frame = place(packet, link=link, wire_len=len(packet) + missing)
        row = parse_batch(guarded.memory, frame, checksum=bool(flags & 1)).array[0]
        check_row(row, guarded.memory, frame)
        rows.append([row[name].tobytes() for name in row.dtype.names if name != "l4"])
    assert rows[0] == rows[1], "the same bytes elsewhere gave another row"
    outcome = (int(row["key"]["family"]), int(row["key"]["proto"]), int(row["reason"]), int(row["l4_reason"]))
    marks[hash(outcome) % MARKS]()


def main() -> None:
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

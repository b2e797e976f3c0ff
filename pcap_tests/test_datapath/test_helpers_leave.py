"""What helpers change leaves as whole packets: text, lengths, sequence numbers and checksums, through the pipeline as replay uses it."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np

from ctcore.config import Config
from ctcore.nat_rules import HelperRule, NatRule, Range
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch
from datapath.worker import Pipeline

CLIENT, SERVER, OUTSIDE = "10.0.0.1", "198.51.100.7", "192.0.2.99"
RULES = (NatRule("snat", Range(ip_address(OUTSIDE), ip_address(OUTSIDE))),)
COMMAND, SAID = b"PORT 10,0,0,1,7,208\r\n", b"PORT 192,0,2,99,7,208\r\n"


def talk() -> list[bytes]:
    def client(flags: str, seq: int, ack: int, payload: bytes = b"") -> bytes:
        return craft.tcp(CLIENT, SERVER, 40000, 21, flags, seq=seq, ack=ack, payload=payload)

    def server(flags: str, seq: int, ack: int) -> bytes:
        return craft.tcp(SERVER, OUTSIDE, 21, 40000, flags, seq=seq, ack=ack)

    behind = 108 + len(COMMAND)
    return [
        client("S", 100, 0), server("SA", 500, 101), client("A", 101, 501, b"NOOP x\n"), client("PA", 108, 501, COMMAND),
        client("PA", 108, 501, COMMAND), server("A", 501, behind + 2), client("PA", behind, 501, b"LIST\r\n"),
    ]  # fmt: skip


def left(cut: int) -> list[tuple[np.void, bytes]]:
    """Rows and payloads of what leaves, the frames being processed so many at a time."""
    pipeline = Pipeline(Config(nat=RULES, helpers=(HelperRule("ftp", 6, 21),)))
    found = []
    frames = talk()
    for i in range(0, len(frames), cut):
        memory, laid = frames_of(frames[i : i + cut], ts=1)
        decisions, _, rewrites = pipeline.process(memory, laid, keys=True, rewrites=True)
        memory, laid, _ = pipeline.leaving(memory, laid, decisions, rewrites, pipeline.tracker.edits())
        batch = parse_batch(memory, laid)
        found += [(row, batch.l4_bytes(k)[int(row["doff"]) :]) for k, row in enumerate(batch.array)]
    return found


def test_commands_leave_as_they_are_true_outside():
    for cut in (1, 3, 100):
        packets = left(cut)
        assert len(packets) == 7 and all(row["l4_reason"] == 0 for row, _ in packets)  # checksums are right
        assert [payload for _, payload in packets] == [b"", b"", b"NOOP x\n", SAID, SAID, b"", b"LIST\r\n"]
        behind = 108 + len(COMMAND)
        assert [int(row["seq"]) for row, _ in packets] == [100, 500, 101, 108, 108, 501, behind + 2]
        assert int(packets[5][0]["ack"]) == behind
        assert [int(row["ip_len"]) for row, _ in packets[3:5]] == [40 + len(SAID)] * 2

"""Fuzzer of the whole packet path, coverage-guided: what reads bytes behind the door, too (TCP options, SCTP chunks, packets quoted by ICMP errors).

Invariant: whatever becomes of the frames of a few conversations, and under whatever settings, the pipeline touches no byte behind a frame, decides as
the model does, packet by packet, and tracker.check() holds afterwards. In full, and how bytes are read as such a story: test_datapath/hostile.py.

    python pcap_tests/fuzz/fuzz_pipeline.py [CORPUS] [-max_total_time=60]

Takes libFuzzer's arguments. Needs atheris. The engine is compiled and tells the fuzzer nothing of its branches; the model, which decides the same
in plain Python, is instrumented in its place. Every reason given in a state counts as a branch, too.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

with atheris.instrument_imports(include=["ctcore.model"]):
    from pcap_tests.test_datapath.hostile import CONVERSATIONS, SETTINGS, judge, story

from pcap_tests.test_datapath.guarded import Guarded

BRANCHES = [atheris._reserve_counter() for _ in range(4096)]
guarded = Guarded()


def one_input(data: bytes) -> None:
    """The invariant above, of one story."""
    if len(data) < SETTINGS:
        return
    told = story(data)
    if told.packets:
        for decision in judge(guarded, told)[["proto", "state", "reason", "l4state"]].tolist():
            atheris._trace_branch(BRANCHES[hash(decision) % len(BRANCHES)])


def seeds() -> list[bytes]:
    """Every conversation from its beginning to its end, unharmed and with room for patches."""
    return [bytes(SETTINGS) + bytes([i, 4, 0, 0, 20, 0]) * len(talk) for i, talk in enumerate(CONVERSATIONS)]


def main() -> None:
    """Run libFuzzer over one_input, with the seeds in a folder of their own behind the one given."""
    with tempfile.TemporaryDirectory() as folder:
        for i, seed in enumerate(seeds()):
            Path(folder, f"seed{i}").write_bytes(seed)
        for argument in sys.argv[1:]:
            if not argument.startswith("-"):
                Path(argument).mkdir(parents=True, exist_ok=True)
        atheris.Setup([*sys.argv, folder], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Fuzzer of the helpers, coverage-guided: FTP, TFTP, SIP, IRC and PPTP payloads, with and without translation.

Invariant: whatever a payload holds, no byte behind it is read (a page that may not be touched follows), and engine and model say and expect the same.

    python pcap_tests/fuzz/fuzz_helpers.py [CORPUS] [-max_total_time=60]

Takes libFuzzer's arguments. Needs atheris. The model is instrumented in the engine's place.
Input: helper, flags (1: the reply direction, 2: IPv6, 4: under translation), payload.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

with atheris.instrument_imports(include=["ctcore.model"]):
    from pcap_tests.test_ctcore.test_helpers.test_helpers_hostile import judge

from pcap_tests.test_ctcore.test_helpers.test_helpers_agree import COMMANDS, PORTS

NAMES = sorted(PORTS)


def one_input(data: bytes) -> None:
    if len(data) >= 2:
        judge(NAMES[data[0] % len(NAMES)], data[1] & 1, data[2:1400], data[1] >> 1 & 1, bool(data[1] & 4))


def seeds() -> list[bytes]:
    return [bytes([NAMES.index(name), d | flags]) + line for name, said in COMMANDS.items() for d, line in said for flags in (0, 2, 4)]


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

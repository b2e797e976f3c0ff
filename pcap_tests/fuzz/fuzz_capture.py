"""Whatever bytes a capture file holds, reading it gives frames that lie within memory and then the end or one CaptureError, never anything
else; and it gives the same packets mapped and through a window.

    python pcap_tests/fuzz/fuzz_capture.py pcap_tests/fuzz/corpus/capture -max_total_time=60

Takes libFuzzer's arguments. Needs atheris. Without a corpus it starts from the seeds below.
The scans are compiled and tell the fuzzer nothing of their branches. So each kind of outcome (which damage, how many packets, of which link
and interface, cut or not) counts as a branch of its own: inputs that bring about a new one are kept and varied.
"""

from __future__ import annotations

import gzip
import os
import re
import sys
import tempfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

with atheris.instrument_imports(include=["datapath.stream"]):
    from datapath.capture import PcapSource

from ctcore.errors import CaptureError
from pcap_tests.capture_files import SMALL, enhanced, interface, obsolete, pcap, section, simple

SEEDS = [
    SMALL["pcap"][0],
    SMALL["pcapng"][0],
    pcap((1, 2, b"swapped"), order=">", magic=0xA1B23C4D, link=113 | 1 << 26 | 2 << 28),
    section() + interface(resolution=0x94, offset=-5, fcs=4) + obsolete(b"old") + simple(b"simple") + section(">") + interface(">"),
    section() + interface() + interface(link=127) + enhanced(b"radio", iface=1),
    gzip.compress(SMALL["pcap"][0]),
]
ROWS = 7
BRANCHES = [atheris._reserve_counter() for _ in range(4096)]


def reached(*outcome: object) -> None:
    """Tell the fuzzer that this outcome came about; numbers in texts, hexadecimal ones too, do not make outcomes of their own."""
    kind = re.sub(r"\b(0x)?[0-9a-f,]+\b", "#", repr(outcome))
    atheris._trace_branch(BRANCHES[zlib.crc32(kind.encode()) % len(BRANCHES)])


def report(packets: list[tuple[bytes, tuple[int, ...]]], damage: str | None) -> None:
    """The outcomes of one capture."""
    reached("damage", damage)
    reached("count", "x" * len(packets).bit_length())
    for data, (caplen, length, ts, link, iface) in packets:
        reached("sizes", not caplen, caplen < length, len(data) > 64, ts > 0, ts < 0)
        reached("link", "x" * link)
        reached("iface", "x" * min(iface, 8))


def read_all(path: str, window: int | None) -> tuple[list[tuple[bytes, tuple[int, ...]]], str | None]:
    """All packets, and the text of the error that the capture ends with."""
    packets: list[tuple[bytes, tuple[int, ...]]] = []
    try:
        with PcapSource(path, name="fuzz", window=window) as source:
            while True:
                memory, frames = source.read(ROWS)
                if not len(frames):
                    return packets, None
                assert len(frames) <= ROWS and source.position <= source.size
                for offset, *rest in frames.tolist():
                    caplen, length = rest[:2]
                    assert offset + caplen <= len(memory) and caplen <= length
                    packets.append((memory[offset : offset + caplen].tobytes(), tuple(rest)))
    except CaptureError as damage:
        text = str(damage)
        assert text and "\n" not in text
        return packets, text


def one_input(data: bytes) -> None:
    """The invariant above, of one file."""
    fd = os.memfd_create("capture")
    try:
        os.write(fd, data)
        path = f"/proc/self/fd/{fd}"
        packets, damage = read_all(path, None)
        assert (packets, damage) == read_all(path, 1)
        report(packets, damage)
    finally:
        os.close(fd)


def main() -> None:
    """Run libFuzzer over one_input, with the seeds in a folder of their own behind the one given."""
    with tempfile.TemporaryDirectory() as seeds:
        for i, seed in enumerate(SEEDS):
            Path(seeds, f"seed{i}").write_bytes(seed)
        for argument in sys.argv[1:]:
            if not argument.startswith("-"):
                Path(argument).mkdir(parents=True, exist_ok=True)
        atheris.Setup([*sys.argv, seeds], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Makes the captures under captures/: real traffic between real stacks, recorded at a router.

    python -m pcap_tests.record [--list] [--only NAME]... [-o DIRECTORY]

Every scene (scenes.py) plays in a network of its own (netns.py); a packet socket on the router's interface to the client listens. demo.pcap is
the scenes marked so, one after the other in the order they were recorded in. Files are pcap with nanoseconds, Ethernet, whole frames.
Needs root. Not here: what ctmirror says of the captures; nothing of ctmirror is imported but its network namespaces.
"""

from __future__ import annotations

import argparse
import errno
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from pcap_tests.netns import Namespace, Network, Tap, unavailable
from pcap_tests.scenes import SCENES, Scene

CAPTURES = Path(__file__).parent / "captures"
DEMO = "demo"
DEMO_ABOUT = "The scenes marked with * one after the other, as they were recorded."
Frame = tuple[int, bytes]  # ns since the epoch, bytes
# pcap: magic number for nanoseconds, version 2.4, time zone and accuracy unused, longest frame, Ethernet.
FILE_HEADER = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
RECORD_HEADER = struct.Struct("<IIII")


def write_pcap(path: Path, frames: Iterable[Frame]) -> None:
    with path.open("wb") as file:
        file.write(FILE_HEADER)
        for stamp, frame in frames:
            file.write(RECORD_HEADER.pack(*divmod(stamp, 10**9), len(frame), len(frame)) + frame)


def read_pcap(path: Path) -> list[Frame]:
    """A file that write_pcap wrote."""
    data, frames, position = path.read_bytes(), [], len(FILE_HEADER)
    if not data.startswith(FILE_HEADER):
        raise ValueError(f"{path}: not a capture of ours: expected little-endian pcap with nanoseconds")
    while position < len(data):
        seconds, ns, size, _ = RECORD_HEADER.unpack_from(data, position)
        position += RECORD_HEADER.size + size
        frames.append((seconds * 10**9 + ns, data[position - size : position]))
    return frames


@contextmanager
def recording(namespace: Namespace, side: int) -> Iterator[list[Frame]]:
    """All frames that pass an interface in either direction; complete, and in order of time, once the block has ended."""
    frames: list[Frame] = []
    tap, ended = Tap(namespace, side, outgoing=True), threading.Event()

    def listen() -> None:
        while not ended.wait(0.01):
            frames.extend(tap.receive())

    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(listen)
        try:
            yield frames
            # What is still on its way belongs to the scene.
            time.sleep(0.1)
        finally:
            ended.set()
            listening.exception()
            frames.extend(tap.receive())
            lost = tap.lost()
            tap.close()
    listening.result()
    if lost:
        raise OSError(f"{lost} frames were lost by the recording socket")
    frames[:] = in_order(frames)


def in_order(frames: Sequence[Frame]) -> list[Frame]:
    """Frames in the order of the socket's queue, none with a later time than the next one.

    The kernel begins to stamp arrivals a while after it was asked to; what came before has the time at which it was read, which may be too late.
    """
    times = list(accumulate((stamp for stamp, _ in reversed(frames)), min))
    return [(stamp, frame) for stamp, (_, frame) in zip(reversed(times), frames, strict=True)]


def record(scene: Scene) -> list[Frame]:
    with Network(**scene.network) as net, recording(*net.tap) as frames:
        scene.play(net)
    return frames


def write_demo(directory: Path) -> None:
    parts = [read_pcap(path) for name, scene in SCENES.items() if scene.demo and (path := directory / f"{name}.pcap").exists()]
    write_pcap(directory / f"{DEMO}.pcap", (frame for part in sorted(parts) for frame in part))


def readme(directory: Path) -> str:
    """README.md of a directory of captures."""
    lines = [
        "# Captures made by ourselves",
        "",
        "Real traffic between Linux network stacks, recorded at a router between client (192.0.2.10, 2001:db8:1::10) and server (198.51.100.10,",
        "2001:db8:2::10), all offloads off: sizes and checksums are those on a cable. Each scene plays over IPv4, then over IPv6, unless its name",
        "says otherwise. pcap with nanoseconds, Ethernet, whole frames. Made by `python -m pcap_tests.record` (as root), which also writes",
        "this file; `--only NAME` makes one again. What each scene does is in `pcap_tests/scenes.py`.",
        "",
        "| file | packets | bytes | seconds | what is in it |",
        "|---|---:|---:|---:|---|",
    ]
    about = {DEMO: DEMO_ABOUT} | {name: scene.about + (" \\*" if scene.demo else "") for name, scene in SCENES.items()}
    for name, text in about.items():
        path = directory / f"{name}.pcap"
        if path.exists():
            frames = read_pcap(path)
            seconds = (frames[-1][0] - frames[0][0]) / 1e9 if frames else 0.0
            lines.append(f"| {path.name} | {len(frames):,} | {path.stat().st_size:,} | {seconds:.1f} | {text} |")
    return "\n".join(lines) + "\n"


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pcap_tests.record", description="Record the test captures. Needs root.")
    parser.add_argument("--list", action="store_true", help="name the scenes and stop")
    parser.add_argument("--only", metavar="NAME", action="append", choices=SCENES, help="record this scene (repeatable; default: all)")
    parser.add_argument("-o", "--output", metavar="DIRECTORY", type=Path, default=CAPTURES, help="default: pcap_tests/captures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    chosen = options(arguments)
    if chosen.list:
        for scene in SCENES.values():
            print(f"{scene.name:24}{scene.about}")
        return 0
    if obstacle := unavailable():
        print(f"record: {obstacle}", file=sys.stderr)
        return 2
    chosen.output.mkdir(parents=True, exist_ok=True)
    for name in chosen.only or SCENES:
        try:
            frames = record(SCENES[name])
        except (OSError, AssertionError, NetlinkError) as error:
            print(f"record: {name}: {error}", file=sys.stderr)
            if getattr(error, "errno", None) == errno.EPROTONOSUPPORT:
                continue
            return 1
        write_pcap(chosen.output / f"{name}.pcap", frames)
        print(f"{name:24}{len(frames):7,} packets {sum(len(frame) for _, frame in frames):9,} bytes", file=sys.stderr)
    write_demo(chosen.output)
    (chosen.output / "README.md").write_text(readme(chosen.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes examples/vm-behind-vf/traffic.pcapng: what arrives at a NIC's uplink and at the representor of a VM's virtual function.

    python -m pcap_tests.record_example [-o FILE]

Real stacks: a client fetches two pages from the VM's web server over HTTP; then the VM tries to open a connection to the client, and a host outside
tries a port of the VM that is closed to it. In between stands a wire that lets pass what the example's rules let pass, and notes every frame with the
side it came from: the capture holds what arrives, refused or not. Needs root.
Not here: the rules, which have to say the same (test_examples).
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from datapath.frame import frames_of
from datapath.sink import PcapSink
from pcap_tests.netns import CLIENT, LEFT, SERVER, V4, Network
from pcap_tests.stage import get, settle, web

EXAMPLE = Path(__file__).parent.parent / "examples" / "vm-behind-vf" / "traffic.pcapng"
IFACES = {0: "eth0", 1: "eth0_0"}  # by the side of the wire: the uplink, the representor
ETH_IPV4, ETH_ARP, TCP = 0x0800, 0x0806, 6
SYN, ACK = 0x02, 0x10
HTTP, SSH = 80, 22
SOON = 0.3  # seconds until who tries in vain gives up


class Notes:
    """A wire's behaviour: notes what comes, and passes HTTP to the VM, its answers and ARP."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, int, bytes]] = []  # ns, side, frame

    def __call__(self, side: int, number: int, frame: bytes) -> list[tuple[float, bytes]]:
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind not in (ETH_IPV4, ETH_ARP):
            return [(0.0, frame)]  # IPv6's own chatter is no part of the example
        self.frames.append((time.time_ns(), side, frame))
        return [(0.0, frame)] if kind == ETH_ARP or self.passes(side, frame) else []

    @staticmethod
    def passes(side: int, frame: bytes) -> bool:
        if frame[23] != TCP:
            return False
        at = 14 + (frame[14] & 15) * 4
        sport, dport = struct.unpack_from("!HH", frame, at)
        opens = frame[at + 13] & (SYN | ACK) == SYN
        return dport == HTTP if side == LEFT else sport == HTTP and not opens


def attempt(host: socket.socket, address: str, port: int) -> None:
    """To open a connection that nobody answers."""
    with host:
        host.settimeout(SOON)
        with suppress(TimeoutError):
            host.connect((address, port))


def record(path: Path) -> int:
    notes = Notes()
    with Network(core=[notes]) as net:
        with web(net, V4) as http:
            get(http, 2000)
            get(http, 40000)
        attempt(net.server.socket(V4, socket.SOCK_STREAM), CLIENT[V4], HTTP)
        attempt(net.client.socket(V4, socket.SOCK_STREAM), SERVER[V4], SSH)
        settle()
    memory, frames = frames_of([frame for _, _, frame in notes.frames])
    frames["ts"] = np.array([stamp for stamp, _, _ in notes.frames], dtype=np.int64)
    frames["iface"] = [side for _, side, _ in notes.frames]
    with PcapSink(path, ifaces=IFACES) as sink:
        sink.write(memory, frames)
    return len(frames)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pcap_tests.record_example", description="Record the example's capture. Needs root.")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, default=EXAMPLE, help="default: examples/vm-behind-vf/traffic.pcapng")
    path = parser.parse_args(arguments).output
    print(f"{path.name}: {record(path)} packets")
    return 0


if __name__ == "__main__":
    sys.exit(main())

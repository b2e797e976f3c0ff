"""Traffic whose way through a NIC can be counted by hand, for the tests of plans, of `why` and of audits. Not here: tests."""

from __future__ import annotations

from pathlib import Path

from datapath import craft
from pcap_tests import stories

MS, SECOND = 10**6, 10**9
START = stories.T // SECOND  # when captures begin, in seconds since the epoch
CLIENT, SERVER = "10.0.0.1", "192.0.2.1"
Traffic = list[tuple[int, bytes]]  # ns since a capture's beginning, frame


def conn(port: int, data: int, *, at: int = 0, every: int = 100, size: int = 100, fin: bool = False) -> Traffic:
    """A TCP connection from `at` (ms) on: a handshake of 10 ms each, then requests of `size` bytes, every so many ms, each of them unanswered.

    The three packets of the handshake are software's, of which the last one leads to the offload; so are FINs. The ACK behind them is hardware's all
    the same, if its rule still lives (contract A7.57).
    """
    made = [
        (at, craft.tcp(CLIENT, SERVER, port, 80, "S", seq=99)),
        (at + 10, craft.tcp(SERVER, CLIENT, 80, port, "SA", seq=499, ack=100)),
        (at + 20, craft.tcp(CLIENT, SERVER, port, 80, "A", seq=100, ack=500)),
    ]
    made += [(at + 20 + every * (i + 1), request(port, i, size)) for i in range(data)]
    end, seq = made[-1][0], 100 + data * size
    if fin:
        made += [
            (end + 100, craft.tcp(CLIENT, SERVER, port, 80, "FA", seq=seq, ack=500)),
            (end + 110, craft.tcp(SERVER, CLIENT, 80, port, "FA", seq=500, ack=seq + 1)),
            (end + 120, craft.tcp(CLIENT, SERVER, port, 80, "A", seq=seq + 1, ack=501)),
        ]
    return [(ms * MS, frame) for ms, frame in made]


def request(port: int, number: int, size: int = 100) -> bytes:
    return craft.tcp(CLIENT, SERVER, port, 80, "PA", seq=100 + number * size, ack=500, payload=bytes(size))


def written(path: Path, *traffic: Traffic) -> str:
    """The name of a capture of all of it, in order of time."""
    return stories.write(path, sorted((one for each in traffic for one in each), key=lambda one: one[0]))


def sizes(traffic: Traffic) -> int:
    return sum(len(frame) for _, frame in traffic)

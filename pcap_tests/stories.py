"""Small captures that tell a story, for tests of everything above the engine: each a list of (ns since the start, frame).

Not here: how frames are made (traffic). What conntrack says of each packet stands beside it.
"""

from __future__ import annotations

from pathlib import Path

from datapath import craft
from datapath.frame import frames_of
from datapath.sink import PcapSink

T = 1_700_000_000 * 10**9
MS = 10**6
CLIENT, SERVER, ROUTER = "10.0.0.1", "10.0.0.2", "10.0.0.254"
CLIENT6, SERVER6 = "2001:db8::1", "2001:db8::2"
Story = list[tuple[int, bytes]]


def closed_by_client(sport: int = 40000, start: int = 0, size: int = 100, a: str = CLIENT, b: str = SERVER) -> Story:
    """A whole TCP connection of nine packets: handshake, `size` bytes of answer, FIN by both."""
    steps = [
        (a, b, "S", 100, 0, b""),  # 0 new SYN_SENT
        (b, a, "SA", 500, 101, b""),  # 1 established reply SYN_RECV
        (a, b, "A", 101, 501, b""),  # 2 established ESTABLISHED, assured
        (a, b, "PA", 101, 501, b"ask"),  # 3
        (b, a, "PA", 501, 104, b"x" * size),  # 4
        (a, b, "FA", 104, 501 + size, b""),  # 5 FIN_WAIT
        (b, a, "FA", 501 + size, 105, b""),  # 6 LAST_ACK
        (a, b, "A", 105, 502 + size, b""),  # 7 TIME_WAIT
    ]
    return [
        (start + i * MS, craft.tcp(src, dst, *((sport, 80) if src == a else (80, sport)), flags, seq=seq, ack=ack, payload=payload))
        for i, (src, dst, flags, seq, ack, payload) in enumerate(steps)
    ]


def question(sport: int = 5353, start: int = 0) -> Story:
    """A UDP question and its answer."""
    return [
        (start, craft.udp(CLIENT, SERVER, sport, 53, b"who?")),  # new
        (start + MS, craft.udp(SERVER, CLIENT, 53, sport, b"you!")),  # established reply
    ]


def office(start: int = 0) -> Story:
    """A little of everything, 19 packets."""
    unanswered = craft.udp(CLIENT, "10.0.9.9", 6000, 7000, b"anyone?")
    return sorted(
        [
            *closed_by_client(start=start),  # 0-7, conn 0
            *question(start=start + 10 * MS),  # 8, 9, conn 1
            (start + 20 * MS, craft.icmp(CLIENT, SERVER, 8, ident=77, sequence=1)),  # 10 new, conn 2
            (start + 21 * MS, craft.icmp(SERVER, CLIENT, 0, ident=77, sequence=1)),  # 11 established reply
            (start + 30 * MS, unanswered),  # 12 new, conn 3
            (start + 31 * MS, craft.icmp_error(ROUTER, CLIENT, 3, 1, unanswered)),  # 13 related
            (start + 40 * MS, craft.tcp(CLIENT, SERVER, 41000, 80, "S", l4_checksum=1)),  # 14 invalid tcp_checksum
            (start + 41 * MS, craft.tcp(SERVER, CLIENT, 80, 41001, "SA", seq=1, ack=2)),  # 15 invalid tcp_not_opening
            (start + 50 * MS, craft.eth(bytes(28), 0x0806)),  # 16 not-seen not_ip
            (start + 51 * MS, craft.frame(CLIENT, SERVER, craft.UDP, bytes(16), frag=0x2000)),  # 17 not-seen fragment
            (start + 60 * MS, craft.gre(CLIENT6, SERVER6, version=1, proto=0x880B, call=9)),  # 18 new, conn 4
        ],
        key=lambda step: step[0],
    )


def write(path: Path, story: Story, link: int = 1) -> str:
    """The story as a capture file; its name."""
    memory, frames = frames_of([data for _, data in story], [T + at for at, _ in story], link=link)
    with PcapSink(path) as sink:
        sink.write(memory, frames)
    return str(path)

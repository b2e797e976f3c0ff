"""What has no state machine: UDP, UDP-Lite, GRE, echo and its like, and protocols conntrack has never heard of.

Not here: IP headers (mangle), ICMP errors (icmp).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from datapath.scenario.steps import L4, Checksum, Gre, Icmp, Ip, Other, Packet, Udp, UdpLite
from pcap_tests.fuzz_kernel.draft import Draft

SIZES = (0, 1, 2, 3, 8, 40, 512)
BAD: tuple[Checksum, ...] = ("bad", 0, 0xFFFF)
LITE_SUMS: tuple[Checksum, ...] = ("udp", "udp", "udp", "good", *BAD)
IDS = (0, 1, 7, 0xFFFF)
PROTOCOLS = (2, 4, 33, 41, 46, 50, 89, 94, 103, 112, 115, 135, 253, 255)
REQUESTS = {False: ((8, 0), (13, 14), (15, 16), (17, 18)), True: ((128, 129), (139, 140))}
# Types that are neither question nor answer, nor errors that quote something.
OTHER_TYPES = {
    False: (1, 2, 6, 7, 9, 10, 19, 30, 40, 42, 255), True: (130, 131, 132, 133, 134, 135, 136, 138, 141, 143, 144, 151, 152, 153, 160, 200, 255),
}  # fmt: skip


class DatagramTalk:
    """Both sides send datagrams of one kind. make: what the side 0 or 1 sends."""

    def __init__(self, draft: Draft, names: tuple[str, str], ports: tuple[int, int] | None, make: Callable[[Draft, int], L4]) -> None:
        self.draft, self.names, self.make = draft, names, make
        self.ports: tuple[int | None, int | None] = ports or (None, None)
        self.answers = draft.pick((0.0, 0.2, 0.5, 0.5))  # share of packets from the second side

    def step(self) -> None:
        draft = self.draft
        side = int(draft.chance(self.answers))
        ip = Ip(cut=draft.pick((0, 1, 2, 3, 4, 7, 8, 9, 12))) if draft.chance(0.05) else Ip()
        draft.send(Packet(self.names[side], self.names[1 - side], self.make(draft, side), self.ports[side], self.ports[1 - side], ip))


def udp(draft: Draft, side: int) -> Udp:
    datagram = Udp(draft.pick(SIZES))
    if draft.chance(0.1):
        datagram = replace(datagram, checksum=draft.pick(BAD))
    if draft.chance(0.1):
        datagram = replace(datagram, length=draft.pick((0, 7, 8, 9, 10, 11, 16, 48, 49, 520, 521, 65535)))
    return datagram


def udplite(draft: Draft, side: int) -> UdpLite:
    return UdpLite(draft.pick(SIZES), draft.pick((0, 0, 0, 1, 7, 8, 9, 10, 48, 49, 65535)), draft.pick(LITE_SUMS))


def gre(draft: Draft, side: int) -> Gre:
    proto = draft.pick((None, None, None, 0x0800, 0x880B, 0x6558))
    flags = draft.pick((0, 0, 0x10, 0x20, 0x80, 0xB0))
    return Gre(draft.pick((0, 0, 1, 1, 1, 2, 7)), proto, draft.pick((0, 1, 1, 2, 0xFFFF)), flags, draft.pick((0, 4, 40)))


def echo(v6: bool) -> Callable[[Draft, int], Icmp]:
    """Questions and answers; v6: ICMPv6, which may be over the wrong IP version."""

    def make(draft: Draft, side: int) -> Icmp:
        request, reply = draft.pick(REQUESTS[v6][:1] * 3 + REQUESTS[v6])
        kind = draft.pick((request, request, request, reply)) if side == 0 else draft.pick((reply, reply, reply, request))
        if draft.chance(0.15):
            kind = draft.pick(OTHER_TYPES[v6])
        wrong: Checksum = draft.pick(BAD) if draft.chance(0.08) else "good"
        return Icmp(kind, draft.pick((0, 0, 0, 0, 1)), v6, draft.pick(IDS), draft.pick((0, 1)), data=draft.pick(SIZES), checksum=wrong)

    return make


def other(draft: Draft, side: int) -> Other:
    return Other(draft.pick(PROTOCOLS[:3] * 4 + PROTOCOLS), draft.pick((0, 1, 4, 8, 40)))

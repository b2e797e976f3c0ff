"""Datagrams in fragments: in order and out of order, twice, overlapping by a little, with pieces missing, several of them mixed.

Theory of operation: a datagram of any protocol is cut at random places, its fragments are shuffled and spoilt, and wait in a queue. Each step sends
the next one of one of the queues. Both sides speak, so that answers to translated datagrams come in fragments, too.
Invariant: most datagrams are complete in the end, or hardly anything would be judged.
Not here: what is in a datagram (datagrams, tcp), strange IP headers (mangle).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from datapath import craft
from datapath.scenario.steps import L4, Ext, Icmp, Ip, Packet, Tcp, Udp, UdpLite
from pcap_tests.fuzz_kernel.draft import Draft

SIZES = (1, 24, 40, 100, 600, 1192, 1232, 1233, 1400, 2000, 3000)
CUTS = (8, 8, 16, 24, 64, 400, 600, 1000, 1184, 1224, 1232, 1304)
OPEN = 3  # datagrams under way
# No-operation and router alert. None that is only for the first fragment: a bridge does not know options, and takes none out of the others.
OPTIONS4 = (b"", b"", b"", b"\1\1\1\1", bytes([148, 4, 0, 0]))
HEADERS6: tuple[tuple[Ext, ...], ...] = (
    (), (), (), (Ext(craft.HOP_BY_HOP),), (Ext(craft.DESTINATION),), (Ext(craft.ROUTING, bytes(7)),), (Ext(craft.HOP_BY_HOP), Ext(craft.DESTINATION)),
)  # fmt: skip
ATOMIC = 0.1  # share of IPv6 datagrams


class FragmentTalk:
    """Two hosts whose datagrams come in fragments."""

    def __init__(self, draft: Draft, names: tuple[str, str], ports: tuple[int, int]) -> None:
        self.draft, self.names, self.ports = draft, names, ports
        self.protocol = draft.pick((_udp, _udp, _udp, _echo, _tcp, _udplite))
        self.queues: list[list[Packet]] = []

    def step(self) -> None:
        draft = self.draft
        if not self.queues or (len(self.queues) < OPEN and draft.chance(0.3)):
            self.queues.append(self._datagram(int(draft.chance(0.4))))
        queue = draft.pick(self.queues)
        draft.send(queue.pop(0), plain=True)
        if not queue:
            self.queues.remove(queue)

    def _datagram(self, side: int) -> list[Packet]:
        """The fragments of one, in the order in which they will be sent."""
        draft = self.draft
        l4, head = self.protocol(draft, side)
        ports = (None, None) if isinstance(l4, Icmp) else (self.ports[side], self.ports[1 - side])
        ip = Ip(ident=draft.dice.randrange(1, 0x10000))
        if draft.six:
            ip = replace(ip, ext=draft.pick(HEADERS6))
        else:
            ip = replace(ip, options=draft.pick(OPTIONS4), df=draft.chance(0.2))
        packet = Packet(self.names[side], self.names[1 - side], l4, *ports, ip)
        if draft.six and draft.chance(ATOMIC):
            return [replace(packet, ip=replace(ip, frag=(0, None)))]
        slices = spoilt(draft, slices_of(draft, head + int(getattr(l4, "data", 0))))
        return [replace(packet, ip=replace(ip, frag=(at, size), more=more)) for at, size, more in slices]


Slice = tuple[int, int, bool]  # offset and size in the datagram; whether more follow


def slices_of(draft: Draft, total: int) -> list[Slice]:
    """Where a datagram of so many bytes is cut: at multiples of 8, evenly or not."""
    even, borders = draft.chance(0.5), [0]
    size = draft.pick(CUTS)
    while borders[-1] + size < total and len(borders) < 24:
        borders.append(borders[-1] + size)
        size = size if even else draft.pick(CUTS)
    return [(start, end - start, end < total) for start, end in zip(borders, [*borders[1:], total], strict=True)]


def spoilt(draft: Draft, slices: Sequence[Slice]) -> list[Slice]:
    """In another order, twice, overlapping, or with one missing; often just as they are."""
    found = list(slices)
    if draft.chance(0.3):
        found.reverse()
    elif draft.chance(0.4):
        draft.dice.shuffle(found)
    if draft.chance(0.25):
        found.insert(int(draft.dice.random() * len(found)), draft.pick(slices))
    if draft.chance(0.25):
        at, size, more = draft.pick(slices)
        by = draft.pick((8, 8, -8, 1))
        wrong = draft.pick(((at, max(size + by, 1), more), (max(at + by // 8 * 8, 0), size, more), (at, size, not more)))
        found.insert(int(draft.dice.random() * (len(found) + 1)), wrong)
    if draft.chance(0.1):
        found.pop(int(draft.dice.random() * len(found)))
    return found or list(slices)


def _udp(draft: Draft, side: int) -> tuple[L4, int]:
    size = draft.pick(SIZES)
    return Udp(size, checksum=draft.pick(("good",) * 8 + (0, "bad"))), 8


def _udplite(draft: Draft, side: int) -> tuple[L4, int]:
    return UdpLite(draft.pick(SIZES), draft.pick((0, 8)), "udp"), 8


def _echo(draft: Draft, side: int) -> tuple[L4, int]:
    kind = ((8, 0), (128, 129))[draft.six][side]
    return Icmp(kind, v6=draft.six, id=7, data=draft.pick(SIZES)), 8


def _tcp(draft: Draft, side: int) -> tuple[L4, int]:
    """Nothing but data: the connection is picked up in the middle."""
    return Tcp("PA", seq=(1000, 5000)[side] + draft.pick((0, 100, 2000)), ack=(5000, 1000)[side], data=draft.pick(SIZES)), 20

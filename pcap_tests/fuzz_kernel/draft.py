"""A trace in the making.

Theory of operation: an engine of its own tracks each packet as it is added. So the talks know what the connection remembers at that moment (window,
tags, state) and can aim right at its edges, below and beyond them. What the kernel will say is not asked here: if the engine is wrong, the aim is
poorer, and the comparison finds out.
Invariant: the same dice and settings give the same steps.
Not here: what is said (tcp, sctp, datagrams, icmp), who takes part (plan).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

import numpy as np

from ctcore.config import Config
from ctcore.model.conn import Key
from ctcore.tracker import Tracker
from datapath.craft import address
from datapath.defragment import Gatherer
from datapath.frame import frames_of
from datapath.scenario.build import Builder
from datapath.scenario.steps import DEFAULT_HOSTS, Packet, Step
from pcap_tests.fuzz_kernel.far_side import AS_WRITTEN, FarSide
from pcap_tests.fuzz_kernel.mangle import strange_ip

SECOND = 1_000_000_000
STRANGE_IP = 0.05
NEAR = 0.1  # share of packets, where addresses are translated, that do not care about it
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What a trace is judged by."""

    config: Config
    zone: int = 0


class Watcher:
    """The engine that watches drafts, one after the other."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tracker = Tracker(settings.config)
        self.gatherer = Gatherer(settings.config, zone=settings.zone)
        self.now = SECOND

    def begin(self) -> None:
        """Forget what there was."""
        self.tracker.flush()
        self.gatherer = Gatherer(self.settings.config, zone=self.settings.zone)

    def see(self, frame: bytes) -> np.void:
        """What the engine says of the packet."""
        self.now += SECOND // 1000
        memory, frames = frames_of([frame], ts=self.now)
        decision: np.void = self.tracker.advance(self.gatherer.parse(memory, frames))[0]
        return decision


def hosts_of(number: int) -> dict[str, str]:
    """The addresses of a trace's hosts, so that no two traces of a block meet. number: below 65536."""
    return {
        name: f"2001:db8:{number:x}::{i % 3 + 1}" if name.endswith("6") else f"10.{number >> 8}.{number & 255}.{i % 3 + 1}"
        for i, name in enumerate(DEFAULT_HOSTS)
    }


class Draft:
    """Steps so far. six: IPv6; hosts: their addresses; strange: share of packets whose IP header is not plain."""

    def __init__(self, dice: Random, watcher: Watcher, *, six: bool, hosts: Mapping[str, str], strange: float = STRANGE_IP) -> None:
        watcher.begin()
        self.strange = strange
        self.dice, self.watcher, self.six, self.hosts = dice, watcher, six, hosts
        self.builder = Builder(hosts=hosts)
        self.steps: list[Step] = []
        self.sent: list[Step] = []  # the same, where addresses are translated as they are really sent
        self.far = FarSide(watcher.tracker.find, hosts, watcher.settings.zone) if watcher.settings.config.nat else None
        self.wait = 0.0

    def pick(self, choices: Sequence[T]) -> T:
        return choices[int(self.dice.random() * len(choices))]

    def chance(self, share: float) -> bool:
        return self.dice.random() < share

    def pause(self, seconds: float) -> None:
        """Before the next packet. The trace will really take that long."""
        self.wait += seconds
        self.watcher.now += round(seconds * SECOND)

    def send(self, packet: Packet, *, plain: bool = False, remark: str = "") -> np.void:
        """Add a packet, now and then in a strange IP packet unless that is to be plain; what the engine says of it. remark: for the far side."""
        if not plain and self.chance(self.strange):
            packet = replace(packet, ip=strange_ip(self, packet.ip))
        step = sent = Step(packet, self.wait)
        self.wait = 0.0
        if self.far:
            step = replace(step, remark=AS_WRITTEN if self.chance(NEAR) else remark)
            sent = self.far.seen(step, self.steps, self.sent)
        decision = self.watcher.see(self.builder.frame(sent))
        self.steps.append(step)
        self.sent.append(sent)
        return decision

    def send_in_two(self, packet: Packet, at: int, remark: str = "") -> np.void:
        """The same in two fragments, cut at a multiple of 8 bytes; what the engine says of the second."""
        ip = replace(packet.ip, ident=self.dice.randrange(1, 0x10000))
        self.send(replace(packet, ip=replace(ip, frag=(0, at))), plain=True, remark=remark)
        return self.send(replace(packet, ip=replace(ip, frag=(at, None))), plain=True, remark=remark)

    def conn(self, packet: Packet) -> tuple[np.void, int] | None:
        """The connection (CONN_DTYPE) that packets between these hosts and ports belong to, and the direction of this one."""
        key = Key(
            self.host(packet.src),
            self.host(packet.dst),
            packet.sport or 0,
            packet.dport or 0,
            self.watcher.settings.zone,
            proto_of(packet),
            self.family,
        )
        found = self.watcher.tracker.find(key.raw())
        if found is None:
            return None
        return found[0], 0 if found[0]["flow"][0]["key"].tobytes() == key.raw() else 1

    @property
    def family(self) -> int:
        return 6 if self.six else 4

    def host(self, name: str) -> bytes:
        """A name's address as keys hold it."""
        return address(self.hosts.get(name, name)).ljust(16, b"\0")


def proto_of(packet: Packet) -> int:
    """Of those with ports."""
    return {"Tcp": 6, "Udp": 17, "UdpLite": 136, "Sctp": 132}[type(packet.l4).__name__]

"""Devices of a namespace whose cables end in this process: a frame in at a hook, and what came of it, byte by byte.

    this process -> tap -> ingress hook -> (netdev table: logged to this process, and dropped)
                 <- tap <- egress hook  <- packet socket of this process

Theory of operation: a tap hands a frame to the stack inside of write(), and its ring has what was sent by then. What passes at an ingress hook goes
on to nftables' hook behind it, where a rule logs all of it, tag and mark included, and the policy drops it: so the host never answers, and all that
comes out at a device comes of the rules. What mirred sends to an ingress hook while another one is at work waits in the CPU's own queue; a fence
through the same queue, as often as frames can wait, says that nothing is in flight.
Invariants: this thread stays on one CPU; nothing of a frame is in flight when `send` returns; it all ends with the stack it was made on.
Not here: rules (datapath.commands.tc), what should have come (conforming).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from datapath.oracle.bridge import Box
from datapath.oracle.namespace import Tap, cable
from datapath.pipeline.rules import Hook
from offload.netlink.attributes import TC
from offload.netlink.channel import NETFILTER, Channel, messages
from offload.netlink.filters import MESSAGE
from offload.netlink.pack import attribute, nested, text
from offload.netlink.read import attributes

WAITS = 4  # times a frame can wait in the CPU's queue: once for each device
MTU = 65521  # the largest of a tap: what fragments are put together to may leave in one piece
PATIENCE = 20.0  # seconds; a fence takes less than a millisecond
FENCE = bytes.fromhex("0200000000fe0200000000fd88b5").ljust(60, b"\0")
REQUEST, ACK, CREATE = 0x1, 0x4, 0x400  # NLM_F_*
FAMILY, NFNL = 5, struct.Struct("!BBH")  # NFPROTO_NETDEV; struct nfgenmsg
NFTABLES, ULOG = 10 << 8, 4 << 8  # subsystems of nfnetlink
GROUP = 7
# nft_log, nft_chain and nfnetlink_log: attributes by number
L2HDR, PAYLOAD, INDEV, MARK, VLAN, VLAN_PROTO, VLAN_TCI = 21, 9, 4, 2, 20, 1, 2
PACKET_IGNORE_OUTGOING, SOL_PACKET = 23, 263


class Out(NamedTuple):
    """A frame that came out: where, egress or passed on to the host at ingress; mark: of the latter, None where nobody can tell."""

    device: str
    egress: bool
    frame: bytes
    mark: int | None = None


class Tapped:
    """The devices of these names. This thread is in their namespace."""

    def __init__(self, stack: ExitStack, names: Sequence[str], sysctls: Mapping[str, int]) -> None:
        """sysctls: below net/netfilter, of this namespace's conntrack."""
        self.box = Box()
        stack.callback(self.box.close)
        self.box.prepare()
        before = sorted(os.sched_getaffinity(0))
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, before[:1])
        self.taps: dict[str, Tap] = {}
        for number, name in enumerate(names):
            self.taps[name] = tap = Tap(self.box, name, f"02:00:00:00:01:{number:02x}")
            stack.callback(tap.close)
            os.set_blocking(tap.fd, False)
            self.box.mtu(name, MTU)
        cable(self.box, self.box, ("fence0", "fence1"), ("02:00:00:00:02:00", "02:00:00:00:02:01"))
        for name, value in sysctls.items():
            self.box.sysctl(f"netfilter/{name}", value)
        stack.enter_context(self.box.entered())
        self.names = {socket.if_nametoindex(name): name for name in names}
        self.outgoing = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self.fence = stack.enter_context(self._fence())
        self.log = stack.enter_context(Channel(NETFILTER, TC, NFNL.size))
        _ask(self.log, [_config(b"\1", 1), _config(struct.pack("!IBx", 0x10000, 2), 2), _config(struct.pack("!I", 1), 5)])
        _ask(self.log, list(_table(names)))

    @staticmethod
    def _fence() -> socket.socket:
        fence = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        fence.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        fence.bind(("fence1", 0x88B5))
        fence.settimeout(PATIENCE)
        return fence

    def send(self, frame: bytes, hook: Hook) -> list[Out]:
        """A frame to a hook, and what came out of it. At an egress hook it is this host's own."""
        if hook.direction == "ingress":
            self.taps[hook.device].send(frame)
        else:
            try:
                self.outgoing.sendto(frame, (hook.device, 0))
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # what a rule drops, its sender is told of
                    raise
        for _ in range(WAITS):
            self.outgoing.sendto(FENCE, ("fence0", 0))
            assert self.fence.recv(256) == FENCE
        return [*self._sent(), *self._passed()]

    def _sent(self) -> Iterator[Out]:
        for name, tap in self.taps.items():
            while True:
                try:
                    yield Out(name, True, os.read(tap.fd, 1 << 17))
                except BlockingIOError:
                    break

    def _passed(self) -> Iterator[Out]:
        while True:
            try:
                data = self.log.socket.recv(1 << 18)
            except BlockingIOError:
                return
            for kind, _, _, payload in messages(data):
                if kind == ULOG:
                    yield self._logged(payload[NFNL.size :])

    def _logged(self, data: bytes) -> Out:
        told = dict(attributes(data, "log"))
        head, tag = told[L2HDR], b""
        if VLAN in told:
            tagged = dict(attributes(told[VLAN], "tag"))
            tag = tagged[VLAN_PROTO] + tagged[VLAN_TCI]
        (device,) = struct.unpack("!I", told[INDEV])
        return Out(self.names[device], False, head[:12] + tag + head[12:] + told.get(PAYLOAD, b""), int.from_bytes(told.get(MARK, b""), "big"))


# --- nftables and its log --------------------------------------------------------------------------------------------------------------------


def _message(kind: int, group: int, *parts: bytes, flags: int = ACK, family: int = FAMILY) -> bytes:
    data = NFNL.pack(family, 0, group) + b"".join(parts)
    return MESSAGE.pack(MESSAGE.size + len(data), kind, REQUEST | flags, 0, 0) + data


def _config(value: bytes, number: int) -> bytes:
    """One thing said to the log: bind to the group, copy whole packets, one message for each."""
    return _message(ULOG | 1, GROUP, attribute(number, value), family=0)


def _table(names: Sequence[str]) -> Iterator[bytes]:
    """A chain for each device behind its ingress hook: `log group 7`, policy drop."""
    yield _message(0x10, NFTABLES >> 8, flags=0, family=0)
    yield _message(NFTABLES | 0, 0, text(1, "behind"), flags=ACK | CREATE)
    log = nested(1, text(1, "log"), nested(2, attribute(1, struct.pack("!H", GROUP))))
    for name in names:
        hook = nested(4, attribute(1, struct.pack("!I", 0)), attribute(2, struct.pack("!i", 0)), text(3, name))
        yield _message(NFTABLES | 3, 0, text(1, "behind"), text(3, name), hook, attribute(5, bytes(4)), text(7, "filter"), flags=ACK | CREATE)
        yield _message(NFTABLES | 6, 0, text(1, "behind"), text(2, name), nested(4, log), flags=ACK | CREATE | 0x800)
    yield _message(0x11, NFTABLES >> 8, flags=0, family=0)


def _ask(channel: Channel, requests: Sequence[bytes]) -> None:
    """As one message: a batch is a whole. What begins and ends it has no answer."""
    answers = zip(requests, channel.ask(requests), strict=True)
    assert [answer.told() for request, answer in answers if request[6] & ACK and answer.error] == []

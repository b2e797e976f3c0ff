"""A private network of real Linux stacks: client -- router -- server, and wires between them that lose, delay or tag frames.

Theory of operation: a network is a chain of namespaces (datapath.oracle.namespace), each joined to the next by a veth pair. A wire is a namespace
without addresses in which a thread carries frames from one packet socket to another. It stands in for netem.

Invariants: nothing is ever made in the namespace the process started in; every offload of every interface is off, so a frame seen on a link has
the size and the checksums it would have on a cable. Not here: traffic (scenes.py) and its recording (record.py).
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TypeVar

from pyroute2.netlink.exceptions import NetlinkError

from datapath.oracle.namespace import Namespace, cable

V4, V6 = socket.AF_INET, socket.AF_INET6
LEFT, RIGHT = 0, 1
INTERFACE = ("ctm-left", "ctm-right")
# RFC 5737 and RFC 3849: addresses that belong to nobody. The third prefix is routed to the router and leads nowhere.
CLIENT = {V4: "192.0.2.10", V6: "2001:db8:1::10"}
ROUTER = ({V4: "192.0.2.1", V6: "2001:db8:1::1"}, {V4: "198.51.100.1", V6: "2001:db8:2::1"})
SERVER = {V4: "198.51.100.10", V6: "2001:db8:2::10"}
PREFIX_LENGTH = {V4: 24, V6: 64}
HOST_LENGTH = {V4: 32, V6: 128}
# Seconds after which a socket gives up: a scene that goes wrong ends with an error, not with a hang.
PATIENCE = 10.0

SOL_PACKET, PACKET_STATISTICS, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING = 263, 6, 8, 23
ETH_P_ALL = 3
SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33
VLAN_VALID, VLAN_TPID_VALID = 1 << 4, 1 << 6

Member = TypeVar("Member", bound="Namespace")


class Host(Namespace):
    """A namespace with a stack that talks: the two ends and the router."""

    def prepare(self) -> None:
        # A static network needs neither duplicate address detection, which delays it by seconds, nor router solicitations.
        self.sysctl("ipv6/conf/default/accept_dad", 0)
        self.sysctl("ipv6/conf/default/router_solicitations", 0)
        # Every error is wanted, not one a second.
        self.sysctl("ipv4/icmp_ratelimit", 0)
        self.sysctl("ipv6/icmp/ratelimit", 0)
        self.sysctl("ipv4/ping_group_range", "0 2147483647")

    def address(self, side: int, addresses: dict[int, str]) -> None:
        with self.netlink() as netlink:
            index = netlink.link_lookup(ifname=INTERFACE[side])[0]
            for family, address in addresses.items():
                netlink.addr("add", index=index, address=address, prefixlen=PREFIX_LENGTH[family], family=family)

    def default_route(self, gateways: dict[int, str]) -> None:
        with self.netlink() as netlink:
            for family, gateway in gateways.items():
                netlink.route("add", family=family, dst="default", gateway=gateway)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with self.entered():
            sock = socket.socket(family, kind, protocol)
        sock.settimeout(PATIENCE)
        return sock


class Tap:
    """A packet socket on one interface: reads frames as they were on the cable, and sends frames."""

    def __init__(self, namespace: Namespace, side: int, outgoing: bool) -> None:
        with namespace.entered():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self.socket.bind((INTERFACE[side], ETH_P_ALL))
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 25)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, int(not outgoing))

    def receive(self) -> Iterator[tuple[int, bytes]]:
        """The frames waiting: (ns since the epoch, frame)."""
        with suppress(BlockingIOError):
            while True:
                frame, ancillary, _, _ = self.socket.recvmsg(1 << 16, 256)
                stamp, tag = 0, b""
                for level, kind, data in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                        seconds, ns = struct.unpack("ll", data)
                        stamp = seconds * 10**9 + ns
                    elif (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                        # The kernel takes the outermost VLAN tag off before a packet socket sees the frame, and puts it here.
                        status, tci, tpid = struct.unpack_from("I12xHH", data)
                        if status & VLAN_VALID:
                            tag = struct.pack("!HH", tpid if status & VLAN_TPID_VALID else 0x8100, tci)
                yield stamp, frame[:12] + tag + frame[12:]

    def lost(self) -> int:
        """Frames that did not fit into the receive buffer since the last call."""
        return struct.unpack("II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]

    def close(self) -> None:
        self.socket.close()


# What a wire makes of a frame: (the side it comes from, its number on that side, the frame) -> what leaves on the other side, after how many seconds.
Behaviour = Callable[[int, int, bytes], Sequence[tuple[float, bytes]]]


def lose(nth: int) -> Behaviour:
    """Every nth frame is lost if it is large: data is to be lost, not the handshake."""
    return lambda side, number, frame: [] if len(frame) > 1000 and number % nth == 0 else [(0.0, frame)]


def delay(seconds: float) -> Behaviour:
    return lambda side, number, frame: [(seconds, frame)]


def reorder(nth: int, seconds: float) -> Behaviour:
    """Every nth frame is overtaken by those that come within the given time; every 2*nth one is doubled, too."""
    return lambda side, number, frame: [(seconds * (number % nth == 0), frame)] + [(seconds, frame)] * (number % (2 * nth) == 0)


def tagging(access: int, *tags: tuple[int, int]) -> Behaviour:
    """A switch between an access link on one side and a trunk on the other; tags: (TPID, VLAN id), the outer one first."""
    header = b"".join(struct.pack("!HH", *tag) for tag in tags)

    def switch(side: int, number: int, frame: bytes) -> list[tuple[float, bytes]]:
        return [(0.0, frame[:12] + header + frame[12:] if side == access else frame[:12] + frame[12 + len(header) :])]

    return switch


class Wire(Namespace):
    """A cable with a behaviour: frames from either side are carried to the other by a thread."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__()
        self.behaviour = behaviour

    def prepare(self) -> None:
        # It is a cable: no stack of its own speaks on it.
        self.sysctl("ipv6/conf/default/disable_ipv6", 1)

    def start(self, stack: ExitStack) -> None:
        """Needs both links. What is started here ends with the stack, in the reverse order, and then raises what went wrong on the way."""
        self.taps = []
        for side in (LEFT, RIGHT):
            self.mtu(INTERFACE[side], 9000)
            self.taps.append(Tap(self, side, outgoing=False))
            stack.callback(self.taps[side].close)
        self.stopping = os.eventfd(0)
        stack.callback(os.close, self.stopping)
        pool = ThreadPoolExecutor(1)
        carrying = pool.submit(self.carry)
        stack.callback(carrying.result)
        stack.callback(pool.shutdown)
        stack.callback(os.eventfd_write, self.stopping, 1)

    def carry(self) -> None:
        counts = [0, 0]
        waiting: list[tuple[float, int, int, bytes]] = []  # due, serial number, side to leave on, frame
        with selectors.DefaultSelector() as selector:
            selector.register(self.stopping, selectors.EVENT_READ)
            for tap in self.taps:
                selector.register(tap.socket, selectors.EVENT_READ)
            while True:
                ready = selector.select(max(0.0, waiting[0][0] - time.monotonic()) if waiting else None)
                if any(key.fileobj == self.stopping for key, _ in ready):
                    return
                for side, tap in enumerate(self.taps):
                    for _, frame in tap.receive():
                        counts[side] += 1
                        for seconds, out in self.behaviour(side, counts[side], frame):
                            heapq.heappush(waiting, (time.monotonic() + seconds, sum(counts), 1 - side, out))
                while waiting and waiting[0][0] <= time.monotonic():
                    _, _, side, frame = heapq.heappop(waiting)
                    self.taps[side].socket.send(frame)


class Network:
    """client -- router -- server, with wires between client and router (access) or between router and server (core). A context manager.

    tap: namespace and side where record.py listens: the router's interface to the client, or the trunk if the access wires make one.
    """

    def __init__(self, access: Sequence[Behaviour] = (), core: Sequence[Behaviour] = (), trunk: bool = False) -> None:
        with ExitStack() as stack:
            self.client, self.router, self.server = (joining(stack, Host()) for _ in range(3))
            access_wires, core_wires = ([joining(stack, Wire(behaviour)) for behaviour in wires] for wires in (access, core))
            chain = [self.client, *access_wires, self.router, *core_wires, self.server]
            for position, (left, right) in enumerate(itertools.pairwise(chain)):
                join(left, right, position)
            for wire in (*access_wires, *core_wires):
                # On the same stack, so that every wire has stopped before the first namespace goes and takes its neighbours' links along.
                wire.start(stack)
            self._number()
            self.tap = (access_wires[-1], LEFT) if trunk else (self.router, LEFT)
            self.open = stack.pop_all()

    def _number(self) -> None:
        self.client.address(RIGHT, CLIENT)
        self.server.address(LEFT, SERVER)
        for side in (LEFT, RIGHT):
            self.router.address(side, ROUTER[side])
        self.client.default_route(ROUTER[LEFT])
        self.server.default_route(ROUTER[RIGHT])
        self.router.sysctl("ipv4/ip_forward", 1)
        self.router.sysctl("ipv6/conf/all/forwarding", 1)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *exception: object) -> None:
        self.open.close()


def joining(stack: ExitStack, namespace: Member) -> Member:
    """The namespace, prepared; closed with the stack, whatever comes."""
    stack.callback(namespace.close)
    namespace.prepare()
    return namespace


def join(left: Namespace, right: Namespace, position: int) -> None:
    """A cable from left's right to right's left side, with addresses that tell where in the chain it is."""
    addresses = f"02:00:00:00:{position:02x}:01", f"02:00:00:00:{position + 1:02x}:00"
    cable(left, right, (INTERFACE[RIGHT], INTERFACE[LEFT]), addresses)


def unavailable() -> str | None:
    """Why no network can be made here, in a few words, or None."""
    try:
        with Network() as network:
            Tap(*network.tap, outgoing=True).close()
    except PermissionError as error:
        return f"needs root: {error.strerror}"
    except (OSError, NetlinkError) as error:
        return f"needs network namespaces and veth: {error}"
    return None

"""A bridge in a namespace of its own, whose packets go through the running kernel's conntrack.

    this process         box: bridge with br_netfilter, conntrack             outside
    Tap ---------------- ctm-left == ctm-bridge == ctm-right ----------------- ctm-out

Why a bridge: it routes nothing, so no packet is lost to its TTL, its addresses or a missing route, and whatever reaches IP reaches conntrack and is
confirmed. The far end is in a namespace without addresses, whose stack looks at nothing: frames are addressed to nobody.
Why a tap at the near end: Linux keeps a datagram's fragments apart only if each has room in front for the headers of the first. A NIC's driver and a
tap leave it, a veth pair does not: from there, fragments that came with smaller headers than the first are put together and cut anew. That has been
tried with a router, too: it sends what came through a tap within the old borders, and what came through a veth pair otherwise.
Invariant: after pass() returned, nothing of its frame is in flight. That is proved, not waited for: a fence, a frame of a private ethertype, follows
it through the same queues of the same CPU, and has arrived. What the bridge device itself has to say (about its IPv6 address) does not count.
Not here: what conntrack said (probes, witness), what it is told to do (ruleset).
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack

from datapath.errors import KernelError
from datapath.oracle.namespace import Namespace, Tap, cable

LEFT, BRIDGE, RIGHT, OUT = "ctm-left", "ctm-bridge", "ctm-right", "ctm-out"
LARGEST_MTU = 65535
NOBODY, SENDER = bytes.fromhex("0200000000fe"), bytes.fromhex("0200000000fd")  # the latter of fences
OF_ZONE = bytes.fromhex("06000000")  # and the zone, in the machine's byte order: of packets
ETH_P_ALL = 3
FENCE = 0x88B5  # for local experiments (IEEE 802a)
PATIENCE = 10.0  # seconds; a fence takes microseconds
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23


class Box(Namespace):
    """The namespace with the bridge. It speaks no IP of its own, unless addresses are translated (routes)."""

    def prepare(self) -> None:
        self.sysctl("ipv6/conf/all/disable_ipv6", 1)
        self.sysctl("ipv6/conf/default/disable_ipv6", 1)


class Bridge:
    """The bridge between two ends; a frame goes in at one and comes out at the other, or does not."""

    def __init__(self, stack: ExitStack) -> None:
        """What is made here ends with the stack."""
        self.box, self.outside = self._namespace(stack), self._namespace(stack)
        self.into = Tap(self.box, LEFT, "02:00:00:00:00:02")
        stack.callback(self.into.close)
        cable(self.outside, self.box, (OUT, RIGHT), ("02:00:00:00:00:03", "02:00:00:00:00:04"))
        self._bridge()
        self.out = self._end(stack)
        self.fences = 0
        self._pin(stack)

    @staticmethod
    def _namespace(stack: ExitStack) -> Box:
        box = Box()
        stack.callback(box.close)
        box.prepare()
        return box

    def _bridge(self) -> None:
        for name in ("iptables", "ip6tables"):
            try:
                self.box.sysctl(f"bridge/bridge-nf-call-{name}", 1)
            except FileNotFoundError:
                raise KernelError("this kernel has no br_netfilter: expected CONFIG_BRIDGE_NETFILTER, or modprobe br_netfilter") from None
        with self.box.netlink() as netlink:
            # Multicast snooping would keep group memberships for itself instead of passing them on.
            netlink.link("add", kind="bridge", ifname=BRIDGE, br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0)
            bridge = netlink.link_lookup(ifname=BRIDGE)[0]
            for name in (LEFT, RIGHT):
                netlink.link("set", index=netlink.link_lookup(ifname=name)[0], master=bridge)
            netlink.link("set", index=bridge, mtu=LARGEST_MTU, state="up")
        # What comes in is not held to an MTU.
        self.box.mtu(RIGHT, LARGEST_MTU)
        self.outside.mtu(OUT, LARGEST_MTU)

    def _end(self, stack: ExitStack) -> socket.socket:
        with self.outside.entered():
            # No protocol yet: between socket() and bind() it would listen on all interfaces.
            end = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
            end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            end.bind((OUT, ETH_P_ALL))
        end.settimeout(PATIENCE)
        return end

    def _pin(self, stack: ExitStack) -> None:
        """One CPU, for the queue in which a fence follows its frame is a CPU's own; not the same one for all processes."""
        before = sorted(os.sched_getaffinity(0))
        stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {before[os.getpid() % len(before)]})

    def pass_(self, ethertype: int, packet: bytes, zone: int = 0) -> list[bytes]:
        """Send an IP packet and wait until nothing of it is in flight; the frames that came out of it. zone: its source address says so."""
        self.fences += 1
        header = NOBODY + OF_ZONE + struct.pack("=H", zone)
        fence = NOBODY + SENDER + struct.pack("!HQ", FENCE, self.fences).ljust(46, b"\0")
        self.into.send(header + struct.pack("!H", ethertype) + packet)
        self.into.send(fence)
        came = []
        try:
            while (frame := self.out.recv(1 << 17)) != fence:
                if frame.startswith(header):
                    came.append(frame)
        except TimeoutError:
            raise KernelError(f"a fence has not come through the bridge in {PATIENCE:.0f} s") from None
        return came

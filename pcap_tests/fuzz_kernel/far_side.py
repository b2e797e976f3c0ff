"""What address translation makes of packets that are yet to come: answers go to where the far side was asked from, errors quote what it saw.

Theory of operation: talks speak as if nothing were translated. Before a packet is sent, the connection it answers is looked up by the tuple in which
it was asked for; if that is translated, the packet takes the ends of its reply tuple. An error about a packet quotes it with the ends with which it
left, and goes to whom it seemed to come from. All of this waits until the packet before has been judged, since Linux chooses ports at random.
A connection that another one announced has no tuple to look up: its packets' remark names the one that did, and they go where that one's answers go.
Invariant: a step whose remark is AS_WRITTEN stays as it is, which is what a packet from this side of the translation is, or one that goes astray.
Not here: what is said (tcp, sctp, datagrams, icmp), rules (plan_nat).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address

import numpy as np

from ctcore.model.conn import Key
from ctcore.types import Dir, Proto
from datapath import craft
from datapath.scenario.steps import L4, WITH_PORTS, Ends, Icmp, Other, Packet, Sctp, Step, Tcp, Udp, UdpLite

AS_WRITTEN = "as written"
ANNOUNCED = "announced by"
PORTS: dict[type, int] = {Tcp: Proto.PROTO_TCP, Udp: Proto.PROTO_UDP, UdpLite: Proto.PROTO_UDPLITE, Sctp: Proto.PROTO_SCTP}
Find = Callable[[bytes], np.ndarray | None]  # the connection one of whose tuples this is (Tracker.find)


def announced(client: str, server: str, sport: int, dport: int) -> str:
    """The remark of a packet from the server of a connection, which that one has announced."""
    return f"{ANNOUNCED} {client} {server} {sport} {dport}"


class FarSide:
    """find: among the connections as they are now; hosts: addresses by name."""

    def __init__(self, find: Find, hosts: Mapping[str, str], zone: int) -> None:
        self.find, self.hosts, self.zone = find, hosts, zone

    def seen(self, step: Step, before: Sequence[Step], sent: Sequence[Step]) -> Step:
        """The step as it is really sent. before: the steps that come before it, as they were written; sent: these as they were sent."""
        packet = step.packet
        if not isinstance(packet, Packet):
            return step
        if isinstance(packet.l4, Icmp) and isinstance(packet.l4.about, int):
            return replace(
                step, packet=self._error(packet, packet.l4, before[packet.l4.about], sent[packet.l4.about], inside=step.remark == AS_WRITTEN)
            )
        if step.remark.startswith(ANNOUNCED):
            return replace(step, packet=self._announced(packet, step.remark))
        return step if step.remark == AS_WRITTEN else replace(step, packet=self._answer(packet))

    def _announced(self, packet: Packet, remark: str) -> Packet:
        """To whom the server believes to speak; the port is the announced one, or that of the client's own if that was announced."""
        client, server, *ports = remark.removeprefix(ANNOUNCED).split()
        sport, dport = map(int, ports)
        found = self._conn(self.key(replace(packet, src=client, dst=server, sport=sport, dport=dport)))
        if found is None:
            return packet
        reply = Key.of(found[0]["flow"][Dir.REPLY]["key"].tobytes())
        ends = _ends(reply, packet.l4)
        return replace(packet, src=ends.src, dst=ends.dst, dport=ends.dport if packet.dport == sport else packet.dport)

    def _error(self, packet: Packet, icmp: Icmp, written: Step, sent: Step, *, inside: bool) -> Packet:
        """An error about a packet. inside: it was met before it was translated."""
        quoted = sent.packet
        assert isinstance(quoted, Packet) and isinstance(written.packet, Packet)
        ends = Ends(quoted.src, quoted.dst, quoted.sport, quoted.dport)
        if not inside:
            left = self._left(quoted)
            if left:
                ends = left
                icmp = replace(icmp, ends=ends)
        return replace(packet, l4=icmp, dst=ends.src if packet.dst == written.packet.src else packet.dst)

    def _left(self, packet: Packet) -> Ends | None:
        """The ends with which a packet of a translated connection leaves."""
        found = self._conn(self.key(packet))
        if found is None:
            return None
        conn, d = found
        leaving = Key.of(conn["flow"][1 - d]["key"].tobytes()).inverted()
        return _ends(leaving, packet.l4) if leaving and leaving != Key.of(conn["flow"][d]["key"].tobytes()) else None

    def _answer(self, packet: Packet) -> Packet:
        """A packet with the ends of the reply tuple of the connection it answers, if that is translated."""
        key = self.key(packet)
        asked = key.inverted() if key else None
        found = self._conn(asked)
        if found is None or found[1] != Dir.ORIG:
            return packet
        reply = Key.of(found[0]["flow"][Dir.REPLY]["key"].tobytes())
        if reply == key:
            return packet
        ends = _ends(reply, packet.l4)
        l4 = packet.l4
        if isinstance(l4, Icmp):
            l4 = replace(l4, id=reply.sport)
        return replace(
            packet, l4=l4, src=ends.src, dst=ends.dst, **({"sport": ends.sport, "dport": ends.dport} if isinstance(l4, WITH_PORTS) else {})
        )

    def _conn(self, key: Key | None) -> tuple[np.void, int] | None:
        """The connection that has this tuple, and which of its two it is."""
        conn = self.find(key.raw()) if key else None
        if conn is None or key is None:
            return None
        return conn[0], Dir.ORIG if conn[0]["flow"][Dir.ORIG]["key"].tobytes() == key.raw() else Dir.REPLY

    def key(self, packet: Packet) -> Key | None:
        """A packet's tuple, as far as its words tell; None of ICMP in the wrong family."""
        src, dst = (self.hosts.get(name, name) for name in (packet.src, packet.dst))
        family = 6 if ":" in src else 4
        numbers = _numbers(packet.l4, packet, family)
        if numbers is None:
            return None
        proto, sport, dport = numbers
        return Key(craft.address(src).ljust(16, b"\0"), craft.address(dst).ljust(16, b"\0"), sport, dport, self.zone, proto, family)


def _numbers(l4: L4, packet: Packet, family: int) -> tuple[int, int, int] | None:
    """Protocol, and what a key holds for ports."""
    if isinstance(l4, WITH_PORTS):
        return PORTS[type(l4)], packet.sport or 0, packet.dport or 0
    if isinstance(l4, Icmp):
        proto = Proto.PROTO_ICMPV6 if l4.v6 else Proto.PROTO_ICMP
        return (proto, l4.id, l4.type << 8 | l4.code) if l4.v6 == (family == 6) else None
    if isinstance(l4, Other):
        return l4.proto, 0, 0
    return Proto.PROTO_GRE, 0, l4.call if l4.version == 1 else 0


def _ends(key: Key, l4: L4) -> Ends:
    size = 4 if key.family == 4 else 16
    ports: tuple[int | None, int | None] = (None, None)
    if isinstance(l4, WITH_PORTS):
        ports = key.sport, key.dport
    elif isinstance(l4, Icmp):
        ports = key.sport, key.sport
    return Ends(str(ip_address(key.src[:size])), str(ip_address(key.dst[:size])), *ports)

"""The protocols without a state machine, in the model: UDP, UDP-Lite, ICMP, GRE, and everything else; and what ICMP errors are about.

Invariant: nothing here is ever ignored; a packet refreshes its connection or is invalid.
Not here: lengths and checksums (wire); seen-reply, lookup (tracker).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from ctcore.model.conn import L4, Answer, Key, Packet, Visit, invalid, renewed
from ctcore.spec import ICMP_REQUESTS
from ctcore.types import Proto, Reason, Status

STREAM_AFTER = 2  # seconds: what still talks then is no single question and answer
ICMP_FAMILY: dict[int, int] = {Proto.PROTO_ICMP: 4, Proto.PROTO_ICMPV6: 6}
ICMP_ERRORS = {3, 4, 5, 11, 12}  # RFC 792; in ICMPv6 every type below 128 (RFC 4443 2.1)
NEIGHBOUR_MESSAGES = {*range(130, 137), 143, 151, 152}  # RFC 4861, RFC 3810, RFC 4286
REDIRECT = 137  # RFC 4861 4.5
REDIRECT_HEADER, OPT_HEADER, OPT_REDIRECTED = 40, 8, 4
LONGEST_HEADER = 60  # of IPv4
LINK_LOCAL_HOPS = 255
PPP = 0x880B
PORTS = {Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_UDPLITE, Proto.PROTO_SCTP}
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, NO_NEXT, DESTINATION = 0, 43, 44, 51, 59, 60
EXTENSIONS = {HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, NO_NEXT, DESTINATION}
FLAW_SUM = 1  # Packet.flaw (types.pxd): a bad ICMP checksum that nobody asked to verify


@dataclass
class Udp(L4):
    stream_at: int  # the tick after which a replied flow counts as a stream

    def store(self, record: np.void) -> None:
        record["stream_ts"] = self.stream_at

    @classmethod
    def of(cls, conn: np.void) -> Udp:
        """The memory in a record of CONN_DTYPE."""
        return cls(int(conn["stream_ts"]))


def track_udp(visit: Visit) -> Answer:
    """A reply makes it two-way; two seconds later it is a stream, which early drop spares."""
    _, conn, _, tick, config = visit
    if not conn.has(Status.SEEN_REPLY) or tick <= conn.l4.stream_at:
        return renewed(config, "udp_timeout")
    conn.assure()
    return renewed(config, "udp_timeout_stream")


def track_udplite(visit: Visit) -> Answer:
    return _two_way(visit, "udp_timeout")


def track_gre(visit: Visit) -> Answer:
    return _two_way(visit, "gre_timeout")


def track_generic(visit: Visit) -> Answer:
    return renewed(visit.config, "generic_timeout")


def track_icmp(visit: Visit) -> Answer:
    """Requests and replies, which reach this point only if they have an inverse."""
    packet, conn, _, _, config = visit
    proto = packet.key.proto
    if ICMP_FAMILY[proto] != packet.key.family:
        return invalid(Reason.R_ICMP_FAMILY)
    if not conn.confirmed and packet.key.dport >> 8 not in ICMP_REQUESTS[proto]:
        return invalid(Reason.R_ICMP_NO_REQUEST)
    return renewed(config, "icmp_timeout" if proto == Proto.PROTO_ICMP else "icmpv6_timeout")


def _two_way(visit: Visit, name: str) -> Answer:
    """The packet after the first reply proves that both sides talk."""
    if not visit.conn.has(Status.SEEN_REPLY):
        return renewed(visit.config, name)
    visit.conn.assure()
    return renewed(visit.config, name + "_stream")


# --- ICMP before the lookup ------------------------------------------------------------------------------------------------------------


def is_icmp_of_family(key: Key) -> bool:
    return ICMP_FAMILY.get(key.proto) == key.family


def is_icmp_error(packet: Packet) -> bool:
    kind = packet.key.dport >> 8
    return kind in ICMP_ERRORS if packet.key.family == 4 else kind < 128 or kind == REDIRECT


def is_untracked(packet: Packet) -> bool:
    return packet.key.family == 6 and packet.key.dport >> 8 in NEIGHBOUR_MESSAGES


def inner_key(packet: Packet) -> tuple[Key | None, int]:
    """The tuple of the packet that an ICMP error quotes, or None and the reason."""
    if packet.key.family == 6 and packet.key.dport >> 8 == REDIRECT:
        option = packet.l4[REDIRECT_HEADER : REDIRECT_HEADER + OPT_HEADER]
        link_local = packet.key.src[0] == 0xFE and packet.key.src[1] & 0xC0 == 0x80
        if packet.hop_limit != LINK_LOCAL_HOPS or packet.key.dport & 0xFF or not link_local:
            return None, Reason.R_ICMP6_REDIRECT
        if len(option) < OPT_HEADER or option[0] != OPT_REDIRECTED or option[1] == 0:
            return None, Reason.R_ICMP6_REDIRECT
    key = _inner(packet)
    return (key, Reason.R_OK) if isinstance(key, Key) else (None, Reason.R_ICMP_INNER)


def quote_at(packet: Packet) -> int:
    """Where in an ICMP error the packet begins that it quotes."""
    return REDIRECT_HEADER + OPT_HEADER if packet.key.family == 6 and packet.key.dport >> 8 == REDIRECT else 8


def inner_fault(packet: Packet) -> str:
    """What is wrong with the packet that an ICMP error quotes, for people; nothing if it has a tuple."""
    key = _inner(packet)
    return "" if isinstance(key, Key) else key


def _inner(packet: Packet) -> Key | str:
    """The quoted packet's tuple, or why it has none."""
    inner = _quote(packet)
    return _inner4(inner, packet.key.zone) if packet.key.family == 4 else _inner6(inner, packet.key.zone)


def _quote(packet: Packet) -> bytes:
    """What an ICMP error quotes, from its IP header on."""
    at = quote_at(packet)
    # Of a snapped error all that is read was captured (wire sees to that); lengths are those on the wire.
    return packet.l4.ljust(min(packet.l4_len, at + LONGEST_HEADER), b"\0")[at:]


def quoted_header(packet: Packet) -> tuple[bytes, int]:
    """The transport header that an ICMP error quotes, as far as it was captured, and how many bytes of it and its payload were on the wire.

    For an error whose quoted packet has a tuple.
    """
    inner = _quote(packet)
    header = (inner[0] & 15) * 4
    if packet.key.family == 6:
        chain = _skip_extensions(inner)
        header = 0 if isinstance(chain, str) else chain[1]
    return inner[header:], packet.l4_len - quote_at(packet) - header


def error_as_left(packet: Packet, quoted: Key) -> bytes:
    """An ICMP error whose quoted packet has the ends of a tuple; its checksums are as they came. For one whose quoted packet has a tuple."""
    at, inner = quote_at(packet), bytearray(_quote(packet))
    size, ends_at = (4, 12) if quoted.family == 4 else (16, 8)
    inner[ends_at : ends_at + 2 * size] = quoted.src[:size] + quoted.dst[:size]
    ports_at = len(inner) - len(quoted_header(packet)[0])
    ports = struct.pack("!2H", quoted.sport, quoted.dport)
    inner[ports_at : ports_at + 4] = ports[: max(len(inner) - ports_at, 0)]
    return packet.l4[:at] + bytes(inner)


def _inner4(ip: bytes, zone: int) -> Key | str:
    if len(ip) < 20:
        return f"too short: {len(ip)} bytes of an IPv4 header of 20"
    if fragment := int.from_bytes(ip[6:8], "big") & 0x1FFF:
        return f"a fragment, from byte {fragment * 8} of its datagram on: its ports are in the first one"
    header = (ip[0] & 15) * 4
    if header > len(ip):
        return f"too short: {len(ip)} bytes of an IPv4 header of {header}"
    return _ports(Key(ip[12:16].ljust(16, b"\0"), ip[16:20].ljust(16, b"\0"), 0, 0, zone, ip[9], 4), ip[header:])


def _inner6(ip: bytes, zone: int) -> Key | str:
    if len(ip) < 40:
        return f"too short: {len(ip)} bytes of an IPv6 header of 40"
    chain = _skip_extensions(ip)
    if isinstance(chain, str):
        return chain
    proto, at = chain
    return _ports(Key(ip[8:24], ip[24:40], 0, 0, zone, proto, 6), ip[at:])


def _skip_extensions(ip: bytes) -> tuple[int, int] | str:
    """Protocol and offset of what follows the headers of an IPv6 packet; or why nothing does."""
    proto, at = ip[6], 40
    while proto in EXTENSIONS:
        if proto == NO_NEXT:
            return 'unparsable: its extension headers end in "no next header"'
        if len(ip) < at + (4 if proto == FRAGMENT else 2):
            return f"too short: it ends within its extension headers, at byte {len(ip)}"
        if proto == FRAGMENT and (fragment := int.from_bytes(ip[at + 2 : at + 4], "big") & ~7):
            return f"a fragment, from byte {fragment} of its datagram on: its ports are in the first one"
        units = {FRAGMENT: 8, AUTHENTICATION: (ip[at + 1] + 2) * 4}
        at, proto = at + units.get(proto, (ip[at + 1] + 1) * 8), ip[at]
    return proto, at


def _ports(key: Key, l4: bytes) -> Key | str:
    """The key with what its protocol has for ports; or why that cannot be had."""
    if key.proto in PORTS:
        if len(l4) < 4:
            return f"too short: {len(l4)} of the 4 bytes of its ports"
        return key._replace(sport=int.from_bytes(l4[:2], "big"), dport=int.from_bytes(l4[2:4], "big"))
    if key.proto in ICMP_FAMILY:
        if len(l4) < 8:
            return f"too short: {len(l4)} of the 8 bytes of its ICMP header"
        return key._replace(sport=int.from_bytes(l4[4:6], "big"), dport=l4[0] << 8 | l4[1])
    if key.proto == Proto.PROTO_GRE and len(l4) >= 8 and l4[1] & 7 == 1:
        if int.from_bytes(l4[2:4], "big") != PPP:
            return "unparsable: GRE of version 1 that does not carry PPP"
        return key._replace(dport=int.from_bytes(l4[6:8], "big"))
    return key

"""A frame in words: link layer, IP header, transport header, each as one line for people.

For explain only: the datapath's own view of a frame is made by wire, which checks; this one describes, and says "cut short" where bytes are missing.
Invariant: any bytes give a line, never an exception. Not here: what conntrack makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from itertools import groupby
from struct import error as Short
from struct import unpack_from

from ctcore.model.tcp_window import options_of
from ctcore.types import Proto
from datapath import fields
from datapath.frame import LINK_ETHERNET, LINK_LOOP, LINK_NULL, LINK_SLL, LINK_SLL2
from datapath.links import LINK_NAMES

VLAN_TYPES = {0x8100: "VLAN", 0x88A8: "S-VLAN", 0x9100: "VLAN"}
ETHER_TYPES = {
    0x0800: "IPv4", 0x86DD: "IPv6", 0x0806: "ARP", 0x8847: "MPLS", 0x8848: "MPLS multicast", 0x8863: "PPPoE discovery", 0x8864: "PPPoE session",
    0x88CC: "LLDP", 0x888E: "EAPOL", 0x8809: "slow protocols", 0x88E5: "MACsec",
}  # fmt: skip
PPPOE_SESSION = 0x8864
PPP_PROTOCOLS = {
    0x0021: "IPv4", 0x0057: "IPv6", 0x8021: "IPCP", 0x8057: "IPV6CP", 0x80FD: "CCP", 0xC021: "LCP", 0xC023: "PAP", 0xC025: "LQR", 0xC223: "CHAP",
}  # fmt: skip
COOKED_TYPE = {LINK_SLL: 14, LINK_SLL2: 0}  # where its ethertype is
# RFC 8200 4: what may stand between an IPv6 header and what it carries.
EXTENSION_HEADERS = {0: "hopopt", 43: "route", 44: "frag", 59: "nonxt", 60: "dstopts", 135: "mobility", 139: "hip", 140: "shim6"}
FRAGMENT, AUTHENTICATION, NO_NEXT = 44, 51, 59
LONGEST_CHAIN = 8  # headers that are named; a hostile packet can have hundreds
HEADERS: dict[int, int] = {
    Proto.PROTO_TCP: 20, Proto.PROTO_UDP: 8, Proto.PROTO_UDPLITE: 8, Proto.PROTO_SCTP: 12, Proto.PROTO_GRE: 4, Proto.PROTO_ICMP: 8,
    Proto.PROTO_ICMPV6: 8,
}  # fmt: skip
FLAG_LETTERS = ((0x02, "SYN"), (0x10, "ACK"), (0x01, "FIN"), (0x04, "RST"), (0x08, "PSH"), (0x20, "URG"), (0x40, "ECE"), (0x80, "CWR"))
ICMP_TYPES = {
    0: "echo reply", 3: "destination unreachable", 4: "source quench", 5: "redirect", 8: "echo request", 9: "router advertisement",
    10: "router solicitation", 11: "time exceeded", 12: "parameter problem", 13: "timestamp request", 14: "timestamp reply",
    15: "information request", 16: "information reply", 17: "address mask request", 18: "address mask reply",
}  # fmt: skip
ICMPV6_TYPES = {
    1: "destination unreachable", 2: "packet too big", 3: "time exceeded", 4: "parameter problem", 128: "echo request", 129: "echo reply",
    130: "multicast listener query", 131: "multicast listener report", 132: "multicast listener done", 133: "router solicitation",
    134: "router advertisement", 135: "neighbour solicitation", 136: "neighbour advertisement", 137: "redirect", 143: "multicast listener report v2",
}  # fmt: skip
SCTP_CHUNKS = {
    0: "DATA", 1: "INIT", 2: "INIT_ACK", 3: "SACK", 4: "HEARTBEAT", 5: "HEARTBEAT_ACK", 6: "ABORT", 7: "SHUTDOWN", 8: "SHUTDOWN_ACK", 9: "ERROR",
    10: "COOKIE_ECHO", 11: "COOKIE_ACK", 14: "SHUTDOWN_COMPLETE",
}  # fmt: skip


def _whatever_the_bytes(describe):
    """Missing bytes are part of the description."""

    @wraps(describe)
    def described(*args) -> str:
        try:
            return describe(*args)
        except (Short, IndexError):
            return "cut short: the header is not all there"

    return described


@_whatever_the_bytes
def link_line(frame: bytes, link: int) -> str:
    """The link layer: addresses and tags of Ethernet, the name of others."""
    name = LINK_NAMES.get(link, f"link type {link}")
    if link != LINK_ETHERNET:
        return ", ".join(filter(None, (name, _carried(frame, link))))
    (ethertype,) = unpack_from(">H", frame, 12)
    parts, offset = [f"{name} {frame[6:12].hex(':')} > {frame[:6].hex(':')}"], 14
    while ethertype in VLAN_TYPES:
        tag, inner = unpack_from(">HH", frame, offset)
        parts.append(f"{VLAN_TYPES[ethertype]} {tag & 0xFFF}")
        ethertype, offset = inner, offset + 4
    parts.append(_ether_type(ethertype))
    protocol = frame[offset + 6 : offset + 8] if ethertype == PPPOE_SESSION else b""
    if len(protocol) == 2:
        number = protocol[0] if protocol[0] & 1 else int.from_bytes(protocol, "big")  # RFC 1661 2: one byte if the other is 0
        parts.append(PPP_PROTOCOLS.get(number, f"PPP protocol {number:#06x}"))
    return ", ".join(parts)


def _ether_type(number: int) -> str:
    return ETHER_TYPES.get(number, f"type {number:#06x}" if number >= 0x600 else f"802.3 frame of {number} bytes")


def _carried(frame: bytes, link: int) -> str:
    """What a link layer without addresses says that it carries; "" if it says nothing, or not all of it is there."""
    if link in COOKED_TYPE and len(frame) >= COOKED_TYPE[link] + 2:
        return _ether_type(*unpack_from(">H", frame, COOKED_TYPE[link]))
    if link in (LINK_NULL, LINK_LOOP) and len(frame) >= 4:
        family = min(int.from_bytes(frame[:4], "big"), int.from_bytes(frame[:4], "little"))  # null: in the order of whoever captured
        return f"address family {family}"
    return ""


@_whatever_the_bytes
def ip_line(packet: bytes) -> str:
    """The IP header that starts here."""
    return {4: _ip4, 6: _ip6}.get(packet[0] >> 4, lambda _: f"version {packet[0] >> 4}, neither 4 nor 6")(packet)


def _ip4(packet: bytes) -> str:
    first, _, total, ident, fragment, ttl, proto = unpack_from(">BBHHHBB", packet)
    if len(packet) < 20:
        raise Short
    parts = [f"IPv4 {fields.address(packet[12:16], 4)} > {fields.address(packet[16:20], 4)}", f"{total} bytes", f"TTL {ttl}"]
    if (first & 15) != 5:
        parts.append(f"header of {(first & 15) * 4} bytes")
    if fragment & 0x3FFF:
        more = ", more follow" if fragment & 0x2000 else ", the last"
        parts.append(f"fragment of datagram {ident:#06x} at byte {(fragment & 0x1FFF) * 8}{more}")
    return ", ".join([*parts, f"carries {fields.proto_name(proto)}"])


def _ip6(packet: bytes) -> str:
    length, following, hops = unpack_from(">HBB", packet, 4)
    if len(packet) < 40:
        raise Short
    ends = f"IPv6 {fields.address(packet[8:24], 6)} > {fields.address(packet[24:40], 6)}"
    chain = [EXTENSION_HEADERS.get(header) or fields.proto_name(header) for header in _chain(packet, following)]
    runs = [(name, len(list(run))) for name, run in groupby(chain)]
    names = [name if times == 1 else f"{name} ({times} times)" for name, times in runs]
    if len(names) > LONGEST_CHAIN:
        names = [*names[: LONGEST_CHAIN - 1], f"... ({len(chain)} headers)", names[-1]]
    return f"{ends}, {length} bytes of payload, hop limit {hops}, next header {', '.join(names)}"


def later_fragment_line(offset: int) -> str:
    """What stands in place of a transport header in a fragment that is not the first."""
    return f"no header in this fragment: its bytes begin at {offset:,} of what the datagram carries"


def fragment_offset(packet: bytes) -> int:
    """Where in its datagram's payload a fragment that starts with this IP header begins, in bytes; 0 for the first and for what is no fragment."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return (int.from_bytes(packet[6:8], "big") & 0x1FFF) * 8
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return 0
    return next((offset for _, offset in _walk(packet, packet[6]) if offset), 0)


def _chain(packet: bytes, following: int) -> Iterator[int]:
    """The headers behind an IPv6 header, by what names each, as far as they are there. Behind a later fragment's comes no header."""
    return (header for header, offset in _walk(packet, following) if not offset)


def _walk(packet: bytes, following: int) -> Iterator[tuple[int, int]]:
    """The same, each with the offset of the fragment that the headers up to there make it."""
    at = 40
    yield following, 0
    while (following in EXTENSION_HEADERS or following == AUTHENTICATION) and following != NO_NEXT and at + 4 <= len(packet):
        if following == FRAGMENT and int.from_bytes(packet[at + 2 : at + 4], "big") & ~7:
            yield int.from_bytes(packet[at : at + 1], "big"), int.from_bytes(packet[at + 2 : at + 4], "big") & ~7
            return
        units = {FRAGMENT: 8, AUTHENTICATION: (packet[at + 1] + 2) * 4}
        at, following = at + units.get(following, (packet[at + 1] + 1) * 8), packet[at]
        yield following, 0


def flags_text(flags: int) -> str:
    """TCP flags by their names."""
    return " ".join(name for bit, name in FLAG_LETTERS if flags & bit) or "no flags"


def has_header(proto: int, l4: bytes) -> bool:
    """Whether the transport header is all there, as far as it has a fixed length."""
    return len(l4) >= HEADERS.get(proto, 0)


@_whatever_the_bytes
def l4_line(proto: int, l4: bytes, length: int) -> str:
    """The transport header. length: bytes of header and payload by the IP length, of which l4 may hold fewer."""
    describers: dict[int, Callable[[bytes, int], str]] = {
        Proto.PROTO_TCP: _tcp, Proto.PROTO_UDP: _udp, Proto.PROTO_UDPLITE: _udplite, Proto.PROTO_SCTP: _sctp, Proto.PROTO_GRE: _gre,
        Proto.PROTO_ICMP: lambda l4, _: _icmp(l4, ICMP_TYPES), Proto.PROTO_ICMPV6: lambda l4, _: _icmp(l4, ICMPV6_TYPES),
    }  # fmt: skip
    describe = describers.get(proto)
    return describe(l4, length) if describe else f"{length} bytes"


@_whatever_the_bytes
def brief(proto: int, l4: bytes, length: int) -> str:
    """What differs from packet to packet of a connection, without its ports."""
    if proto == Proto.PROTO_TCP:
        seq, ack, offset, flags = unpack_from(">IIBB", l4, 4)
        acknowledged = f" ack {ack}" if flags & 0x10 else ""
        return f"{flags_text(flags)} seq {seq}{acknowledged} len {max(0, length - (offset >> 4) * 4)}"
    if proto in (Proto.PROTO_ICMP, Proto.PROTO_ICMPV6):
        return _icmp(l4, ICMP_TYPES if proto == Proto.PROTO_ICMP else ICMPV6_TYPES)
    if proto == Proto.PROTO_SCTP:
        return _chunk_names(l4)
    return f"len {max(0, length - 8) if proto in (Proto.PROTO_UDP, Proto.PROTO_UDPLITE) else length}"


def _tcp(l4: bytes, length: int) -> str:
    sport, dport, seq, ack, offset, flags, window = unpack_from(">HHIIBBH", l4)
    header = (offset >> 4) * 4
    parts = [f"{sport} > {dport}", flags_text(flags), f"seq {seq}", f"ack {ack}" if flags & 0x10 else "", f"win {window}"]
    parts += [f"header of {header} bytes, of {length}" if not 20 <= header <= length else f"{length - header} bytes of payload"]
    options = ", ".join(option for option in tcp_options(l4))
    return ", ".join(filter(None, parts)) + (f"; options: {options}" if options else "")


def tcp_options(l4: bytes) -> Iterator[str]:
    """TCP options by their names; only those that say something about the window have their values."""
    names = {2: "mss", 3: "window scale", 4: "SACK permitted", 5: "SACK", 8: "timestamps"}
    for kind, body in options_of(l4[20 : (l4[12] >> 4) * 4] if len(l4) > 12 else b""):
        name = names.get(kind, f"kind {kind}")
        if kind in (2, 3) and body:
            name += f" {int.from_bytes(body, 'big')}"
        if kind == 5:
            name += "".join(f" {a}-{b}" for a, b in sack_blocks(body))
        yield name


def sack_blocks(body: bytes) -> list[tuple[int, int]]:
    """The left and right edges in the body of a SACK option."""
    return [unpack_from(">II", body, at) for at in range(0, len(body) - 7, 8)]


def _udp(l4: bytes, length: int) -> str:
    sport, dport, said, checksum = unpack_from(">HHHH", l4)
    parts = [f"{sport} > {dport}", f"{max(0, length - 8)} bytes of payload", "" if said == length else f"its length says {said - 8}"]
    return ", ".join(filter(None, [*parts, "" if checksum else "no checksum"]))


def _udplite(l4: bytes, length: int) -> str:
    sport, dport, coverage, _ = unpack_from(">HHHH", l4)
    covered = "all of them covered" if coverage in (0, length) else f"checksum over the first {coverage} with the header"
    return f"{sport} > {dport}, {max(0, length - 8)} bytes of payload, {covered}"


def _icmp(l4: bytes, names: dict[int, str]) -> str:
    kind, code = unpack_from(">BB", l4)
    ident, number = unpack_from(">HH", l4, 4)
    text = f"{names.get(kind, 'type')} ({kind}), code {code}"
    return f"{text}, id {ident}, seq {number}" if "request" in text or "reply" in text else text


def _gre(l4: bytes, length: int) -> str:
    flags, carried = unpack_from(">HH", l4)
    version = flags & 7
    return f"version {version}, carries {carried:#06x}" + (f", call id {unpack_from('>HH', l4, 4)[1]}" if version == 1 else "")


def sctp_chunks(l4: bytes) -> list[int]:
    """The types of the chunks, in order, as far as their lengths are sound."""
    chunks, at = [], 12
    while at + 4 <= len(l4):
        kind, _, length = unpack_from(">BBH", l4, at)
        chunks.append(kind)
        if length == 0:
            break
        at = (at + length + 3) & ~3
    return chunks


def _chunk_names(l4: bytes) -> str:
    return " ".join(SCTP_CHUNKS.get(kind, f"chunk-{kind}") for kind in sctp_chunks(l4)) or "no chunk"


def _sctp(l4: bytes, length: int) -> str:
    sport, dport, tag = unpack_from(">HHI", l4)
    return f"{sport} > {dport}, tag {tag:#010x}, {_chunk_names(l4)}"

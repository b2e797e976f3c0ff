"""Frames out of fields: plain functions to bytes, no objects, no scapy. Scenarios and tests are built with them.

Every builder makes what a sound stack would send, checksums included; a keyword overrides each field that may lie. Addresses are text and choose the
IP version. tcp(), udp(), ... give whole Ethernet frames and pass further keywords on to ip(); the *_segment functions give the L4 bytes alone.
Not here: parsing, and anything of the code that judges packets: the checksums are an independent twin of datapath.checksum.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

ETH_IPV4, ETH_IPV6, ETH_VLAN = 0x0800, 0x86DD, 0x8100
ICMP, TCP, UDP, IPV6, ROUTING, FRAGMENT, GRE, ESP, AH, ICMPV6, NO_NEXT, DESTINATION, SCTP, UDPLITE = (
    1, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 136,
)  # fmt: skip
HOP_BY_HOP = 0
FLAG_BITS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "C": 128}
MAC_A, MAC_B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


@lru_cache(maxsize=65536)
def address(text: str) -> bytes:
    """4 or 16 bytes."""
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


@lru_cache(maxsize=1024)
def tcp_flags(letters: str) -> int:
    """ "SA" -> 0x12; letters of FSRPAUEC, in any order."""
    return sum(FLAG_BITS[letter] for letter in letters)


def checksum(data: bytes) -> int:
    """RFC 1071: the complement of the sum mod 2^16 - 1, which is the remainder of the whole as one large number."""
    number = int.from_bytes(data if len(data) % 2 == 0 else data + b"\0", "big")
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


def _crc32c_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return table


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    """A byte at a time (RFC 9260 appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def pseudo(src: str, dst: str, proto: int, length: int) -> bytes:
    """The pseudo-header: RFC 768, RFC 8200 8.1."""
    return address(src) + address(dst) + struct.pack("!II", length, proto)


# --- link layers -----------------------------------------------------------------------------------------------------------------------


def eth(payload: bytes, kind: int = ETH_IPV4, *, vlan: tuple[int, ...] = (), tag: int = ETH_VLAN, pad: int = 0) -> bytes:
    """An Ethernet frame. vlan: VLAN ids, outermost first; tag: the type of each tag; pad: least length, filled with zeros."""
    tags = b"".join(struct.pack("!HH", tag, vid) for vid in vlan)
    return (MAC_B + MAC_A + tags + kind.to_bytes(2, "big") + payload).ljust(pad, b"\0")


def sll(payload: bytes, kind: int = ETH_IPV4) -> bytes:
    """Linux cooked capture, version 1."""
    return struct.pack("!HHH8sH", 0, 1, 6, MAC_A, kind) + payload


def sll2(payload: bytes, kind: int = ETH_IPV4) -> bytes:
    """Linux cooked capture, version 2."""
    return struct.pack("!HHIHBB8s", kind, 0, 2, 1, 0, 6, MAC_A) + payload


def mpls(payload: bytes, *labels: int) -> bytes:
    """A label stack, to be put into eth(..., 0x8847)."""
    last = len(labels) - 1
    return b"".join(struct.pack("!I", label << 12 | (i == last) << 8 | 64) for i, label in enumerate(labels)) + payload


def pppoe(payload: bytes, proto: int = 0x0021, *, compressed: bool = False, length: int | None = None, code: int = 0) -> bytes:
    """A PPPoE session's packet, to be put into eth(..., 0x8864)."""
    body = (bytes([proto]) if compressed else proto.to_bytes(2, "big")) + payload
    return struct.pack("!BBHH", 0x11, code, 1, len(body) if length is None else length) + body


# --- IP --------------------------------------------------------------------------------------------------------------------------------


def ipv4(
    src: str, dst: str, proto: int, payload: bytes = b"", *, ttl: int = 64, ident: int = 1, frag: int = 0, tos: int = 0, options: bytes = b"",
    version: int = 4, ihl: int | None = None, length: int | None = None, ip_checksum: int | None = None,
) -> bytes:  # fmt: skip
    """frag: the whole 16-bit field, 0x2000 is MF. options: a multiple of 4 bytes. ihl: in 4-byte words."""
    words = 5 + len(options) // 4 if ihl is None else ihl
    total = 20 + len(options) + len(payload) if length is None else length
    addresses = address(src) + address(dst) + options
    head = struct.pack("!BBHHHBB", version << 4 | words, tos, total, ident, frag, ttl, proto)
    value = checksum(head + b"\0\0" + addresses) if ip_checksum is None else ip_checksum
    return head + value.to_bytes(2, "big") + addresses + payload


def ipv6(
    src: str, dst: str, proto: int, payload: bytes = b"", *, ttl: int = 64, ext: tuple[tuple[int, bytes], ...] = (), version: int = 6,
    length: int | None = None,
) -> bytes:  # fmt: skip
    """ext: extension headers as (type, bytes from their second byte on); the next-header bytes are filled in."""
    kinds = [kind for kind, _ in ext] + [proto]
    chain = b"".join(bytes([following]) + rest for following, (_, rest) in zip(kinds[1:], ext, strict=True))
    body = chain + payload
    return struct.pack("!IHBB", version << 28, len(body) if length is None else length, kinds[0], ttl) + address(src) + address(dst) + body


def options6(units: int = 0) -> bytes:
    """A hop-by-hop or destination header without its next-header byte, of 8 * (units + 1) bytes: one PadN (RFC 8200 4.2)."""
    return bytes([units, 1, 8 * units + 4]) + bytes(8 * units + 4)


def fragment6(offset: int = 0, more: bool = False, ident: int = 1) -> bytes:
    """A fragment header without its next-header byte; offset in bytes."""
    return struct.pack("!BHI", 0, offset | more, ident)


def ip(src: str, dst: str, proto: int, payload: bytes = b"", **fields: Any) -> bytes:
    """IPv6 where the address says so."""
    return (ipv6 if ":" in src else ipv4)(src, dst, proto, payload, **fields)


def frame(src: str, dst: str, proto: int, payload: bytes = b"", **fields: Any) -> bytes:
    """Ethernet around ip()."""
    return eth(ip(src, dst, proto, payload, **fields), ETH_IPV6 if ":" in src else ETH_IPV4)


# --- transport -------------------------------------------------------------------------------------------------------------------------


def summed(data: bytes, at: int, extra: bytes = b"", value: int | None = None, *, zero_means_none: bool = False) -> bytes:
    """data with the checksum over extra + data at `at`, or with `value` there."""
    if value is None:
        value = checksum(extra + data)
        if zero_means_none and value == 0:  # RFC 768
            value = 0xFFFF
    return data[:at] + value.to_bytes(2, "big") + data[at + 2 :]


def tcp_segment(
    src: str, dst: str, sport: int, dport: int, flags: str | int = "S", *, seq: int = 0, ack: int = 0, win: int = 8192, options: bytes = b"",
    payload: bytes = b"", urg: int = 0, doff: int | None = None, l4_checksum: int | None = None,
) -> bytes:  # fmt: skip
    """options: a multiple of 4 bytes; doff: in 4-byte words; seq and ack are taken mod 2^32."""
    words = 5 + len(options) // 4 if doff is None else doff
    bits = tcp_flags(flags) if isinstance(flags, str) else flags
    head = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, words << 4, bits, win, 0, urg)
    data = head + options + payload
    return summed(data, 16, pseudo(src, dst, TCP, len(data)), l4_checksum)


def tcp(
    src: str, dst: str, sport: int, dport: int, flags: str | int = "S", *, seq: int = 0, ack: int = 0, win: int = 8192, options: bytes = b"",
    payload: bytes = b"", urg: int = 0, doff: int | None = None, l4_checksum: int | None = None, **fields: Any,
) -> bytes:  # fmt: skip
    """tcp("10.0.0.1", "10.0.0.2", 40000, 80, "SA", seq=500, ack=101): a frame. flags: letters of FSRPAUEC, or the byte."""
    segment = tcp_segment(
        src, dst, sport, dport, flags, seq=seq, ack=ack, win=win, options=options, payload=payload, urg=urg, doff=doff, l4_checksum=l4_checksum
    )
    return frame(src, dst, TCP, segment, **fields)


def udp_segment(
    src: str, dst: str, sport: int, dport: int, payload: bytes = b"", *, length: int | None = None, l4_checksum: int | None = None
) -> bytes:
    data = struct.pack("!HHHH", sport, dport, 8 + len(payload) if length is None else length, 0) + payload
    return summed(data, 6, pseudo(src, dst, UDP, len(data)), l4_checksum, zero_means_none=True)


def udp(
    src: str, dst: str, sport: int, dport: int, payload: bytes = b"", *, udp_length: int | None = None, l4_checksum: int | None = None, **fields: Any
) -> bytes:
    """A frame. udp_length: the header's length field; l4_checksum=0: none."""
    return frame(src, dst, UDP, udp_segment(src, dst, sport, dport, payload, length=udp_length, l4_checksum=l4_checksum), **fields)


def udplite_datagram(
    src: str, dst: str, sport: int, dport: int, payload: bytes = b"", *, coverage: int = 0, l4_checksum: int | None = None, sum_proto: int = UDPLITE
) -> bytes:
    """A datagram with the sum that Linux takes for a good one, if sum_proto, the pseudo-header's protocol, is UDP.

    Over IPv4 that has only the lowest byte of the length in it.
    """
    data = struct.pack("!HHHH", sport, dport, coverage, 0) + payload
    covered = data[: coverage or len(data)]
    length = len(data) & 0xFF if sum_proto == UDP and ":" not in src else len(data)
    covered = summed(covered, 6, pseudo(src, dst, sum_proto, length), l4_checksum, zero_means_none=True)
    return covered + data[len(covered) :]


def udplite(
    src: str, dst: str, sport: int, dport: int, payload: bytes = b"", *, coverage: int = 0, l4_checksum: int | None = None, sum_proto: int = UDPLITE,
    **fields: Any,
) -> bytes:  # fmt: skip
    """A frame."""
    data = udplite_datagram(src, dst, sport, dport, payload, coverage=coverage, l4_checksum=l4_checksum, sum_proto=sum_proto)
    return frame(src, dst, UDPLITE, data, **fields)


def icmp_message(src: str, dst: str, kind: int, code: int = 0, rest: int = 0, payload: bytes = b"", *, l4_checksum: int | None = None) -> bytes:
    """ICMP or, by the addresses, ICMPv6. rest: bytes 4 to 7, e.g. id << 16 | sequence number, or the MTU."""
    data = struct.pack("!BBHI", kind, code, 0, rest) + payload
    return summed(data, 2, pseudo(src, dst, ICMPV6, len(data)) if ":" in src else b"", l4_checksum)


def icmp(
    src: str,
    dst: str,
    kind: int,
    code: int = 0,
    *,
    ident: int = 0,
    sequence: int = 0,
    payload: bytes = b"",
    l4_checksum: int | None = None,
    **fields: Any,
) -> bytes:
    """A frame with an ICMP (or, by the addresses, ICMPv6) message that has an id: icmp(a, b, 8, ident=7)."""
    message = icmp_message(src, dst, kind, code, ident << 16 | sequence, payload, l4_checksum=l4_checksum)
    return frame(src, dst, ICMPV6 if ":" in src else ICMP, message, **fields)


icmpv6 = icmp


def icmp_error(
    src: str, dst: str, kind: int, code: int, about: bytes, *, rest: int = 0, quote: int = 1232, l4_checksum: int | None = None, **fields: Any
) -> bytes:
    """A frame with an ICMP error about `about`, an Ethernet frame as the functions here make it. quote: most bytes of its IP packet to repeat."""
    message = icmp_message(src, dst, kind, code, rest, about[14 : 14 + quote], l4_checksum=l4_checksum)
    return frame(src, dst, ICMPV6 if ":" in src else ICMP, message, **fields)


def sctp_chunk(kind: int, flags: int = 0, body: bytes = b"", *, length: int | None = None) -> bytes:
    """One chunk, padded to 4 bytes."""
    data = struct.pack("!BBH", kind, flags, 4 + len(body) if length is None else length) + body
    return data + bytes(-len(data) % 4)


def sctp_init(tag: int, *, ack: bool = False, rwnd: int = 65536, streams: int = 1, tsn: int = 1) -> bytes:
    """An INIT or INIT ACK chunk with its initiate tag."""
    return sctp_chunk(2 if ack else 1, 0, struct.pack("!IIHHI", tag, rwnd, streams, streams, tsn))


def sctp_packet(sport: int, dport: int, tag: int, chunks: bytes = b"", *, l4_checksum: int | None = None) -> bytes:
    head = struct.pack("!HHI", sport, dport, tag)
    value = crc32c(head + b"\0\0\0\0" + chunks) if l4_checksum is None else l4_checksum
    return head + struct.pack("<I", value) + chunks


def sctp(src: str, dst: str, sport: int, dport: int, tag: int, chunks: bytes = b"", *, l4_checksum: int | None = None, **fields: Any) -> bytes:
    """A frame. tag: the verification tag; chunks: joined results of sctp_chunk()."""
    return frame(src, dst, SCTP, sctp_packet(sport, dport, tag, chunks, l4_checksum=l4_checksum), **fields)


def gre_packet(*, version: int = 0, proto: int = ETH_IPV4, call: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """GRE; version 1 (RFC 2637) has key: payload length and call id. flags: the first byte."""
    head = struct.pack("!BBH", flags | (0x20 if version == 1 else 0), version, proto)
    return head + (struct.pack("!HH", len(payload) & 0xFFFF, call) if version == 1 else b"") + payload


def gre(src: str, dst: str, *, version: int = 0, proto: int = ETH_IPV4, call: int = 0, payload: bytes = b"", flags: int = 0, **fields: Any) -> bytes:
    """A frame."""
    return frame(src, dst, GRE, gre_packet(version=version, proto=proto, call=call, payload=payload, flags=flags), **fields)

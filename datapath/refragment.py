"""Cutting a datagram up again on its way out, as Linux does it: never larger fragments than came in.

    for frame in refragment(datagram.frame, datagram): write(frame)

Where the kernel still has the fragments it received, it sends them within their old borders; otherwise, or if these do not fit, it cuts anew at the
size of the largest. Both are here. The frame may have been rewritten in between (addresses, ports, payload), as long as its length tells what it is.
Invariant: put together again, the frames give the datagram that was cut, but for DF where the borders were kept, as in Linux.
Not here: reassembly (ctcore.fragments), ICMP errors about what does not fit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

FRAGMENT, HOP_BY_HOP, ROUTING, DESTINATION = 44, 0, 43, 60
COPIED = 0x80  # an option of IPv4 that belongs into every fragment (RFC 791 3.1)
END, NOP = 0, 1
FIXED4, FIXED6 = 20, 40
LEAST_MTU6 = 1280  # RFC 8200 5
PPPOE, PPPOE_HEADER = b"\x88\x64", 6


class Datagram(NamedTuple):
    """A datagram that was put together from fragments.

    row: of the frame that completed it, among those that were parsed with it. frame: that one's link header, and the datagram, as far as its
    beginning was captured; l3: where its IP header begins. length: bytes of the datagram; largest: of its largest fragment from the IP header on;
    dont: IPv4: that one had its DF bit set; ident: their identification. parts: of each fragment (number of its packet since the start, offset in
    the payload, length), by offset. verified: a checksum was looked for in it (sysctl checksum).
    """

    row: int
    frame: bytes
    l3: int
    length: int
    largest: int
    dont: bool
    ident: int
    parts: tuple[tuple[int, int, int], ...]
    verified: bool = True


def refragment(frame: bytes, datagram: Datagram, mtu: int = 65535) -> list[bytes]:
    """The frames in which a datagram leaves. frame: its own (datagram.frame), rewritten or not; mtu: of the way out, from the IP header on.

    What was not captured is missing in them, too: wire_length() says how long they are. Raises ValueError if no fragment of that size can be, or
    nothing is there to be cut: Linux drops that.
    """
    link, packet = frame[: datagram.l3], frame[datagram.l3 :]
    cut = _cut4 if packet[0] >> 4 == 4 else _cut6
    return [relinked(link, ip_length(packet)) + packet for packet in cut(packet, datagram, mtu)]


def ip_length(packet: bytes) -> int:
    """Bytes of an IP packet, by its header."""
    return int.from_bytes(packet[2:4], "big") if packet[0] >> 4 == 4 else FIXED6 + int.from_bytes(packet[4:6], "big")


def wire_length(frame: bytes, datagram: Datagram) -> int:
    """Bytes of a fragment that refragment() has made, with those that were not captured."""
    return datagram.l3 + ip_length(frame[datagram.l3 :])


def relinked(link: bytes, length: int) -> bytes:
    """A link header in front of so many bytes: PPPoE (RFC 2516 4) counts them; its protocol is behind it, in two bytes or in one."""
    for proto in (2, 1):
        at = len(link) - proto - PPPOE_HEADER
        if at >= 14 and link[at - 2 : at] == PPPOE:
            return link[: at + 4] + (proto + length).to_bytes(2, "big") + link[at + 6 :]
    return link


def _borders(moved: int, datagram: Datagram, total: int, most: int) -> tuple[list[int], bool]:
    """Lengths of the fragments' payloads, and whether these are the old ones. moved: what the first has lost to the headers; most: of any.

    Headers may reach into later fragments (RFC 8200 4.5 forbids it, and strangers do it): then there is no old border left; nor is there one in a
    datagram that is in one piece (joined). Cut anew, only the last fragment has any length, and so it may be longer than the others by up to 7.
    """
    first, *later = (length for _, _, length in datagram.parts)
    old = [first - moved, *later]
    if later and old[0] > 0 and sum(old) == total and max(old) <= most and not any(length % 8 for length in old[:-1]):
        return old, True
    step = most - most % 8
    if step <= 0 and total > most:
        raise ValueError(f"fragments of {datagram.largest} bytes: no room for any payload behind the headers")
    lengths = []
    while total > most:
        lengths.append(step)
        total -= step
    return [*lengths, total], False


def _pieces(payload: bytes, lengths: list[int]) -> Iterator[tuple[int, int, bytes, bool]]:
    """Offset, length, the bytes that were captured, and whether more follow."""
    at, total = 0, sum(lengths)
    for length in lengths:
        yield at, length, payload[at : at + length], at + length < total
        at += length


def _cut4(packet: bytes, datagram: Datagram, mtu: int) -> Iterator[bytes]:
    head = (packet[0] & 15) * 4
    if not FIXED4 <= head <= len(packet) or head >= ip_length(packet):
        raise ValueError(f"a datagram of {ip_length(packet)} bytes: nothing behind its header of {head}")
    lengths, kept = _borders(0, datagram, ip_length(packet) - head, min(mtu, datagram.largest) - head)
    dont = datagram.dont and not kept
    for at, length, piece, more in _pieces(packet[head:], lengths):
        options = packet[FIXED4:head] if at == 0 else _later_options(packet[FIXED4:head])
        yield _header4(packet[:FIXED4] + options, length, dont << 14 | more << 13 | at // 8) + piece


def _header4(head: bytes, length: int, frag: int) -> bytes:
    """A header with the fields of a fragment, and its checksum."""
    head = head[:2] + struct.pack("!H", len(head) + length) + head[4:6] + struct.pack("!H", frag) + head[8:10] + b"\0\0" + head[12:]
    summed = sum(struct.unpack(f"!{len(head) // 2}H", head))
    return head[:10] + (0xFFFF - (summed % 0xFFFF or 0xFFFF)).to_bytes(2, "big") + head[12:]


def _later_options(options: bytes) -> bytes:
    """Those of all fragments but the first: what is not to be copied is replaced, so that all headers are equally long (as in Linux)."""
    out, at = bytearray(options), 0
    while at < len(out) and out[at] != END:
        size = 1 if out[at] == NOP else out[at + 1] if at + 1 < len(out) else 0
        if size < 1 or (out[at] != NOP and size < 2) or at + size > len(out):
            break
        if not out[at] & COPIED:
            out[at : at + size] = bytes([NOP]) * size
        at += size
    return bytes(out)


def _cut6(packet: bytes, datagram: Datagram, mtu: int) -> Iterator[bytes]:
    total = ip_length(packet)
    if total <= min(mtu, datagram.largest):
        yield packet
        return
    head, next_at = _unfragmentable(packet)
    if head > len(packet) or head >= total:
        raise ValueError(f"a datagram of {total} bytes: nothing behind its headers")
    moved = head - (datagram.length - sum(length for _, _, length in datagram.parts))
    lengths, _ = _borders(moved, datagram, total - head, min(mtu, max(datagram.largest, LEAST_MTU6)) - head - 8)
    for at, length, piece, more in _pieces(packet[head:], lengths):
        fragment = struct.pack("!BBHI", packet[next_at], 0, at | more, datagram.ident)
        front = packet[:next_at] + bytes([FRAGMENT]) + packet[next_at + 1 : head]
        yield front[:4] + struct.pack("!H", head + 8 + length - FIXED6) + front[6:] + fragment + piece


def _unfragmentable(packet: bytes) -> tuple[int, int]:
    """Where the headers that every fragment repeats end, and where the type of what follows stands (RFC 8200 4.5). They may end behind the packet."""
    at, next_at, routed = FIXED6, 6, False
    while packet[next_at] in (HOP_BY_HOP, ROUTING, DESTINATION):
        if packet[next_at] == DESTINATION and routed:
            break
        if at + 2 > len(packet):
            return len(packet) + 1, next_at
        routed |= packet[next_at] == ROUTING
        next_at, at = at, at + (packet[at + 1] + 1) * 8
    return at, next_at

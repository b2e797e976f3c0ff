"""What actions do to a frame's bytes: pedit, csum and vlan, in plain Python.

The executable specification of these actions, for who reads and for the interpreter. Frames are Ethernet; others are shown to the interpreter with an
Ethernet header that it lets nobody change. Each function takes a frame and gives another one. pedit changes bytes and no checksum, as in Linux: csum
comes behind it.
Not here: address translation (datapath.rewrite), which packets the actions are for (interpret).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from datapath.craft import crc32c
from datapath.pipeline.header_fields import HEADER_FIELDS, HeaderField
from datapath.pipeline.rules import ETH_IP, ETH_IPV6, ETH_QINQ, ETH_VLAN, Csum, Munge, Pedit, Vlan

ETHERNET, TAG, IP6_HEADER, WORD = 14, 4, 40, 4
ICMP, IGMP, TCP, UDP, ICMPV6, SCTP, UDPLITE = 1, 2, 6, 17, 58, 132, 136
HOP_BY_HOP, ROUTING, FRAGMENT, AUTH, DESTINATION = 0, 43, 44, 51, 60
PAD1, JUMBO = 0, 194  # options of IPv6
TRANSPORTS = {"tcp": TCP, "udp": UDP}


class Layers(NamedTuple):
    """Offsets in a frame: of what is behind the ethertype, and of the IP header, -1 if that is not there as a whole. kind: the ethertype."""

    at: int
    l3: int
    kind: int


LEAST = {ETH_IP: 20, ETH_IPV6: IP6_HEADER}  # bytes of a header


def layers(frame: bytes) -> Layers:
    """Where the headers lie: behind any tags."""
    at = ETHERNET
    while int.from_bytes(frame[at - 2 : at], "big") in (ETH_VLAN, ETH_QINQ) and len(frame) >= at + TAG:
        at += TAG
    kind = int.from_bytes(frame[at - 2 : at], "big")
    return Layers(at, at if kind in LEAST and len(frame) >= at + LEAST[kind] else -1, kind)


def header4(frame: bytes, l3: int) -> int:
    """Where an IPv4 header ends, by its own word."""
    return l3 + (frame[l3] & 15) * 4


# --- pedit ------------------------------------------------------------------------------------------------------------------------------


def transport_header(frame: bytes, where: Layers, proto: int, size: int) -> int:
    """Where pedit finds the header of TCP or UDP (proto) in a frame of `size` bytes, -1 if nowhere.

    As Linux does (pedit_l4_skb_offset): IPv4 is not asked what it carries, nor which fragment it is; of IPv6 (ipv6_find_hdr) the last header has to
    be the one that is wanted, behind any others but for later fragments.
    """
    if where.l3 < 0 or where.kind == ETH_IP:
        return where.l3 if where.l3 < 0 else header4(frame, where.l3)
    kind, at = frame[where.l3 + 6], where.l3 + IP6_HEADER
    while kind in (HOP_BY_HOP, ROUTING, FRAGMENT, AUTH, DESTINATION):
        if at + (4 if kind == FRAGMENT else 2) > len(frame):
            return -1
        length = (frame[at + 1] + 1) * 8
        if kind == FRAGMENT:
            if int.from_bytes(frame[at + 2 : at + 4], "big") & 0xFFF8:
                return -1
            length = 8
        elif kind == AUTH:  # RFC 4302 2.2
            length = (frame[at + 1] + 2) * 4
        if at + length > size:
            return -1
        kind, at = frame[at], at + length
    return at if kind == proto else -1


def pedit(frame: bytes, action: Pedit, missing: int = 0, *, bare: bool = False) -> bytes:
    """Munges, one after the other, up to the first whose field is not there: what was changed before it stays, and the frame goes on, as in Linux.

    missing: bytes behind the frame that were on the wire and not captured: a field among them is there, but nobody sees it change. bare: the frame
    did not come with the Ethernet header that it is shown with.
    """
    for munge in action.munges:
        start = -1 if bare and munge.header == "eth" else header_at(frame, munge, len(frame) + missing)
        if start < 0:
            break
        field = HEADER_FIELDS[munge.header, munge.field]
        there = (len(frame) + missing - start) // WORD * WORD - field.offset  # pedit changes words, each only if all of it is there
        at, changed = start + field.offset, min(field.size, max(there, 0), max(len(frame) - start - field.offset, 0))
        frame = frame[:at] + munged(frame[at : at + changed].ljust(field.size, b"\0"), field, munge)[:changed] + frame[at + changed :]
        if there < field.size:
            break
    return frame


def header_at(frame: bytes, munge: Munge, size: int) -> int:
    """Where the header of a munge begins in a frame of `size` bytes, -1 where there is none."""
    where = layers(frame)
    if munge.header == "eth":
        return TAG if munge.field == "type" and is_tagged(frame) else 0  # the outermost tag lies beside a packet in Linux
    return transport_header(frame, where, TRANSPORTS[munge.header], size) if munge.header in TRANSPORTS else where.l3


def munged(data: bytes, field: HeaderField, munge: Munge) -> bytes:
    """A field's bytes."""
    whole = int.from_bytes(data, "big")
    full = (1 << field.bits) - 1
    old = whole >> field.shift & full
    mask = munge.mask & full
    new = old & ~mask | (old + munge.value if munge.op == "add" else munge.value) & mask
    return (whole & ~(full << field.shift) | new << field.shift).to_bytes(field.size, "big")


# --- csum -------------------------------------------------------------------------------------------------------------------------------


def folded(data: bytes) -> int:
    """The checksum of RFC 1071."""
    total = sum(int.from_bytes((data[i : i + 2] + b"\0")[:2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def put(frame: bytes, at: int, value: int, length: int = 2) -> bytes:
    return frame[:at] + value.to_bytes(length, "big") + frame[at + length :]


class Segment(NamedTuple):
    """What csum sums of a packet: protocol, where its header begins, and where the packet ends by its own word. Protocol 0: nothing."""

    proto: int
    at: int
    end: int


NOTHING = Segment(0, 0, 0)


def csum(frame: bytes, action: Csum, missing: int = 0) -> bytes | None:
    """Checksums made anew as act_csum does it; None where Linux drops the packet: it is shorter than it says, or than a header that is summed.

    missing: bytes behind the frame that were on the wire and not captured: a sum over any of them stays as it is.
    """
    where, size = layers(frame), len(frame) + missing
    if where.l3 < 0:
        return None if where.kind in LEAST and where.at + LEAST[where.kind] > size else frame
    segment = segment4(frame, where.l3) if where.kind == ETH_IP else segment6(frame, where.l3, size)
    summed = None if segment is None else transport(frame, where, segment, action.of, size)
    if summed is None or where.kind != ETH_IP or "ip4h" not in action.of:
        return summed
    end = header4(frame, where.l3)
    if missing and end > len(frame):
        return summed
    bare = put(summed, where.l3 + 10, 0)
    return put(bare, where.l3 + 10, folded(bare[where.l3 : end]))


def segment4(frame: bytes, l3: int) -> Segment:
    """Of later fragments nothing; the first one is summed, as far as it goes."""
    if int.from_bytes(frame[l3 + 6 : l3 + 8], "big") & 0x1FFF:
        return NOTHING
    return Segment(frame[l3 + 9], header4(frame, l3), l3 + int.from_bytes(frame[l3 + 2 : l3 + 4], "big"))


def segment6(frame: bytes, l3: int, size: int) -> Segment | None:
    """Behind options and routing headers; of fragments, and behind AH, nothing. None where a header is not there as a whole (tcf_csum_ipv6)."""
    kind, at, length = frame[l3 + 6], l3 + IP6_HEADER, int.from_bytes(frame[l3 + 4 : l3 + 6], "big")
    while kind in (HOP_BY_HOP, ROUTING, DESTINATION):
        if at + 2 > len(frame):
            return None if at + 2 > size else NOTHING
        header = (frame[at + 1] + 1) * 8
        if at + header > size:
            return None
        if kind == HOP_BY_HOP:
            if at + header > len(frame):
                return NOTHING
            told = payload_length(frame[at : at + header], length)
            if told is None:
                return None
            length = told
        kind, at = frame[at], at + header
        if at >= size:
            return NOTHING
    return Segment(kind, at, l3 + IP6_HEADER + length)


def payload_length(header: bytes, length: int) -> int | None:
    """The length behind the fixed header, by a hop-by-hop header if that has a jumbo payload (RFC 2675 2). None: that option is malformed."""
    at, left = 2, len(header) - 2
    while left > 1:
        if header[at] == JUMBO:
            fine = header[at + 1] == 4 and left >= 6 and at & 3 == 2
            return int.from_bytes(header[at + 2 : at + 6], "big") if fine else None
        option = 1 if header[at] == PAD1 else header[at + 1] + 2
        if option > left:
            break
        at, left = at + option, left - option
    return length


# By ethertype and protocol: csum's name, the least header in bytes, where the checksum lies, and whether addresses are part of it.
SUMS: dict[tuple[int, int], tuple[str, int, int, bool]] = {
    (ETH_IP, ICMP): ("icmp", 8, 2, False),
    (ETH_IP, IGMP): ("igmp", 8, 2, False),
    (ETH_IPV6, ICMPV6): ("icmp", 8, 2, True),
    **{(kind, TCP): ("tcp", 20, 16, True) for kind in LEAST},
    **{(kind, UDP): ("udp", 8, 6, True) for kind in LEAST},
    **{(kind, UDPLITE): ("udplite", 8, 6, True) for kind in LEAST},
    **{(kind, SCTP): ("sctp", 12, 8, False) for kind in LEAST},
}


def transport(frame: bytes, where: Layers, segment: Segment, of: tuple[str, ...], size: int) -> bytes | None:
    """The transport header's checksum. None: the packet is shorter than it says, or than this header."""
    name, header, field, pseudo = SUMS.get((where.kind, segment.proto), ("", 0, 0, False))
    if name not in of:
        return frame
    proto, at, end = segment
    if end > size or end - at < header:
        return None
    if (size if proto == SCTP else end) > len(frame):
        return frame
    field += at
    if proto == SCTP:  # Linux sums to the end of the buffer, padding of Ethernet included (sctp_compute_cksum)
        bare = put(frame, field, 0, 4)
        return put(bare, field, int.from_bytes(crc32c(bare[at:]).to_bytes(4, "little"), "big"), 4)
    if proto == UDP and where.kind == ETH_IP and frame[field : field + 2] == b"\0\0":
        return frame
    bare, length = put(frame, field, 0), end - at
    covered = length
    if proto in (UDP, UDPLITE):
        told = int.from_bytes(frame[at + 4 : at + 6], "big")
        if told != length and (proto == UDP or (told and not header <= told <= length)):
            return bare  # left so, which over IPv4 says that there is no sum
        length, covered = told, told or length
    addresses = bare[where.l3 + 12 : where.l3 + 20] if where.kind == ETH_IP else bare[where.l3 + 8 : where.l3 + 40]
    before = addresses + length.to_bytes(4, "big") + proto.to_bytes(4, "big") if pseudo else b""
    value = folded(before + bare[at : at + covered])
    return put(bare, field, value or 0xFFFF if proto in (UDP, UDPLITE) else value)


# --- vlan -------------------------------------------------------------------------------------------------------------------------------


def push(frame: bytes, action: Vlan) -> bytes:
    tag = (action.priority or 0) << 13 | (action.id or 0)
    return frame[:12] + (action.protocol or ETH_VLAN).to_bytes(2, "big") + tag.to_bytes(2, "big") + frame[12:]


def pop(frame: bytes, action: Vlan) -> bytes:
    """The outermost tag goes; a frame without stays as it is."""
    return frame[:12] + frame[12 + TAG :] if is_tagged(frame) else frame


def modify(frame: bytes, action: Vlan) -> bytes:
    """What is given is changed, and the tag is of the action's protocol in any case, as act_vlan has it. A frame without a tag stays as it is."""
    if not is_tagged(frame):
        return frame
    tag = int.from_bytes(frame[14:16], "big")
    if action.id is not None:
        tag = tag & 0xF000 | action.id
    if action.priority is not None:
        tag = tag & 0x1FFF | action.priority << 13
    return frame[:12] + (action.protocol or ETH_VLAN).to_bytes(2, "big") + tag.to_bytes(2, "big") + frame[16:]


def is_tagged(frame: bytes) -> bool:
    return len(frame) >= ETHERNET + TAG and int.from_bytes(frame[12:14], "big") in (ETH_VLAN, ETH_QINQ)


VLAN: dict[str, Callable[[bytes, Vlan], bytes]] = {"push": push, "pop": pop, "modify": modify}

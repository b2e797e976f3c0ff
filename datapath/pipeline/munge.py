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
TRANSPORTS = {"tcp": TCP, "udp": UDP}


class Layers(NamedTuple):
    """Offsets in a frame: of the ethertype that names the payload, of the IP header and of the transport header (-1: there is none)."""

    kind_at: int
    l3: int
    l4: int
    kind: int
    proto: int


def layers(frame: bytes) -> Layers:
    """Where the headers lie: behind any tags; of IPv6 the transport header is only found right behind the fixed one."""
    at = ETHERNET - 2
    while int.from_bytes(frame[at : at + 2], "big") in (ETH_VLAN, ETH_QINQ) and len(frame) >= at + 2 + TAG:
        at += TAG
    kind, l3 = int.from_bytes(frame[at : at + 2], "big"), at + 2
    if kind == ETH_IP and len(frame) >= l3 + 20:
        return Layers(at, l3, l3 + (frame[l3] & 15) * 4, kind, frame[l3 + 9])
    if kind == ETH_IPV6 and len(frame) >= l3 + IP6_HEADER:
        return Layers(at, l3, l3 + IP6_HEADER, kind, frame[l3 + 6])
    return Layers(at, -1, -1, kind, -1)


# --- pedit ------------------------------------------------------------------------------------------------------------------------------


def transport_header(frame: bytes, where: Layers, proto: int, size: int) -> int:
    """Where pedit finds the header of TCP or UDP (proto) in a frame of `size` bytes, -1 if nowhere.

    As Linux does (pedit_l4_skb_offset): IPv4 is not asked what it carries, nor which fragment it is; of IPv6 (ipv6_find_hdr) the last header has to
    be the one that is wanted, behind any others but for later fragments.
    """
    if where.kind != ETH_IPV6 or where.l3 < 0:
        return where.l4
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

    missing: bytes behind the frame that were on the wire and not captured: a field among them is there, but nobody sees it change. bare: the frame did
    not come with the Ethernet header that it is shown with.
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
        return 0
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


def csum(frame: bytes, action: Csum, missing: int = 0) -> bytes:
    """Checksums made anew. Of a fragment, and of what is shorter than its header, none is; UDP's 0 stays 0 (RFC 768).

    missing: bytes behind the frame that were on the wire and not captured: a sum over any of them stays as it is.
    """
    where, size = layers(frame), len(frame) + missing
    if where.l3 < 0:
        return frame
    if where.kind == ETH_IP:
        total = int.from_bytes(frame[where.l3 + 2 : where.l3 + 4], "big")
        whole = not int.from_bytes(frame[where.l3 + 6 : where.l3 + 8], "big") & 0x3FFF
        end = min(where.l3 + total, size)
    else:
        end, whole = min(where.l4 + int.from_bytes(frame[where.l3 + 4 : where.l3 + 6], "big"), size), True
    if whole and end <= len(frame):
        frame = transport(frame, where, end, action.of)
    if where.kind == ETH_IP and "ip4h" in action.of and (where.l4 <= len(frame) or not missing):
        bare = put(frame, where.l3 + 10, 0)
        frame = put(bare, where.l3 + 10, folded(bare[where.l3 : where.l4]))
    return frame


# By protocol: csum's name, the least header in bytes, where the checksum lies, and whether addresses are part of it.
SUMS: dict[int, tuple[str, int, int, bool]] = {
    ICMP: ("icmp", 8, 2, False),
    IGMP: ("igmp", 8, 2, False),
    ICMPV6: ("icmp", 8, 2, True),
    TCP: ("tcp", 20, 16, True),
    UDP: ("udp", 8, 6, True),
    UDPLITE: ("udplite", 8, 6, True),
    SCTP: ("sctp", 12, 8, False),
}


def transport(frame: bytes, where: Layers, end: int, of: tuple[str, ...]) -> bytes:
    """The transport header's checksum, over the packet as long as it says it is."""
    name, header, at, pseudo = SUMS.get(where.proto, ("", 0, 0, False))
    if name not in of or end - where.l4 < header:
        return frame
    field, length = where.l4 + at, end - where.l4
    if where.proto == SCTP:
        bare = put(frame, field, 0, 4)
        return put(bare, field, int.from_bytes(crc32c(bare[where.l4 : end]).to_bytes(4, "little"), "big"), 4)
    if where.proto == UDP and frame[field : field + 2] == b"\0\0":
        return frame
    covered = length
    if where.proto == UDPLITE:
        covered = int.from_bytes(frame[where.l4 + 4 : where.l4 + 6], "big") or length
        if covered > length or covered < header:
            return frame
    addresses = frame[where.l3 + 12 : where.l3 + 20] if where.kind == ETH_IP else frame[where.l3 + 8 : where.l3 + 40]
    before = addresses + length.to_bytes(4, "big") + where.proto.to_bytes(4, "big") if pseudo else b""
    bare = put(frame, field, 0)
    value = folded(before + bare[where.l4 : where.l4 + covered])
    return put(bare, field, value or 0xFFFF if where.proto in (UDP, UDPLITE) else value)


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

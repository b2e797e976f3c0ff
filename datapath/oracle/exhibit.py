"""Which packets of a capture can be shown to the kernel, and as what.

The link layer is no business of conntrack's: what is shown is the IP packet. A snapped packet is completed by zeros to its length on the wire, and
its checksum made to fit, since the engine believes what it cannot verify. What cannot be shown is named, so that it can be counted:

    not IP              the kernel's conntrack never meets it either
    snapped             not even the headers were captured
    snapped fragment    its part of the datagram was not captured
    too large           larger than any device's MTU
    jumbogram           of IPv6, without a length: a bridge cuts it off behind its header, if it is no larger than other packets; a router does not

Not here: showing (oracle).
"""

from __future__ import annotations

import numpy as np

from ctcore.types import Proto, Reason
from datapath.checksum import internet_checksum

LARGEST = 65535
CHECKSUM_AT: dict[int, int] = {Proto.PROTO_TCP: 16, Proto.PROTO_UDP: 6, Proto.PROTO_ICMP: 2, Proto.PROTO_ICMPV6: 2}
WITHOUT_PSEUDO_HEADER = (Proto.PROTO_ICMP,)


class Unshown(str):
    """Why a packet cannot be shown, in words."""


NOT_IP, SNAPPED, FRAGMENT, TOO_LARGE, JUMBOGRAM = (Unshown(why) for why in ("not IP", "snapped", "snapped fragment", "too large", "jumbogram"))
UNROUTED = Unshown("from no address a router takes")
HEADER6 = 40
HOP_BY_HOP = b"\0"
FRAGMENT4 = 0x3FFF  # offset and more-fragments bit
FRAGMENT_HEADER, AUTHENTICATION = 44, 51
# Hop-by-hop, routing and destination options, authentication: how many bytes a unit of their length is, and how many units it leaves out.
SKIPPED = {0: (8, 1), 43: (8, 1), 60: (8, 1), AUTHENTICATION: (4, 2)}
UNSHOWN: dict[int, Unshown] = {Reason.R_NOT_IP: NOT_IP, Reason.R_FRAME_SHORT: NOT_IP, Reason.R_SNAPPED: SNAPPED}


def unrouted(family: int, packet: bytes) -> bool:
    """Whether the routing table refuses a packet for its source (RFC 1812 5.3.7): this network, multicast, broadcast.

    It is asked once the destination has been translated, by a router and by a bridge alike; then the packet is gone before conntrack confirms it.
    """
    return family == 4 and (packet[12] == 0 or packet[12] >= 224)


def exhibit(row: np.void, place: np.void, memory: np.ndarray) -> bytes | Unshown:
    """The IP packet to show, or why there is none. row: PACKET_DTYPE; place: INNER_DTYPE; memory: uint8[n], in which row and place lie."""
    why = UNSHOWN.get(int(row["reason"])) if row["reason"] else None
    if why or not place["family"]:
        return why or NOT_IP
    start, have, length = int(place["offset"]), int(place["have"]), int(place["length"])
    if row["ip_len"] > LARGEST:
        return TOO_LARGE
    # What a link adds behind the packet may be as long as it likes.
    have, length = min(have, LARGEST), min(length, LARGEST)
    packet = memory[start : start + have].tobytes()
    if row["reason"] == Reason.R_FRAGMENT and have < length:
        return FRAGMENT
    if place["family"] == 6 and packet[6:7] == HOP_BY_HOP:
        if packet[4:6] == bytes(2):
            return JUMBOGRAM
        # A bridge reads the options before it cuts off what is behind the packet's end, everybody else after.
        length = min(length, HEADER6 + int.from_bytes(packet[4:6], "big"))
        packet = packet[:length]
    return packet if len(packet) == length else _completed(packet.ljust(length, b"\0"), row, int(row["l4"]) - memory.ctypes.data - start)


def _completed(packet: bytes, row: np.void, l4_at: int) -> bytes | Unshown:
    """A packet whose end was not captured, with a checksum that fits what stands there now. l4_at: where its transport header begins."""
    proto, length = int(row["key"]["proto"]), int(row["l4_len"])
    if row["l4_have"] == length:
        return packet  # only link padding is missing
    if proto not in CHECKSUM_AT:
        return packet if proto not in (Proto.PROTO_SCTP, Proto.PROTO_UDPLITE) else SNAPPED
    at = l4_at + CHECKSUM_AT[proto]
    if proto == Proto.PROTO_UDP and packet[at : at + 2] == b"\0\0":
        return packet  # it has none (RFC 768)
    blank = packet[:at] + b"\0\0" + packet[at + 2 :]
    summed = blank[l4_at : l4_at + length]
    if proto not in WITHOUT_PSEUDO_HEADER:
        size = 4 if row["key"]["family"] == 4 else 16
        summed = (
            row["key"]["src"].tobytes()[:size] + row["key"]["dst"].tobytes()[:size] + length.to_bytes(4, "big") + bytes([0, 0, 0, proto]) + summed
        )
    value = internet_checksum(summed) or 0xFFFF
    return packet[:at] + value.to_bytes(2, "big") + packet[at + 2 :]


def is_fragment(family: int, packet: bytes) -> bool:
    """Whether an IP packet goes through reassembly: a part of a larger one, or an atomic fragment of IPv6, the whole of one (RFC 6946)."""
    if family == 4:
        return len(packet) >= 8 and bool(int.from_bytes(packet[6:8], "big") & FRAGMENT4)
    return fragment_at(packet) is not None


def fragment_at(packet: bytes) -> int | None:
    """Where the fragment header of an IPv6 packet lies, if nothing but options, routing and authentication headers is before it."""
    at, kind = HEADER6, packet[6] if len(packet) > HEADER6 else -1
    while kind in SKIPPED and len(packet) >= at + 2:
        unit, left_out = SKIPPED[kind]
        kind, at = packet[at], at + unit * (packet[at + 1] + left_out)
    return at if kind == FRAGMENT_HEADER and len(packet) >= at + 8 else None

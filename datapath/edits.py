"""A helper's edits, done to a packet that has been translated already: pieces of its payload become others, and with that its length.

In Python, since few packets are edited: those with an address in them. As in Linux (nf_nat_mangle_tcp_packet), a packet whose payload changes gets
its lengths and checksums made anew, so that a wrong one becomes right; of UDP, none stays none. Numbers in the TCP header (SACK blocks) are edited
too: these keep their length, and the checksum is adjusted as if they lay at an even offset, which Linux believes of them.
Invariant: a frame whose payload changes ends with its IP packet, without the link's padding.
Not here: what is to be edited (ctcore.helpers), addresses and ports (rewrite).
"""

from __future__ import annotations

import numpy as np

from ctcore.types import Proto
from datapath.checksum import internet_checksum
from datapath.refragment import relinked

LONGEST = 0xFFFF  # bytes of an IP packet, and of an IPv6 packet's payload
IP6_HEADER = 40
SUM_END = 18  # bytes of a TCP header with its checksum
# Where a transport's checksum lies in its header.
CHECKSUM_AT: dict[int, int] = {Proto.PROTO_TCP: 16, Proto.PROTO_UDP: 6}
# The longest header of those in which numbers are edited: Linux takes an ICMP error for a TCP segment (ctcore.helpers.registry, adjust_error).
HEADER: dict[int, int] = {Proto.PROTO_TCP: 60, Proto.PROTO_ICMP: 60, Proto.PROTO_ICMPV6: 60}


def edited(frame: bytes, packet: np.void, l4_at: int, edits: np.ndarray) -> bytes | None:
    """The frame with its edits made.

    frame: whole, and translated; packet: its row (PACKET_DTYPE); l4_at: where its transport header begins; edits: EDIT_DTYPE[n], in the order of
    `at`, which counts from there. None if it cannot be: not all of an edited payload was captured, it would be too long, or an edit lies outside.
    """
    proto, have = int(packet["key"]["proto"]), int(packet["l4_have"])
    if proto not in CHECKSUM_AT and proto not in HEADER:
        return None
    l3_at = int(packet["l3_off"])
    ip, l4 = bytearray(frame[l3_at:l4_at]), bytearray(frame[l4_at : l4_at + have])
    header = int(packet["doff"]) if proto == Proto.PROTO_TCP else HEADER.get(proto, 8)
    at, pieces = 0, []
    for edit in edits:
        start, old = int(edit["at"]), int(edit["old_len"])
        if start < at or start + old > have or start < header < start + old:
            return None
        text = edit["text"][: int(edit["new_len"])].tobytes()
        if start >= header and have < packet["l4_len"]:
            return None
        if start < header:
            if proto not in HEADER or len(text) != old or old % 2 or have < SUM_END:
                return None
            _number(l4, start, text)
            continue
        pieces += [bytes(l4[at:start]), text]
        at = start + old
    if proto not in CHECKSUM_AT and pieces:
        return None
    if not pieces:
        return frame[:l4_at] + bytes(l4) + frame[l4_at + have :]
    l4 = bytearray(b"".join([*pieces, l4[at:]]))
    if not _settle(ip, l4, proto, int(packet["key"]["family"])):
        return None
    return relinked(frame[:l3_at], len(ip) + len(l4)) + bytes(ip) + bytes(l4)


def _number(l4: bytearray, at: int, text: bytes) -> None:
    """A number in the TCP header becomes another one, and the checksum with it (RFC 1624, equation 3)."""
    total = 0xFFFF - int.from_bytes(l4[16:18], "big") + 0xFFFF  # never zero, so that 0xFFFF does not come out
    for i in range(0, len(text), 2):
        total += 0xFFFF - int.from_bytes(l4[at + i : at + i + 2], "big") + int.from_bytes(text[i : i + 2], "big")
    l4[at : at + len(text)] = text
    l4[16:18] = (0xFFFF - ((total - 1) % 0xFFFF + 1)).to_bytes(2, "big")


def _settle(ip: bytearray, l4: bytearray, proto: int, family: int) -> bool:
    """Lengths and checksums of a packet whose payload is another. False if it is too long."""
    total = len(ip) + len(l4) - (0 if family == 4 else IP6_HEADER)
    if total > LONGEST:
        return False
    if family == 4:
        ip[2:4] = total.to_bytes(2, "big")
        ip[10:12] = b"\0\0"
        ip[10:12] = internet_checksum(ip).to_bytes(2, "big")
    else:
        ip[4:6] = total.to_bytes(2, "big")
    at = CHECKSUM_AT[proto]
    if proto == Proto.PROTO_UDP:
        l4[4:6] = len(l4).to_bytes(2, "big")
        if l4[at : at + 2] == b"\0\0":
            return True
    l4[at : at + 2] = b"\0\0"
    addresses = ip[12:20] if family == 4 else ip[8:40]
    # Zero is written as 0xFFFF for TCP too, where both mean the same: so does Linux (skb_checksum_help).
    value = internet_checksum(bytes(addresses) + len(l4).to_bytes(4, "big") + proto.to_bytes(4, "big") + l4) or 0xFFFF
    l4[at : at + 2] = value.to_bytes(2, "big")
    return True

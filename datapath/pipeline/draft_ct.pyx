"""What connection tracking changes in a draft: addresses and ports, a helper's edits, and the bytes behind the IP packet, which go.

The edits are those of datapath.edits, to the byte. A packet whose payload changes gets its lengths and checksums made anew, as in Linux
(nf_nat_mangle_tcp_packet); numbers in the TCP header keep their length, and its checksum is adjusted as if they lay at an even offset.
Theory of operation: all edits are looked at before any is made; those of the payload are made from the last one back, so that none moves what another
one names.
Invariants: a draft that cannot be edited is left as it is; nothing is read or written beyond the captured bytes.
Not here: what is to be changed (ctcore), how addresses are (datapath.rewrite).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

import numpy as np

from ctcore.lowlevel cimport be16, put_be16
from ctcore.tuples cimport IP6_HEADER
from ctcore.types cimport PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Edit, Packet, Rewrite
from datapath.checksum cimport add1, fold, sum_bytes
from datapath.frame cimport Frame
from datapath.link cimport ETHER_PPPOE, LINKTYPE_ETHERNET
from datapath.pipeline.draft cimport DRAFT_ROOM, Draft, draft_own
from datapath.rewrite cimport rewrite_packet
from datapath.wire cimport FRAGMENTS_PASSED, ParseSettings, parse

from ctcore.types import EDIT_DTYPE

cdef extern from "arpa/inet.h" nogil:
    uint32_t htonl(uint32_t)

cdef enum:
    LONGEST = 0xFFFF            # bytes of an IP packet, and of an IPv6 packet's payload
    LONGEST_HEADER = 60         # of TCP; Linux takes an ICMP error for a TCP segment (ctcore.helpers.registry, adjust_error)
    UDP_HEADER = 8
    TCP_SUM = 16
    UDP_SUM = 6
    PPPOE_HEADER = 6
    MOST_TEXT = 64              # bytes of an Edit
    MACS = 12


cdef bint draft_rewrite(Draft *d, const Packet *p, uint32_t l4_at, const Rewrite *r) noexcept nogil:
    """Do as a rewrite says, but for its edits. p: the draft, parsed; l4_at: where in it the transport header begins.

    False if Linux drops the packet instead, or there is no memory.
    """
    return draft_own(d) and rewrite_packet(<uint8_t *>d.data + p.l3_off, <uint8_t *>d.data + l4_at, p, r)


cdef void draft_trim(Draft *d, const Packet *p) noexcept nogil:
    """What lies behind the IP packet, goes (tcf_ct_skb_network_trim). Safe: parse() has found a whole fixed header at l3_off."""
    cdef const uint8_t *ip = d.data + p.l3_off
    cdef uint32_t length = p.l3_off + (be16(ip + 2) if p.key.family == 4 else be16(ip + 4) + <uint32_t>IP6_HEADER)
    cdef uint32_t have = min(d.have, length)
    d.missing = min(d.have + d.missing, length) - have
    d.have = have


# --- edits ------------------------------------------------------------------------------------------------------------------------------


cdef inline uint32_t header_of(const Packet *p) noexcept nogil:
    return p.doff if p.key.proto == PROTO_TCP else UDP_HEADER if p.key.proto == PROTO_UDP else LONGEST_HEADER


cdef inline bint has_numbers(uint8_t proto) noexcept nogil:
    return proto == PROTO_TCP or proto == PROTO_ICMP or proto == PROTO_ICMPV6


cdef bint can_edit(const Packet *p, const Edit *edit, uint32_t n, int64_t *grows) noexcept nogil:
    """Is each edit within what there is, in order, and of a kind that the protocol takes? grows: by how many bytes the payload does."""
    cdef uint32_t header = header_of(p), at = 0, i, end
    grows[0] = 0
    if not has_numbers(p.key.proto) and p.key.proto != PROTO_UDP:
        return False
    for i in range(n):
        end = edit[i].at + edit[i].old_len
        if edit[i].at < at or end < edit[i].at or end > p.l4_have or (edit[i].at < header and header < end) or edit[i].new_len > MOST_TEXT:
            return False
        if edit[i].at < header:                         # a number
            if not has_numbers(p.key.proto) or edit[i].new_len != edit[i].old_len or edit[i].old_len & 1 or p.l4_have < TCP_SUM + 2:
                return False
            continue
        if p.l4_have < p.l4_len or (p.key.proto != PROTO_TCP and p.key.proto != PROTO_UDP):
            return False
        grows[0] += <int64_t>edit[i].new_len - edit[i].old_len
        at = end
    return True


cdef void put_number(uint8_t *l4, const Edit *edit) noexcept nogil:
    """A number in the header becomes another one, and the checksum with it (RFC 1624, equation 3)."""
    cdef uint64_t moved = 0xFFFF0000ULL                 # a multiple of 0xFFFF, so that 0xFFFF does not come out
    cdef uint16_t word
    cdef uint32_t i
    for i in range(0, edit.old_len, 2):
        memcpy(&word, l4 + edit.at + i, 2)
        moved += word ^ 0xFFFF
        memcpy(&word, edit.text + i, 2)
        moved += word
    memcpy(&word, l4 + TCP_SUM, 2)
    word = fold(add1(moved, word ^ 0xFFFF)) ^ 0xFFFF
    memcpy(l4 + edit.at, edit.text, edit.old_len)
    memcpy(l4 + TCP_SUM, &word, 2)


cdef void put_text(uint8_t *l4, uint32_t *length, const Edit *edit) noexcept nogil:
    """A piece of the payload becomes another one."""
    cdef uint32_t end = edit.at + edit.old_len
    memmove(l4 + edit.at + edit.new_len, l4 + end, length[0] - end)
    memcpy(l4 + edit.at, edit.text, edit.new_len)
    length[0] += edit.new_len - <uint32_t>edit.old_len


cdef void settle(uint8_t *ip, uint8_t *l4, uint32_t length, const Packet *p) noexcept nogil:
    """Lengths and checksums of a packet whose transport header and payload are `length` bytes now. Of UDP, no checksum stays none."""
    cdef uint8_t *check = l4 + (TCP_SUM if p.key.proto == PROTO_TCP else UDP_SUM)
    cdef uint64_t before = <uint64_t>htonl(length) + htonl(p.key.proto)
    cdef uint16_t value
    if p.key.family == 4:
        put_be16(ip + 2, <uint16_t>(l4 - ip + length))
        memset(ip + 10, 0, 2)
        value = fold(sum_bytes(ip, l4 - ip, 0)) ^ 0xFFFF
        memcpy(ip + 10, &value, 2)
    else:
        put_be16(ip + 4, <uint16_t>(l4 - ip + length - IP6_HEADER))
    if p.key.proto == PROTO_UDP:
        put_be16(l4 + 4, <uint16_t>length)
        if check[0] | check[1] == 0:
            return
    memset(check, 0, 2)
    before = sum_bytes(ip + 12, 8, before) if p.key.family == 4 else sum_bytes(ip + 8, 32, before)
    # Zero is written as 0xFFFF for TCP too, where both mean the same: so does Linux (skb_checksum_help).
    value = fold(sum_bytes(l4, length, before)) ^ 0xFFFF
    if value == 0:
        value = 0xFFFF
    memcpy(check, &value, 2)


cdef void relink(uint8_t *start, uint32_t l3, uint32_t length) noexcept nogil:
    """A link header in front of so many bytes: PPPoE (RFC 2516 4) counts them; its protocol is behind it, in two bytes or in one."""
    cdef uint32_t proto
    cdef uint8_t *header
    for proto in range(2, 0, -1):
        if l3 >= MACS + 2 + PPPOE_HEADER + proto:
            header = start + l3 - proto - PPPOE_HEADER
            if be16(header - 2) == ETHER_PPPOE:
                put_be16(header + 4, <uint16_t>(proto + length))
                return


cdef bint fits(const Draft *d, const Packet *p, uint32_t l4_at, uint32_t length) noexcept nogil:
    """May the packet have so many bytes from its transport header on?"""
    cdef uint32_t total = l4_at - p.l3_off + length - (0 if p.key.family == 4 else <uint32_t>IP6_HEADER)
    return total <= LONGEST and (d.data - d.room) + l4_at + length <= DRAFT_ROOM


cdef bint draft_edit(Draft *d, const Packet *p, uint32_t l4_at, const Edit *edit, uint32_t n) noexcept nogil:
    """Make a helper's edits. p, l4_at: as of draft_rewrite(), which comes first. Where the payload changes, the draft ends with its IP packet.

    False if it cannot be: not all of an edited payload was captured, it would be too long, or an edit lies outside.
    """
    cdef uint32_t header = header_of(p), length = p.l4_have, numbers = 0, i
    cdef uint8_t *l4
    cdef int64_t grows
    if not can_edit(p, edit, n, &grows) or not draft_own(d):
        return False
    while numbers < n and edit[numbers].at < header:
        numbers += 1
    if numbers < n and not fits(d, p, l4_at, <uint32_t>(length + max(grows, 0))):
        return False
    l4 = <uint8_t *>d.data + l4_at
    for i in range(numbers):
        put_number(l4, &edit[i])
    for i in range(n - numbers):
        put_text(l4, &length, &edit[n - 1 - i])
    if numbers < n:
        settle(<uint8_t *>d.data + p.l3_off, l4, length, p)
        relink(<uint8_t *>d.data, p.l3_off, l4_at - p.l3_off + length)
        d.have, d.missing = l4_at + length, 0
    return True


def edited_draft(const uint8_t[::1] frame not None, edits not None):
    """The same from Python, for who compares; see draft_ct.pyi."""
    cdef Draft d
    cdef Frame row
    cdef Packet p
    cdef ParseSettings settings
    cdef const Edit *edit
    if not isinstance(edits, np.ndarray) or edits.dtype != EDIT_DTYPE or not edits.flags.c_contiguous:
        raise ValueError("edits: expected a contiguous array of EDIT_DTYPE")
    room = np.empty(DRAFT_ROOM, dtype=np.uint8)
    memset(&settings, 0, sizeof(ParseSettings))
    settings.fragments, settings.at_hook = FRAGMENTS_PASSED, True
    memset(&row, 0, sizeof(Frame))
    row.caplen = row.len = frame.shape[0]
    row.link = LINKTYPE_ETHERNET
    d.data, d.room = &frame[0], <uint8_t *><size_t>room.ctypes.data
    d.have, d.missing, d.own, d.ethernet = row.caplen, 0, False, True
    parse(&settings, d.data, &row, 1, &p)
    edit = <const Edit *><size_t>edits.ctypes.data
    if p.l4 == NULL or not draft_edit(&d, &p, <uint32_t>(p.l4 - d.data), edit, len(edits)):
        return None
    return d.data[:d.have]

"""Checksums that a local stack has left to its NIC, completed in place.

Theory of operation: between two stacks of one machine (veth, containers, VMs) nothing calculates checksums: a TCP or UDP packet carries the sum of
its pseudo-header alone, folded and not complemented, and a note beside the packet says so, which AF_XDP does not hand over. A packet sent on like
that is dropped by whoever verifies it. So every frame is asked: is the field just that sum? That takes the headers only, and hardly any other packet
says yes; one that does is summed up, and completed if its checksum is not right as it is. SCTP leaves its CRC32c as 0, which is as rare.
Invariants: a packet with a right checksum is never changed. Nothing outside of the frame is read or written. Completing twice changes nothing.
Not here: fragments, whose sums were made before they were cut; tunnels and IPv6 extension headers other than hop-by-hop and destination options;
telling people (sums, hints). UDP-Lite is never left to a NIC.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ctcore.lowlevel cimport be16, likely, unlikely
from ctcore.tuples cimport IP6_DESTINATION, IP6_HOP_BY_HOP
from ctcore.types cimport PROTO_SCTP, PROTO_TCP, PROTO_UDP
from datapath.checksum cimport add1, crc32c, fold, load32, load64, sum_bytes
from datapath.frame cimport checked_frames
from datapath.link cimport ETHER_IPV4, ETHER_IPV6, ETHER_QINQ, ETHER_VLAN

cdef enum:
    ETH_HEADER = 14
    MOST_OPTIONS = 4            # option headers of IPv6 that are passed over
    RIGHT = 0xFFFF              # the sum of all that a right checksum covers, itself included

ctypedef struct Segment:
    uint8_t *l4
    uint32_t len                # bytes, as the IP header says
    uint32_t proto
    uint64_t ends               # sum of both addresses


cdef inline bint ipv4_segment(uint8_t *l3, uint32_t have, Segment *s) noexcept nogil:
    cdef uint32_t head, total
    if have < 20 or l3[0] >> 4 != 4:
        return False
    head, total = (l3[0] & 15) << 2, be16(l3 + 2)
    if head < 20 or total < head or total > have or be16(l3 + 6) & 0x3FFF:      # MF, or not the first fragment
        return False
    s.l4, s.len, s.proto = l3 + head, total - head, l3[9]
    s.ends = <uint64_t>load32(l3 + 12) + load32(l3 + 16)
    return True


cdef inline bint ipv6_segment(uint8_t *l3, uint32_t have, Segment *s) noexcept nogil:
    cdef uint32_t at = 40, end, size, proto, i
    if have < 40 or l3[0] >> 4 != 6:
        return False
    end, proto = 40 + be16(l3 + 4), l3[6]
    if end > have:
        return False
    for i in range(<uint32_t>MOST_OPTIONS):
        if likely(proto != IP6_HOP_BY_HOP and proto != IP6_DESTINATION):
            break
        if end - at < 8:
            return False
        size = (l3[at + 1] + 1) << 3
        if size > end - at:
            return False
        proto, at = l3[at], at + size
    s.l4, s.len, s.proto = l3 + at, end - at, proto
    s.ends = add1(add1(load64(l3 + 8), load64(l3 + 16)), add1(load64(l3 + 24), load64(l3 + 32)))
    return True


cdef inline bint segment_of(uint8_t *frame, uint32_t have, Segment *s) noexcept nogil:
    """The L4 packet of an Ethernet frame, if it is whole."""
    cdef uint32_t at = ETH_HEADER
    cdef uint16_t kind
    cdef int tag
    if have < ETH_HEADER:
        return False
    kind = be16(frame + 12)
    for tag in range(2):
        if kind != ETHER_VLAN and kind != ETHER_QINQ or have < at + 4:
            break
        kind = be16(frame + at + 2)
        at += 4
    if likely(kind == ETHER_IPV4):
        return ipv4_segment(frame + at, have - at, s)
    if kind == ETHER_IPV6:
        return ipv6_segment(frame + at, have - at, s)
    return False


cdef inline bint complete_crc(Segment *s) noexcept nogil:
    """SCTP (RFC 9260 6.8): in the packet's own, little-endian order. One that is 0 rightly is made 0 again."""
    cdef uint32_t crc
    if s.len < 12 or load32(s.l4 + 8) != 0:
        return False
    crc = crc32c(0, s.l4, s.len)
    memcpy(s.l4 + 8, &crc, 4)
    return crc != 0


cdef inline bint complete_one(uint8_t *frame, uint32_t have) noexcept nogil:
    """Whether the frame was changed."""
    cdef Segment s
    cdef uint32_t at
    cdef uint16_t field, result
    cdef uint64_t pseudo
    if not segment_of(frame, have, &s):
        return False
    if likely(s.proto == PROTO_TCP):
        at = 16
    elif s.proto == PROTO_UDP:
        at = 6
    else:
        return s.proto == PROTO_SCTP and complete_crc(&s)
    if s.len < at + 2:
        return False
    memcpy(&field, s.l4 + at, 2)
    # Sums are in the packet's byte order (datapath.checksum), so numbers are put into it, too.
    pseudo = add1(s.ends, <uint64_t>s.proto << 8)
    pseudo = add1(pseudo, (s.len & 0xFF) << 8 | (s.len >> 8 & 0xFF))
    if likely(field != fold(pseudo)) or (s.proto == PROTO_UDP and field == 0):
        return False
    if fold(sum_bytes(s.l4, s.len, pseudo)) == RIGHT:
        return False
    result = ~fold(sum_bytes(s.l4, s.len, 0))                # the field holds the pseudo-header's part already
    if s.proto == PROTO_UDP and result == 0:
        result = 0xFFFF                                     # RFC 768
    memcpy(s.l4 + at, &result, 2)
    return True


cdef int complete(uint8_t *memory, const Frame *frames, int n) noexcept nogil:
    """Complete what a stack has left of these Ethernet frames, in place. How many were changed.   Reads: offset, caplen, len."""
    cdef int i, changed = 0
    for i in range(n):
        if unlikely(frames[i].caplen < frames[i].len):       # what is missing cannot be summed
            continue
        changed += complete_one(memory + frames[i].offset, frames[i].caplen)
    return changed


def complete_frames(uint8_t[::1] memory not None, frames not None):
    """Complete checksums in place; see partial.pyi."""
    cdef const Frame *frame = checked_frames(memory, frames)
    cdef int changed, n = <int>len(frames)
    if n == 0:
        return 0
    with nogil:
        changed = complete(&memory[0], frame, n)
    return changed

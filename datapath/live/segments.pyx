"""Several TCP segments or UDP datagrams in one frame (TSO, GRO), cut up as the NIC would have done.

Theory of operation: a stack hands its NIC up to 64 KB with one set of headers and the size that segments shall have; between stacks of one machine
nobody cuts that up, and a packet socket gets it as a whole. Here each segment gets the headers once more: length, identification and checksum of
IP, sequence number, flags and checksum of TCP, or length and checksum of UDP, are its own. FIN and PSH are the last one's, CWR the first one's
(RFC 3168 6.1.2); the rest is the same in all.
Invariants: segments, put together, are the payload; none is longer than headers and `size`; nothing outside of the frame is read.
Not here: IPv6 extension headers, tunnels, VLAN tags in the frame, UFO: such frames are not cut.
"""

import numpy as np

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ctcore.lowlevel cimport be16, be32, put_be16, put_be32
from ctcore.types cimport PROTO_TCP, PROTO_UDP
from datapath.checksum cimport add1, fold, load32, load64, sum_bytes
from datapath.link cimport ETHER_IPV4, ETHER_IPV6

cdef enum:
    ETH_HEADER = 14
    FIN_PSH = 0x09
    CWR = 0x80
    TCP_FLAGS = 13


cdef bint cut_begin(Cut *cut, const uint8_t *frame, uint32_t have, int kind, uint32_t size) noexcept nogil:
    """Begin with a frame; its first segment comes next. False if it is not what `kind` (GSO_*) says, or cannot be cut."""
    cdef const uint8_t *l3 = frame + ETH_HEADER
    cdef uint32_t proto
    kind &= ~<int>GSO_ECN
    cut.frame, cut.l3, cut.size, cut.number = frame, ETH_HEADER, size, 0
    if kind not in (<int>GSO_TCP4, <int>GSO_TCP6, <int>GSO_UDP) or size == 0 or have < ETH_HEADER + 20:
        return False
    cut.v6, cut.udp = be16(frame + 12) == ETHER_IPV6, kind == GSO_UDP
    if cut.v6:
        if have < ETH_HEADER + 40:
            return False
        cut.l4, cut.end, proto = ETH_HEADER + 40, ETH_HEADER + 40 + be16(l3 + 4), l3[6]
    elif be16(frame + 12) == ETHER_IPV4 and (l3[0] & 15) >= 5:
        cut.l4, cut.end, proto = ETH_HEADER + ((l3[0] & 15) << 2), ETH_HEADER + be16(l3 + 2), l3[9]
    else:
        return False
    if cut.end > have or proto != <uint32_t>(PROTO_UDP if cut.udp else PROTO_TCP) or cut.end < cut.l4 + (8 if cut.udp else 20):
        return False
    cut.head = cut.l4 + (8 if cut.udp else frame[cut.l4 + 12] >> 4 << 2)
    cut.at = cut.head
    return cut.head >= cut.l4 + (8 if cut.udp else 20) and cut.head < cut.end


cdef uint32_t cut_length(const Cut *cut) noexcept nogil:
    """Bytes of the next segment's frame; 0: there is none."""
    return 0 if cut.at >= cut.end else cut.head + min(cut.size, cut.end - cut.at)


cdef void finish_ip(const Cut *cut, uint8_t *l3, uint32_t length) noexcept nogil:
    """length: of the frame."""
    cdef uint16_t total
    if cut.v6:
        put_be16(l3 + 4, length - cut.l4)
        return
    put_be16(l3 + 2, length - cut.l3)
    put_be16(l3 + 4, be16(cut.frame + cut.l3 + 4) + cut.number)
    l3[10] = l3[11] = 0
    total = ~fold(sum_bytes(l3, cut.l4 - cut.l3, 0))
    memcpy(l3 + 10, &total, 2)


cdef void finish_l4(const Cut *cut, uint8_t *l3, uint8_t *l4, uint32_t length, bint last) noexcept nogil:
    """length: of segment and header."""
    cdef uint64_t ends
    cdef uint16_t total
    cdef uint8_t *field = l4 + (6 if cut.udp else 16)
    if cut.udp:
        put_be16(l4 + 4, length)
    else:
        put_be32(l4 + 4, be32(cut.frame + cut.l4 + 4) + (cut.at - cut.head))
        if not last:
            l4[TCP_FLAGS] &= 0xFF ^ FIN_PSH
        if cut.number:
            l4[TCP_FLAGS] &= 0xFF ^ CWR
    if cut.v6:
        ends = add1(add1(load64(l3 + 8), load64(l3 + 16)), add1(load64(l3 + 24), load64(l3 + 32)))
    else:
        ends = <uint64_t>load32(l3 + 12) + load32(l3 + 16)
    # Sums are in the packet's byte order (datapath.checksum), so numbers are put into it, too.
    ends = add1(ends, <uint64_t>(PROTO_UDP if cut.udp else PROTO_TCP) << 8)
    ends = add1(ends, (length & 0xFF) << 8 | (length >> 8 & 0xFF))
    field[0] = field[1] = 0
    total = ~fold(sum_bytes(l4, length, ends))
    if cut.udp and total == 0:
        total = 0xFFFF                                      # RFC 768
    memcpy(field, &total, 2)


cdef uint32_t cut_next(Cut *cut, uint8_t *target) noexcept nogil:
    """Write the next segment, cut_length() bytes; their number."""
    cdef uint32_t length = cut_length(cut)
    cdef uint32_t size = length - cut.head
    if length == 0:
        return 0
    memcpy(target, cut.frame, cut.head)
    memcpy(target + cut.head, cut.frame + cut.at, size)
    finish_ip(cut, target + cut.l3, length)
    finish_l4(cut, target + cut.l3, target + cut.l4, length - cut.l4, cut.at + size == cut.end)
    cut.at += size
    cut.number += 1
    return length


def cut_up(const uint8_t[::1] frame not None, int kind, uint32_t size):
    """The segments of a frame; see segments.pyi."""
    cdef Cut cut
    cdef uint8_t[::1] target
    found = []
    if frame.shape[0] == 0 or not cut_begin(&cut, &frame[0], <uint32_t>frame.shape[0], kind, size):
        return found
    while cut_length(&cut):
        target = segment = np.empty(cut_length(&cut), dtype=np.uint8)
        cut_next(&cut, &target[0])
        found.append(segment.tobytes())
    return found

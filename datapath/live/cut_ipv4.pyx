"""An IPv4 packet cut up at an MTU, piece by piece (RFC 791 3.2): a packet that may be cut, on its way out of a router.

Theory of operation: each piece carries as many bytes as fit, a multiple of 8 in all but the last. Options go into the first piece, and those with
their copied bit set into all. A fragment is cut like a packet: offsets go on from its own, and its last piece has its MF bit.
One packet: 20 + 1,480 bytes at an MTU of 1,000: 976 bytes at offset 0, and 504 at 976.
Invariants: put together, the pieces give the packet. No piece is larger than the MTU.
Not here: checks of the header (router), datagrams that were put together from fragments (pipeline.cut).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from ctcore.lowlevel cimport be16
from datapath.checksum cimport fold, sum_bytes

cdef enum:
    FIXED = 20
    COPIED = 0x80
    END = 0
    NOP = 1
    MORE = 0x2000
    OFFSET = 0x1FFF


cdef void copy_options(Slices *s) noexcept nogil:
    """The header of later pieces. An option that breaks off ends them."""
    cdef uint32_t at = FIXED, size
    memcpy(s.later, s.packet, FIXED)
    s.later_head = FIXED
    while at < s.head and s.packet[at] != END:
        size = 1 if s.packet[at] == NOP else s.packet[at + 1] if at + 1 < s.head else 0
        if size == 0 or size > s.head - at or (size < 2 and s.packet[at] != NOP):
            break
        if s.packet[at] & COPIED:
            memcpy(&s.later[s.later_head], s.packet + at, size)
            s.later_head += size
        at += size
    while s.later_head & 3:
        s.later[s.later_head] = END
        s.later_head += 1
    s.later[0] = 0x40 | s.later_head >> 2


cdef bint slices_begin(Slices *s, const uint8_t *packet, uint32_t mtu) noexcept nogil:
    """packet: with a header that was checked, all of it there. False: not even 8 bytes fit behind a header, or it is a fragment
    that ends behind the longest packet there can be."""
    memset(s, 0, sizeof(Slices))
    s.packet, s.head, s.total, s.mtu = packet, (packet[0] & 15) << 2, be16(packet + 2), mtu
    copy_options(s)
    return s.head + 8 <= mtu and ((be16(packet + 6) & <uint32_t>OFFSET) << 3) + s.total - s.head <= 0xFFFF


cdef uint32_t slices_next(Slices *s, uint8_t *room) noexcept nogil:
    """Write the next piece to room, which has MTU bytes; its length, 0: there is none."""
    cdef uint32_t head = s.head if s.done == 0 else s.later_head
    cdef uint32_t left = s.total - s.head - s.done, size, place
    cdef uint32_t before = be16(s.packet + 6)
    cdef uint16_t value
    if left == 0:
        return 0
    size = left if head + left <= s.mtu else (s.mtu - head) & ~<uint32_t>7
    memcpy(room, s.packet if s.done == 0 else <const uint8_t *>s.later, head)
    memcpy(room + head, s.packet + s.head + s.done, size)
    place = (before & OFFSET) + (s.done >> 3) | (MORE if size < left else before & MORE)
    room[2], room[3] = (head + size) >> 8 & 0xFF, (head + size) & 0xFF
    room[6], room[7] = place >> 8 & 0xFF, place & 0xFF
    room[10] = room[11] = 0
    value = ~fold(sum_bytes(room, head, 0))
    memcpy(room + 10, &value, 2)
    s.done += size
    return head + size

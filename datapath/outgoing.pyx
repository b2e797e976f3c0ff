"""Which packets of a capture went out at their interface, as far as the capture says.

pcapng has it in the flags of an enhanced packet block (epb_flags, bits 0 and 1), Linux cooked captures in the header's packet type. Both lie in the
capture's own memory, beside the frames that a source has handed over, so that only who asks looks.
Invariant: nothing outside of the memory is read, whatever the blocks say of themselves. Not here: where such a packet goes (hooks).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

import numpy as np

from ctcore.lowlevel cimport be16, be32
from datapath.frame cimport Frame, checked_frames
from datapath.link cimport LINKTYPE_SLL, LINKTYPE_SLL2

cdef enum:
    HEAD = 28                   # bytes of an enhanced packet block before its data
    EPB = 6
    OPTION_FLAGS = 2
    OUTBOUND = 2                # of bits 0 and 1 of epb_flags
    PACKET_OUTGOING = 4         # of Linux cooked captures (linux/if_packet.h)


cdef inline uint32_t number(const uint8_t *p, bint little, int size) noexcept nogil:
    if size == 2:
        return p[0] | <uint32_t>p[1] << 8 if little else be16(p)
    return p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24 if little else be32(p)


cdef bint by_block(const uint8_t *memory, uint64_t length, uint64_t at) noexcept nogil:
    """Whether the enhanced packet block around a frame at this offset says so."""
    cdef const uint8_t *block
    cdef uint64_t size, option
    cdef uint32_t code, bytes_of
    cdef bint little
    if at < HEAD:
        return False
    block = memory + at - HEAD
    little = block[0] == EPB
    if number(block, little, 4) != EPB:
        return False
    size = number(block + 4, little, 4)
    if size < HEAD + 4 or size > length - (at - HEAD):
        return False
    option = HEAD + ((<uint64_t>number(block + 20, little, 4) + 3) & ~<uint64_t>3)
    while option + 8 <= size:                   # an option's head, and the block's length behind all of them
        code, bytes_of = number(block + option, little, 2), number(block + option + 2, little, 2)
        if code == 0:
            return False
        if code == OPTION_FLAGS:
            return bytes_of == 4 and option + 12 <= size and number(block + option + 4, little, 4) & 3 == OUTBOUND
        option += 4 + ((bytes_of + 3) & ~<uint32_t>3)
    return False


def outgoing(const uint8_t[::1] memory not None, frames not None, *, bint blocks):
    """See outgoing.pyi."""
    cdef const Frame *frame = checked_frames(memory, frames)
    cdef Py_ssize_t n = len(frames), i
    cdef const uint8_t *base = &memory[0] if memory.shape[0] else NULL
    cdef uint64_t length = memory.shape[0]
    found = np.zeros(n, dtype=np.uint8)
    cdef uint8_t[::1] said = found
    with nogil:
        for i in range(n):
            if frame[i].link == LINKTYPE_SLL:
                said[i] = frame[i].caplen >= 2 and be16(base + frame[i].offset) == PACKET_OUTGOING
            elif frame[i].link == LINKTYPE_SLL2:
                said[i] = frame[i].caplen >= 11 and base[frame[i].offset + 10] == PACKET_OUTGOING
            if blocks and not said[i]:
                said[i] = by_block(base, length, frame[i].offset)
    return found.view(bool)

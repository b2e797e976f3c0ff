# TCP options, as far as tracking needs them: window scale and SACK-permitted of a SYN, the SACK blocks of an ACK.
#
# Safety: only bytes l4[20 : doff] are read; parse() has made sure that they were captured.

from libc.stdint cimport int32_t, uint8_t, uint32_t

from ctcore.lowlevel cimport be32
from ctcore.types cimport TF_BE_LIBERAL, TF_SACK_PERM, TF_WINDOW_SCALE, Packet

cdef enum:
    OPT_END = 0
    OPT_NOP = 1
    OPT_WINDOW_SCALE = 3
    OPT_SACK_PERMITTED = 4
    OPT_SACK = 5
    OPT_TIMESTAMP = 8
    MAX_SCALE = 14              # RFC 7323 2.3


cdef inline const uint8_t *next_option(const uint8_t **at, const uint8_t *end, uint8_t *length) noexcept nogil:
    """The next option that is not padding, its length checked against what is left; NULL at the end or at nonsense."""
    cdef const uint8_t *option = at[0]
    cdef uint8_t size           # read once: the memory may be a file that is written to meanwhile
    while option < end and option[0] == OPT_NOP:
        option += 1
    if end - option < 2 or option[0] == OPT_END:
        return NULL
    size = option[1]
    if size < 2 or size > end - option:
        return NULL
    length[0] = size
    at[0] = option + size
    return option


cdef inline void read_syn_options(const Packet *p, uint8_t *scale, uint8_t *flags) noexcept nogil:
    """What a SYN offers. Without any option bytes, scale and flags stay as they were; else only be-liberal does."""
    cdef const uint8_t *at = p.l4 + 20
    cdef const uint8_t *end = p.l4 + p.doff
    cdef const uint8_t *option
    cdef uint8_t length = 0
    if at == end:
        return
    scale[0] = 0
    flags[0] &= TF_BE_LIBERAL
    while True:
        option = next_option(&at, end, &length)
        if option == NULL:
            return
        if option[0] == OPT_SACK_PERMITTED and length == 2:
            flags[0] |= TF_SACK_PERM
        elif option[0] == OPT_WINDOW_SCALE and length == 3:
            scale[0] = option[2] if option[2] < MAX_SCALE else MAX_SCALE
            flags[0] |= TF_WINDOW_SCALE


cdef inline uint32_t highest_sack(const Packet *p, uint32_t ack) noexcept nogil:
    """The highest right edge of the first SACK option if above `ack`, else `ack` (RFC 2018 3)."""
    cdef const uint8_t *at = p.l4 + 20
    cdef const uint8_t *end = p.l4 + p.doff
    cdef const uint8_t *option
    cdef uint8_t length = 0
    cdef uint32_t edge
    cdef int i
    if p.doff == 32 and be32(at) == 0x0101080A:
        return ack              # NOP NOP timestamp: what almost every segment carries
    while True:
        option = next_option(&at, end, &length)
        if option == NULL:
            return ack
        if option[0] == OPT_SACK and length >= 10 and (length - 2) % 8 == 0:
            for i in range(2, length, 8):
                edge = be32(option + i + 4)
                if <int32_t>(ack - edge) < 0:
                    ack = edge
            return ack

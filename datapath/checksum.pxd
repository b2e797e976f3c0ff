# Checksums: the one's-complement sum of RFC 1071, inline, and CRC32c.
#
# Sums are taken over native 64-bit words with end-around carry: byte order does not matter to them (RFC 1071 1.2), only the final 16 bits are
# in the packet's own order, like the field they are compared with. A packet with its checksum in place sums to 0xFFFF.
# Not here: pseudo-headers, which fields are covered (wire), incremental updates.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ctcore.lowlevel cimport prefetch

cdef enum:
    SUM_AHEAD = 4096            # bytes

cdef extern from * nogil:
    """
    /* The last 8 - n of a word's bytes, moved to its beginning; 0 < n < 8. */
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define ct_drop_bytes(word, n) ((word) >> (8 * (n)))
    #else
    #define ct_drop_bytes(word, n) ((word) << (8 * (n)))
    #endif
    """
    uint64_t ct_drop_bytes(uint64_t word, size_t n)

cdef inline uint64_t load64(const uint8_t *p) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, p, 8)
    return word

cdef inline uint32_t load32(const uint8_t *p) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, p, 4)
    return word

cdef inline uint64_t add1(uint64_t total, uint64_t word) noexcept nogil:
    """One's-complement addition: the carry comes back at the low end."""
    total += word
    return total + (total < word)

cdef inline uint64_t sum_bytes(const uint8_t *p, size_t n, uint64_t total) noexcept nogil:
    """Add n bytes, the first one at an even offset of what is summed. Four chains of additions, since each waits for its own carry.

    Each cache line asks for one further on, of this packet or the next, which lies behind it in a capture: out of memory or a far cache, the
    sums of large packets take less than two thirds of the time so. Prefetching never faults.
    """
    cdef uint64_t a = 0, b = 0, c = 0, word = 0
    cdef bint long_enough = n >= 8
    while n >= 64:
        prefetch(p + SUM_AHEAD)
        total = add1(add1(total, load64(p)), load64(p + 32))
        a = add1(add1(a, load64(p + 8)), load64(p + 40))
        b = add1(add1(b, load64(p + 16)), load64(p + 48))
        c = add1(add1(c, load64(p + 24)), load64(p + 56))
        p += 64
        n -= 64
    if n >= 32:
        total = add1(total, load64(p))
        a = add1(a, load64(p + 8))
        b = add1(b, load64(p + 16))
        c = add1(c, load64(p + 24))
        p += 32
        n -= 32
    while n >= 8:
        total = add1(total, load64(p))
        p += 8
        n -= 8
    if n > 0:
        if long_enough:                     # the last word once more, without what is summed already: no branch per byte
            word = ct_drop_bytes(load64(p + n - 8), 8 - n)
        else:
            memcpy(&word, p, n)
        total = add1(total, word)
    return add1(add1(total, a), add1(b, c))

cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """The 16-bit sum: adding a number to itself with its halves exchanged leaves the end-around sum of both in the upper half."""
    cdef uint32_t half
    total += total >> 32 | total << 32
    half = <uint32_t>(total >> 32)
    half += half >> 16 | half << 16
    return <uint16_t>(half >> 16)

cdef uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) noexcept nogil

"""Addresses in text, as Linux reads them: more leniently than inet_pton() in zeros, less so in what may follow.

Invariant: nothing outside the Text is read; an address is written only if it is whole.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

cdef enum:
    COLON = 58
    DOT = 46


cdef inline int hex_digit(int c, int end) noexcept nogil:
    """Its value, or -1; what ends the address is no digit."""
    if c == end:
        return -1
    if is_digit(c):
        return c - 48
    c = lower(c)
    return c - 87 if c >= 97 and c <= 102 else -1


cdef inline bint ends(int c, int end) noexcept nogil:
    """May an address end before c? The payload's end is one, and so is a zero byte."""
    return c == end or c == NO_CHARACTER or c == 0 or (end == ANY_END and c != COLON and c != DOT and hex_digit(c, end) < 0)


cdef uint32_t read_ip4(const Text *t, uint32_t i, int end, uint8_t *address) noexcept nogil:
    """Four numbers up to 255 with any zeros before them, and then `end` or a colon. Where that stands, or 0."""
    cdef uint8_t number[4]
    cdef uint32_t value, digits
    cdef int c, k
    for k in range(4):
        value = digits = 0
        while is_digit(byte_at(t, i)):
            value = value * 10 + <uint32_t>(byte_at(t, i) - 48)
            if value > 255:
                return 0
            digits = 1
            i += 1
        c = byte_at(t, i)
        if not digits or (c != DOT if k < 3 else not (ends(c, end) or c == COLON)):
            return 0
        number[k] = <uint8_t>value
        i += k < 3
    memcpy(address, number, 4)
    return i


cdef inline uint32_t group_end(const Text *t, uint32_t i, int end, uint32_t *value) noexcept nogil:
    """Behind a group of hexadecimal digits, its value up to 16 bits; 0 if there is none."""
    cdef uint32_t start = i
    value[0] = 0
    while hex_digit(byte_at(t, i), end) >= 0:
        if value[0] & 0xF000:
            return 0
        value[0] = value[0] << 4 | <uint32_t>hex_digit(byte_at(t, i), end)
        i += 1
    return i if i > start else 0


cdef uint32_t finish_ip6(const uint8_t *found, uint32_t n, uint32_t gap, uint32_t i, uint8_t *address) noexcept nogil:
    memset(address, 0, 16)
    memcpy(address, found, gap)
    memcpy(address + 16 - (n - gap), found + gap, n - gap)
    return i


cdef uint32_t read_ip6(const Text *t, uint32_t i, int end, uint8_t *address) noexcept nogil:
    """Groups of hexadecimal digits with any zeros before them, one `::` or none, an IPv4 address as the last two. Where it ends, or 0.

    With `::` there may be eight groups all the same, since it may stand for none. An IPv4 address may end before a colon.
    """
    cdef uint8_t found[16]
    cdef uint32_t n = 0, gap = 16, value, stop
    if end == COLON:
        return 0
    if byte_at(t, i) == COLON:
        if byte_at(t, i + 1) != COLON:
            return 0
        gap = 0
        i += 2
        if ends(byte_at(t, i), end):
            return finish_ip6(found, n, gap, i, address)
    while True:
        stop = group_end(t, i, end, &value)
        if stop == 0:
            return 0
        if byte_at(t, stop) == DOT and end != DOT:
            # As the last four bytes only, or behind a gap with room for them.
            if n > 12 or (gap == 16 and n != 12):
                return 0
            stop = read_ip4(t, i, end, &found[n])
            return finish_ip6(found, n + 4, min(gap, n + 4), stop, address) if stop else 0
        i = stop
        found[n] = <uint8_t>(value >> 8)
        found[n + 1] = <uint8_t>value
        n += 2
        if n == 16 or byte_at(t, i) != COLON:
            break
        i += 1
        if byte_at(t, i) == COLON:
            if gap != 16:
                return 0
            gap = n
            i += 1
            if ends(byte_at(t, i), end):
                break
    if not ends(byte_at(t, i), end) or (gap == 16 and n != 16):
        return 0
    return finish_ip6(found, n, min(gap, n), i, address)

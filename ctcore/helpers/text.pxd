# Payload as text: words, numbers and addresses, as far as it goes. What is beyond the end has the value -1, which is no character.
#
# Invariant: no function reads outside at[0:size]. Not here: what a protocol means by its words.

from libc.stdint cimport uint8_t, uint32_t

ctypedef struct Text:
    const uint8_t *at
    uint32_t size

cdef enum:
    NO_CHARACTER = -1
    ANY_END = -2                # an address ends where it cannot go on


cdef inline int byte_at(const Text *t, uint32_t i) noexcept nogil:
    # Each branch as int: of a byte and a constant Cython would make a byte, and NO_CHARACTER 255.
    return <int>t.at[i] if i < t.size else <int>NO_CHARACTER


cdef inline bint is_digit(int c) noexcept nogil:
    return c >= 48 and c <= 57


cdef inline int lower(int c) noexcept nogil:
    return c + 32 if c >= 65 and c <= 90 else c


cdef inline bint word_at(const Text *t, uint32_t i, const char *word, uint32_t n) noexcept nogil:
    """Do the n characters of word stand at i, in whatever case?"""
    cdef uint32_t k
    for k in range(n):
        if lower(byte_at(t, i + k)) != lower(<uint8_t>word[k]):
            return False
    return True


cdef inline bint bytes_at(const Text *t, uint32_t i, const char *word, uint32_t n) noexcept nogil:
    """The same, case and all."""
    cdef uint32_t k
    for k in range(n):
        if byte_at(t, i + k) != <uint8_t>word[k]:
            return False
    return True


cdef uint32_t read_ip4(const Text *t, uint32_t i, int end, uint8_t *address) noexcept nogil
cdef uint32_t read_ip6(const Text *t, uint32_t i, int end, uint8_t *address) noexcept nogil

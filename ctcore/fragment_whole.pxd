# Datagrams put together; see fragment_whole.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ctcore.fragment_store cimport Store

# A datagram put together. Offsets count in the finished memory, which holds it until fragments_release(); there, this stands in front of its parts.
ctypedef struct Whole:
    uint64_t frame              # of a fragment's link header; the datagram follows it
    uint64_t parts              # of Part[n_parts], by offset
    uint64_t number             # of the completing packet
    uint32_t n_parts
    uint32_t link_length
    uint32_t length             # of the IP datagram
    uint32_t have               # of these, captured bytes: its beginning up to the first that is missing
    uint32_t largest            # bytes of the largest fragment from its IP header on
    uint32_t ident              # their identification
    uint8_t dont                # IPv4: the largest fragment had its DF bit set
    uint8_t reason

ctypedef struct Part:
    uint64_t number             # of the packet that brought it
    uint32_t offset
    uint32_t length

# The memory they lie in.
ctypedef struct Finished:
    uint8_t *memory
    size_t size
    size_t used
    bint reserved               # since the last release

cdef enum:
    BAD_ECN = 0xFF              # of joint_ecn()
    FRAGMENT_ROOM = 768         # finished memory that a fragment may take beside its bytes: link header, Part, alignment

cdef inline size_t fragments_room(uint32_t size) noexcept nogil:
    """What has to be reserved for a fragment of `size` captured bytes with its link header."""
    return size + FRAGMENT_ROOM

cdef inline size_t finished_next(size_t at) noexcept nogil:
    """Where in the finished memory a Whole begins, from `at` on: behind the end of the one before."""
    return (at + 15) & ~<size_t>15

cdef inline uint8_t *datagram_at(const Finished *f, const Whole *whole) noexcept nogil:
    return f.memory + whole.frame + whole.link_length

cdef void finished_reserve(Finished *f, size_t need) noexcept nogil
cdef void finished_release(Finished *f) noexcept nogil
cdef uint8_t joint_ecn(uint8_t seen) noexcept nogil
cdef uint32_t captured(const Store *s, uint32_t run) noexcept nogil
cdef bint write_datagram(Finished *f, const Store *s, uint32_t run, const uint8_t *link, Whole *whole) noexcept nogil
cdef void mend4(uint8_t *ip, uint32_t head, uint32_t total, uint8_t ecn, bint dont) noexcept nogil
cdef void mend6(uint8_t *ip, uint32_t next_at, uint8_t next_type, uint32_t total, uint8_t ecn) noexcept nogil

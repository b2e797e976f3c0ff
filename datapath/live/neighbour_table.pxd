# Neighbours by interface and address, and those that somebody should ask for; see neighbour_table.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ctcore.lowlevel cimport mul_fold
from datapath.live.routes cimport Address

cdef enum:
    NO_NEIGHBOUR = 0xFFFFFFFF
    MOST_WANTED = 64            # that are asked for at a time

cpdef enum NeighbourState:
    NEIGHBOUR_KNOWN = 0
    NEIGHBOUR_STALE = 1         # known, but not for sure: to be confirmed when it is used
    NEIGHBOUR_ASKED = 2         # likewise, and somebody has been told to confirm it
    NEIGHBOUR_FAILED = 3        # does not answer

ctypedef struct Neighbour:
    Address address
    uint32_t link               # 2 * ordinal of its interface, + 1 for IPv6
    uint32_t next               # in its chain, or among the free ones
    uint8_t[6] mac
    uint8_t state

ctypedef struct Asked:
    Address address
    uint32_t link

ctypedef struct Neighbours:
    uint32_t *head
    Neighbour *row
    uint32_t mask               # of heads
    uint32_t capacity
    uint32_t n
    uint32_t free
    uint64_t[3] secret
    Asked[MOST_WANTED] wanted
    uint32_t n_wanted
    uint64_t asked
    uint64_t not_asked          # there was no place among the wanted
    uint64_t refused            # neighbours for which there was no place
    uint64_t changes            # of the table: whoever waits for one looks again
    int bell                    # an eventfd: rings when the first one is wanted

cdef inline uint32_t neighbour_home(const Neighbours *all, Address a, uint32_t link) noexcept nogil:
    cdef uint64_t h = mul_fold(a.hi ^ all.secret[0], a.lo ^ all.secret[1])
    return <uint32_t>(mul_fold(h ^ link, all.secret[2]) >> 32) & all.mask

cdef inline Neighbour *neighbour_find(const Neighbours *all, Address a, uint32_t link) noexcept nogil:
    cdef uint32_t at = all.head[neighbour_home(all, a, link)]
    cdef Neighbour *one
    while at != NO_NEIGHBOUR:
        one = &all.row[at]
        if one.address.lo == a.lo and one.address.hi == a.hi and one.link == link:
            return one
        at = one.next
    return NULL

cdef void neighbour_want(Neighbours *all, Address a, uint32_t link) noexcept nogil

cdef class NeighbourTable:
    cdef Neighbours all
    cdef int put_one(self, Address a, uint32_t link, object mac, uint8_t state) except -1
    cdef bint drop_one(self, Address a, uint32_t link) except -1

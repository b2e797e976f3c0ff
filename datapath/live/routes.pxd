# Routes, and the one whose prefix is the longest that an address lies in; see routes.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ctcore.lowlevel cimport be32

cdef enum:
    MOST_ROUTES = 8192          # of a family, own addresses included
    MOST_LENGTHS = 129

cpdef enum RouteKind:
    ROUTE_VIA = 0               # to a gateway
    ROUTE_LINK = 1              # the destination itself is a neighbour
    ROUTE_OWN = 2               # an address of this machine
    ROUTE_GROUP = 3             # broadcast, multicast
    ROUTE_UNREACHABLE = 4
    ROUTE_PROHIBIT = 5
    ROUTE_BLACKHOLE = 6

# An address as two numbers, left-aligned: IPv4 in the upper half of the first.
ctypedef struct Address:
    uint64_t hi
    uint64_t lo

ctypedef struct Route:
    Address prefix
    Address via
    uint32_t iface              # ordinal
    uint8_t kind

# Routes of one prefix length, which follow each other in order.
ctypedef struct Length:
    Address mask
    uint32_t first
    uint32_t end

ctypedef struct Routes:
    Route[MOST_ROUTES] row
    Length[MOST_LENGTHS] length # the longest first
    int n_lengths

cdef inline Address address4(const uint8_t *ip) noexcept nogil:
    cdef Address a
    a.hi, a.lo = <uint64_t>be32(ip) << 32, 0
    return a

cdef inline Address address6(const uint8_t *ip) noexcept nogil:
    cdef Address a
    a.hi, a.lo = <uint64_t>be32(ip) << 32 | be32(ip + 4), <uint64_t>be32(ip + 8) << 32 | be32(ip + 12)
    return a

cdef inline const Route *route_find(const Routes *all, Address a) noexcept nogil:
    """The route to an address, or NULL."""
    cdef const Length *length
    cdef const Address *there
    cdef uint64_t hi, lo
    cdef uint32_t low, high, mid
    cdef int i
    for i in range(all.n_lengths):
        length = &all.length[i]
        hi, lo = a.hi & length.mask.hi, a.lo & length.mask.lo
        low, high = length.first, length.end
        while low < high:
            mid = (low + high) >> 1
            there = &all.row[mid].prefix
            if there.hi < hi or (there.hi == hi and there.lo < lo):
                low = mid + 1
            else:
                high = mid
        if low < length.end and all.row[low].prefix.hi == hi and all.row[low].prefix.lo == lo:
            return &all.row[low]
    return NULL

cdef Address number_of(object address) except *

cdef class RouteTable:
    cdef Routes[2] all          # by family: IPv4, IPv6
    cdef readonly int n

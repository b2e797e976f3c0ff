# A small router: which way a frame goes, what is changed in it, and what its sender is told if it goes none; see router.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from datapath.live.icmp_errors cimport Limits
from datapath.live.neighbour_table cimport Neighbours, NeighbourTable
from datapath.live.routes cimport Address, Route, Routes, RouteTable
from datapath.live.unresolved cimport Unresolved

cdef enum:
    MOST_STATIONS = 64
    ETH = 14                    # bytes of an Ethernet header
    ANSWER_ROOM = 1294          # of the largest error, with it

# What becomes of a frame. From WAY_MALFORMED on it is dropped; ERRORS in router.pyx says of which its sender is told.
cpdef enum Way:
    WAY_ON = 0
    WAY_CUT = 1                 # on, in pieces
    WAY_MALFORMED = 2           # an IP header that says what cannot be
    WAY_NOT_IP = 3
    WAY_OTHER_MAC = 4           # to another station
    WAY_GROUP = 5               # broadcast or multicast
    WAY_MARTIAN = 6             # from or to an address that no packet on a wire has
    WAY_SOURCE_ROUTED = 7
    WAY_OWN = 8                 # to an address of this machine
    WAY_NO_ROUTE = 9
    WAY_PROHIBITED = 10
    WAY_BLACKHOLE = 11
    WAY_TTL = 12
    WAY_TOO_BIG = 13
    WAY_NO_NEIGHBOUR = 14       # not known yet
    WAY_UNREACHABLE = 15        # the neighbour does not answer
    WAY_DOWN = 16               # the interface does not work
    N_WAYS = 17

# What the loop needs of a frame's way.
ctypedef struct Step:
    uint32_t out                # ordinal of the interface it leaves by
    uint32_t mtu                # of that
    uint32_t length             # of the IP packet
    uint8_t way
    uint8_t six
    uint8_t[12] macs            # the first bytes of the frame that leaves

# An interface, by ordinal.
ctypedef struct Station:
    uint8_t[6] mac
    uint32_t mtu
    uint8_t routed              # frames that pass there are routed
    uint8_t up
    uint8_t[2] has              # an address, by family
    uint8_t[2][16] address      # that errors come from

ctypedef struct RouterCounts:
    uint64_t[N_WAYS] way
    uint64_t told               # errors made
    uint64_t untold             # about a packet that must not be answered
    uint64_t peer_limited
    uint64_t limited
    uint64_t no_way_back        # to whom an error would go, there is no route, or no neighbour

cdef bint later_fragment(const uint8_t *frame, uint32_t have) noexcept nogil
cdef bint same_ends(const uint8_t *frame, const uint8_t *other, uint32_t have) noexcept nogil

cdef class Router:
    cdef readonly tuple names
    cdef readonly RouteTable routes
    cdef readonly NeighbourTable neighbours
    cdef readonly Unresolved unresolved     # frames that wait for one
    cdef Routes *route          # by family
    cdef Neighbours *near
    cdef Station[MOST_STATIONS] station
    cdef Limits limits
    cdef RouterCounts counts
    cdef uint16_t ident

    cdef void look(self, const uint8_t *frame, uint32_t have, uint32_t at, Step *step) noexcept nogil
    cdef uint8_t towards(self, const uint8_t *packet, Step *step) noexcept nogil
    cdef uint8_t reach(self, const Route *route, Address a, Step *step) noexcept nogil
    cdef void give_up(self, Step *step) noexcept nogil
    cdef bint next_hop(self, const uint8_t *packet, bint six, Address *a, uint32_t *link) noexcept nogil
    cdef bint ours(self, const uint8_t *mac) noexcept nogil
    cdef uint32_t tell(
        self, const Step *step, const uint8_t *frame, uint32_t have, uint32_t at, int64_t now, uint8_t *room, Step *back
    ) noexcept nogil
    cdef const uint8_t *source_of(self, uint32_t at, bint six) noexcept nogil

cdef inline void router_move(uint8_t *frame, const Step *step) noexcept nogil:
    """A frame that goes on: its stations, and one hop less. The checksum changes by what its word does (RFC 1624, equation 3)."""
    cdef uint32_t total
    memcpy(frame, step.macs, 12)
    if step.six:
        frame[ETH + 7] -= 1
        return
    frame[ETH + 8] -= 1
    total = (<uint32_t>frame[ETH + 10] << 8 | frame[ETH + 11]) + 0x0100
    total += total >= 0xFFFF                                     # the carry comes back; and 0xFFFF never comes out, as in Linux
    frame[ETH + 10], frame[ETH + 11] = total >> 8 & 0xFF, total & 0xFF

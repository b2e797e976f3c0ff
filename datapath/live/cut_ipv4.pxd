# An IPv4 packet cut up on its way out; see cut_ipv4.pyx.

from libc.stdint cimport uint8_t, uint32_t

# Work in progress. head: the packet's header; later: that of all pieces but the first.
ctypedef struct Slices:
    const uint8_t *packet
    uint32_t head
    uint32_t total
    uint32_t done               # bytes behind the header
    uint32_t mtu
    uint32_t later_head
    uint8_t[60] later

cdef bint slices_begin(Slices *s, const uint8_t *packet, uint32_t mtu) noexcept nogil
cdef uint32_t slices_next(Slices *s, uint8_t *room) noexcept nogil

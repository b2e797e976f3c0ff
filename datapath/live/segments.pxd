# Several TCP segments or UDP datagrams in one frame, cut up as the NIC would have done; see segments.pyx.

from libc.stdint cimport uint8_t, uint32_t

cdef enum:                      # gso_type of linux/virtio_net.h
    GSO_NONE = 0
    GSO_TCP4 = 1
    GSO_TCP6 = 4
    GSO_UDP = 5
    GSO_ECN = 0x80              # beside GSO_TCP*: the first segment alone has CWR

ctypedef struct Cut:
    const uint8_t *frame
    uint32_t l3                 # offsets of headers in the frame
    uint32_t l4
    uint32_t head               # bytes of all headers
    uint32_t end                # of the IP packet
    uint32_t size               # bytes of payload of each segment but the last
    uint32_t at                 # where the next one's payload begins
    uint32_t number             # of the next one
    bint v6
    bint udp

cdef bint cut_begin(Cut *cut, const uint8_t *frame, uint32_t have, int kind, uint32_t size) noexcept nogil
cdef uint32_t cut_length(const Cut *cut) noexcept nogil
cdef uint32_t cut_next(Cut *cut, uint8_t *target) noexcept nogil

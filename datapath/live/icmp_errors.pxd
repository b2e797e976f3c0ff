# ICMP errors about packets that cannot be forwarded: which may be made, their bytes, how many; see icmp_errors.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    ERROR_ROOM = 1280           # bytes of the largest error, from its IP header on
    PEERS = 1024                # buckets for those whom errors are sent to

# What an error says, by family.
ctypedef struct Said:
    uint8_t type
    uint8_t code
    uint32_t word               # the second one of its header: an MTU, or 0

# Time is credit: an error costs `cost` ns of it, and no more than `most` is saved.
ctypedef struct Budget:
    int64_t credit
    int64_t last

ctypedef struct Limits:
    int64_t cost                # 0: none at all
    int64_t most
    int64_t peer_cost           # 0: no limit
    int64_t peer_most
    Budget all
    Budget[PEERS] peer
    uint64_t[2] secret

cdef void limits_set(Limits *limits, double rate, double burst, double peer_rate, double peer_burst) except *
cdef bint limits_peer(Limits *limits, const uint8_t *address, bint six, int64_t now) noexcept nogil
cdef bint limits_all(Limits *limits, int64_t now) noexcept nogil
cdef bint may_be_answered(const uint8_t *packet, uint32_t have) noexcept nogil
cdef uint32_t write_error(uint8_t *room, const uint8_t *packet, const uint8_t *source, const Said *said, uint16_t ident) noexcept nogil

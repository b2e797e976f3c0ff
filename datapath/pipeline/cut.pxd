# Cutting up a datagram, piece by piece; see cut.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from ctcore.fragment_whole cimport Part, Whole
from ctcore.types cimport Decision, Packet, Rewrite
from datapath.pipeline.draft cimport Draft

cdef enum:
    PIECE_ROOM = 1 << 17        # bytes that a piece may take: the largest packet behind the longest link header

# What is known of the fragments that a draft was put together from. whole: NULL: it was not.
ctypedef struct Origin:
    const Whole *whole
    const Part *part            # n_parts of them
    uint32_t carried            # bytes of all parts
    uint32_t joined             # of these, so many are in one piece by now, from the first on
    uint8_t verified            # a checksum was looked for in it (sysctl checksum)

# Work in progress. Lengths are of what the datagram carries behind the headers that every piece repeats.
ctypedef struct Cutting:
    const Origin *origin
    const uint8_t *frame        # link header and packet
    uint32_t have
    uint32_t l3
    uint32_t head               # bytes of headers that are repeated, IPv6: without the fragment header
    uint32_t next_at            # IPv6: where in them the type of what follows stands
    int64_t moved               # bytes that the first part has lost to the headers
    uint32_t total
    uint32_t most               # in a piece
    uint32_t step               # in each but the last one, if the datagram is cut anew
    uint32_t done
    uint32_t part               # the next one, within the old borders
    uint8_t six
    uint8_t kept                # the old borders are used
    uint8_t uncut               # it leaves as one packet
    uint8_t *room               # PIECE_ROOM bytes
    uint32_t size               # of the piece there
    uint32_t missing            # bytes behind it that were not captured

cdef void origin_of(Origin *origin, const uint8_t *finished, const Whole *whole, bint verified) noexcept nogil
cdef void origin_joined(Origin *origin, const Packet *p, const Decision *d, const Rewrite *r) noexcept nogil
cdef bint cut_begin(Cutting *c, const Origin *origin, const Draft *d, uint8_t *room) noexcept nogil
cdef bint cut_next(Cutting *c) noexcept nogil

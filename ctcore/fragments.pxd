# Reassembly: the structs, and what the datapath calls; see fragments.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ctcore.fragment_queues cimport Waiting
from ctcore.fragment_whole cimport Finished, Whole
from ctcore.types cimport Key

cdef enum FragmentOutcome:
    FRAGMENT_HELD
    FRAGMENT_DROPPED            # for a reason
    FRAGMENT_WHOLE              # it completed its datagram
    FRAGMENT_PASSED             # none of reassembly's business: to be tracked as it is

# A fragment as it came. The pointers are only read during the call.
ctypedef struct Fragment:
    Key key                     # addresses, zone, protocol (IPv6: 0); the ports are the identification's two halves
    const uint8_t *link         # what stood before the IP header
    const uint8_t *head         # what the datagram will begin with if this is its first part; IPv6: up to the fragment header
    const uint8_t *data         # `have` bytes of payload
    uint32_t link_length
    uint32_t head_length
    uint32_t offset             # of the payload in what the datagram carries
    uint32_t length             # of the payload
    uint32_t have
    uint32_t size               # of the whole fragment from its IP header on
    uint32_t next_at            # IPv6: where in head the type of the header behind it stands
    uint8_t next                # IPv6: which type that is to become
    uint8_t more
    uint8_t dont                # IPv4: its DF bit
    uint8_t ecn                 # two bits
    uint8_t first_link          # the datagram gets the link header of its first fragment, or else of the completing one
    uint64_t number             # of its packet

ctypedef struct Fragments:
    Waiting waiting
    Finished finished
    int64_t tick_ns

cdef uint8_t fragment_add(Fragments *all, const Fragment *f, uint64_t tick, Whole *whole) noexcept nogil
cdef void fragments_expire(Fragments *all, uint64_t tick) noexcept nogil
cdef void fragments_reserve(Fragments *all, size_t coming) noexcept nogil
cdef void fragments_release(Fragments *all) noexcept nogil


cdef class Reassembler:
    cdef Fragments all
    cdef readonly object config
    cdef int64_t now

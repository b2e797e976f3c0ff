# Reassembly: the structs, and what the datapath calls; see fragments.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ctcore.fragment_store cimport Runs, Store
from ctcore.hashing cimport HashKey
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
    uint64_t number             # of its packet

# A datagram put together. Offsets count in the finished memory, which holds it until fragments_release(); there, this stands in front of its parts.
ctypedef struct Whole:
    uint64_t frame              # of the link header of the completing fragment; the datagram follows it
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

# A datagram that is not whole yet.
ctypedef struct Queue:
    Key key
    uint64_t deadline           # tick
    Runs runs
    uint32_t next               # in its chain, or in the list of free ones; one more than the number
    uint32_t older              # by deadline
    uint32_t younger
    uint32_t charge             # bytes that it counts for
    uint32_t length             # of what the datagram carries, as far as known
    uint32_t come               # bytes of that which are here
    uint32_t pieces
    uint32_t largest
    uint32_t largest_dont       # the same of fragments with DF
    uint32_t hash
    uint32_t peer               # IPv4: its source; and how many fragments that had sent when the last one of these came
    uint32_t seen
    uint32_t next_at
    uint8_t next_type
    uint8_t flags
    uint8_t ecn                 # a bit for each value seen

# The sources of IPv4 fragments, with how many each has sent since it has a datagram here.
ctypedef struct Peer:
    uint32_t source
    uint32_t sent
    uint32_t datagrams
    uint32_t next

ctypedef struct FragmentCounters:
    uint64_t datagrams          # put together
    uint64_t duplicate          # fragments dropped
    uint64_t malformed
    uint64_t overlap
    uint64_t memory
    uint64_t died_timeout       # datagrams given up
    uint64_t died_overlap
    uint64_t died_malformed
    uint64_t died_too_far
    uint64_t lost               # fragments that were held for these

# Of one IP version.
ctypedef struct Side:
    Store store
    Queue *queue
    uint32_t *chain             # one more than the first queue's number; 0: none
    Peer *peer
    uint32_t *peer_chain
    uint32_t n_chains           # a power of two, of both
    uint32_t n_queues
    uint32_t used               # queues ever handed out
    uint32_t free
    uint32_t live
    uint32_t peers_used
    uint32_t peers_free
    uint32_t oldest
    uint32_t youngest
    uint32_t max_dist
    uint64_t charge             # bytes that all of it counts for
    uint64_t limit
    uint64_t timeout            # ticks
    uint8_t *memory
    size_t size

ctypedef struct Fragments:
    Side side[2]                # IPv4, IPv6
    HashKey hash_key
    FragmentCounters count
    int64_t tick_ns
    uint8_t *finished           # datagrams put together
    size_t finished_size
    size_t finished_used
    bint reserved               # since the last release

cdef enum:
    FRAGMENT_ROOM = 768         # finished memory that a fragment may take beside its bytes: link header, Part, alignment

cdef inline size_t fragments_room(uint32_t size) noexcept nogil:
    """What has to be reserved for a fragment of `size` captured bytes with its link header."""
    return size + FRAGMENT_ROOM

cdef inline size_t finished_next(size_t at) noexcept nogil:
    """Where in the finished memory a Whole begins, from `at` on: behind the end of the one before."""
    return (at + 15) & ~<size_t>15

cdef uint8_t fragment_add(Fragments *all, const Fragment *f, uint64_t tick, Whole *whole) noexcept nogil
cdef void fragments_expire(Fragments *all, uint64_t tick) noexcept nogil
cdef void fragments_reserve(Fragments *all, size_t coming) noexcept nogil
cdef void fragments_release(Fragments *all) noexcept nogil


cdef class Reassembler:
    cdef Fragments all
    cdef readonly object config
    cdef int64_t now

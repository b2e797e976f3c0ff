# Datagrams that are not whole yet; see fragment_queues.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ctcore.fragment_store cimport Runs, Store
from ctcore.hashing cimport HashKey
from ctcore.types cimport Key

cdef enum:
    FRAGMENT_CHARGE = 576       # bytes, beside its own
    QUEUE_CHARGE = 256

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

ctypedef struct Waiting:
    Side side[2]                # IPv4, IPv6
    HashKey hash_key
    FragmentCounters count

cdef inline void charge(Side *s, Queue *q, uint32_t amount) noexcept nogil:
    q.charge += amount
    s.charge += amount

cdef int side_init(Side *s, uint64_t limit, uint64_t timeout, uint32_t max_dist, uint64_t secret) except -1
cdef Queue *queue_of(Waiting *all, Side *s, const Key *key, uint64_t tick) noexcept nogil
cdef uint32_t queue_end(Waiting *all, Side *s, Queue *q) noexcept nogil
cdef void queue_die(Waiting *all, Side *s, Queue *q, uint64_t *counter) noexcept nogil
cdef void queues_expire(Waiting *all, uint64_t tick) noexcept nogil
cdef void heed_distance(Waiting *all, Side *s, Queue *q, uint64_t tick) noexcept nogil
cdef str side_fault(const Waiting *all, Side *s)

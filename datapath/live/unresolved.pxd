# Frames whose next hop's MAC address is not known yet, as long as they wait for it; see unresolved.pyx.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from datapath.live.neighbour_table cimport Neighbours
from datapath.live.routes cimport Address
from datapath.live.umem cimport Pool, Umem

cdef enum:
    MOST_HOPS = 64              # next hops that are waited for at a time
    MOST_EACH = 16              # frames that wait for one
    MOST_WAITING = 256          # frames in all
    PART = 8                    # one chunk in so many of a worker's

# A frame. Its chunks are held; a frame that rules have changed has two of them.
ctypedef struct Waiting:
    uint64_t offset             # as its rules have left it
    uint64_t came               # as it came, to be quoted by an error; the same as `offset` if that is the same
    uint32_t size
    uint32_t have               # bytes as it came
    uint32_t at                 # ordinal of the interface that it came to
    int32_t next                # of the same hop, or among the free places

ctypedef struct Hop:
    Address address
    uint32_t link               # as a Neighbour's
    int32_t n                   # frames; 0: nobody waits for it
    int32_t first
    int32_t last
    int64_t until               # ns; then its frames have waited long enough
    int64_t again               # ns; then it is asked for again

cdef class Unresolved:
    cdef Umem umem
    cdef Pool *pool
    cdef uint32_t room          # chunks that may be held here
    cdef uint32_t chunks        # that are
    cdef int n_hops
    cdef int32_t free           # list of places for frames
    cdef uint64_t changes       # of the neighbours, as they were looked at last
    cdef int64_t looked         # ns; when that was
    cdef uint64_t held
    cdef uint64_t dropped
    cdef Hop[MOST_HOPS] hop
    cdef Waiting[MOST_WAITING] frame

    cdef int begin(self, Umem umem, int worker) except -1
    cdef void put(self, const Waiting *one, Address a, uint32_t link, int64_t now) noexcept nogil
    cdef bint take(self, Neighbours *near, int64_t now, Waiting *one) noexcept nogil
    cdef Hop *place_of(self, Address a, uint32_t link) noexcept nogil
    cdef bint make_room(self, uint32_t chunks) noexcept nogil
    cdef void pop(self, Hop *hop, Waiting *one) noexcept nogil
    cdef void drop_first(self, Hop *hop) noexcept nogil
    cdef void give(self, const Waiting *one) noexcept nogil

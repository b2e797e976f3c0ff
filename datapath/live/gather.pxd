# Whose fragments are; see gather.pyx.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from ctcore.types cimport Key
from datapath.frame cimport Frame
from datapath.live.steer cimport Course

cdef enum:
    WAYS = 8                    # datagrams that have a bucket in common
    DATAGRAMS = 1024            # known at a time
    WAITING = 128               # fragments that wait
    NO_FRAME = -1
    MOST_RELEASED = WAITING + 1

ctypedef struct Datagram:
    Key key
    int64_t until               # ns; it is forgotten then; 0: no datagram
    uint32_t owner              # NO_OWNER: the first fragment has not come
    uint32_t seen               # bytes
    uint32_t whole              # 0: the last fragment has not come
    int32_t first               # that waits, or NO_FRAME
    int32_t last

ctypedef struct GatherCounts:
    uint64_t waited             # fragments that came before the first one of their datagram
    uint64_t late               # of these, dropped since it did not come in time
    uint64_t crowded            # dropped since too many waited, or too many datagrams were known
    uint64_t untold             # first fragments, dropped since they do not hold their ports

cdef class Gatherer:
    cdef GatherCounts counts
    cdef Datagram *datagram
    cdef int n_waiting
    cdef int64_t next_look      # ns
    cdef int32_t free           # list of places for waiting fragments
    cdef Frame[WAITING] waiting
    cdef int32_t[WAITING] next
    cdef Frame[MOST_RELEASED] released  # what waited for the fragment of the last call of gather()
    cdef int n_released
    cdef uint64_t[MOST_RELEASED] dropped    # chunks whose fragments will not go on; whoever calls gather() or look() empties it
    cdef int n_dropped
    cdef uint32_t gather(self, const Course *course, const Frame *frame, int64_t now) noexcept nogil
    cdef Datagram *find(self, const Key *key, int64_t now) noexcept nogil
    cdef void give(self, Datagram *d) noexcept nogil
    cdef void drop_waiting(self, Datagram *d, uint64_t *count) noexcept nogil
    cdef bint keep(self, Datagram *d, const Frame *frame) noexcept nogil
    cdef void look(self, int64_t now) noexcept nogil

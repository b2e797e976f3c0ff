# Frames from worker to worker; see handoff.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ctcore.strays cimport Strays, StrayTable
from datapath.frame cimport Frame
from datapath.live.gather cimport Gatherer
from datapath.live.lane cimport Lane, Post
from datapath.live.umem cimport Pool, Umem

ctypedef struct HandoffCounts:
    uint64_t handed             # frames handed over to others
    uint64_t taken              # frames that others have handed over
    uint64_t lane_full          # frames dropped since the lane to their owner was full

# All lanes and posts, which the workers' ends share.
cdef class Exchange:
    cdef readonly Umem umem
    cdef readonly int workers
    cdef readonly tuple ends
    cdef readonly StrayTable strays     # what the first worker's helpers have announced
    cdef void *memory
    cdef Lane *lane             # from * workers + to
    cdef Post *post             # by worker

    cdef int lay_out(self) except -1

# What one worker has of it.
cdef class Handoff:
    cdef readonly int worker
    cdef readonly uint32_t workers
    cdef readonly Gatherer gatherer
    cdef Exchange exchange      # keeps the memory
    cdef Lane *lane
    cdef Post *post
    cdef Strays *strays
    cdef Pool *pool
    cdef HandoffCounts counts
    cdef uint64_t *owed         # chunks, by worker

    cdef int sort(self, Frame *rows, int n) noexcept nogil
    cdef void hand(self, uint32_t to, const Frame *frame, bint gathers) noexcept nogil
    cdef void publish_all(self) noexcept nogil
    cdef int take(self, uint32_t source, Frame *rows, int most) noexcept nogil
    cdef int pressed(self, uint32_t source) noexcept nogil
    cdef int gathered(self, const Frame *frame, Frame *rows) noexcept nogil
    cdef void drop_gathered(self) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef void look(self, int64_t now) noexcept nogil
    cdef bint may_sleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil

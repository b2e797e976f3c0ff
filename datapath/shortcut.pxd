# Shortcuts: verdicts of the rules remembered by flow; see shortcut.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.hashing cimport HashKey
from ctcore.table cimport Bucket
from ctcore.types cimport Key
from ctcore.tracker cimport Tracker
from datapath.pipeline.flower cimport FlowerKey
from datapath.pipeline.level cimport Result
from datapath.pipeline.program cimport Count, Program
from datapath.pipeline.trail cimport MOST_CTS, MOST_STEPS

cdef enum:
    NO_SHORTCUT = 0xFFFFFFFF
    NO_PLAN = 0xFFFFFFFF

# What becomes of a packet, and whose counters say so. All flows that go the same way through the rules share it.
ctypedef struct Plan:
    Result result
    uint64_t packets            # that took a shortcut to it, without walking
    uint64_t bytes
    uint64_t behind             # of these, bytes behind the IP packet, which rules after the first `ct` do not see
    int64_t last                # ns
    uint32_t[MOST_STEPS] step
    uint32_t hash
    uint32_t next               # in the chain of its hash; of a free one: the next free one
    uint32_t named              # by so many shortcuts; by none: it is free
    uint32_t rules              # which they were: see Shortcuts.rules
    uint16_t n_steps
    uint8_t plain               # nothing is to be done but to forward, or drop
    uint8_t untouched           # and it leaves with the bytes it came with
    uint32_t whole              # hits up to and with the first `ct`

# A flow: packets of one tuple that come to one hook. One cache line.
ctypedef struct Shortcut:
    Key key                     # as they arrive; instead of the zone, the hook
    uint32_t[MOST_CTS] row      # of the flow table, << 1 | direction, one a `ct`; NO_ROW: no more
    uint32_t[MOST_CTS] serial   # of the rows' lives
    uint32_t epoch
    uint32_t plan               # << 1 | whether there are fields beside the tuple to be compared

ctypedef struct Shortcuts:
    Shortcut *one               # `size` of them
    FlowerKey *fields           # of each that is compared beyond its tuple, under the mask
    FlowerKey mask              # of the fields that any rule looks at, but for those of the tuple, the device, and of `ct`
    Bucket *bucket
    const HashKey *secret
    uint32_t n_buckets
    uint32_t size
    uint32_t used               # ever handed out; then the next one to be overwritten is `hand`
    uint32_t hand
    uint8_t exact               # whether untagged frames have to be compared by more than their tuple
    Plan *plan                  # one for each shortcut, and one more
    uint32_t *chain             # plans of the rules at work, by hash
    uint32_t n_chains           # a power of two
    uint32_t n_plans            # of the rules at work
    uint32_t plans_used         # ever handed out
    uint32_t free_plan
    uint32_t rules              # how often there were other ones: plans of earlier ones are in no chain, and count nothing
    Count *count                # of the rules at work: what plans that are given up have counted
    uint64_t hits

cdef uint32_t shortcut_candidate(const Shortcuts *all, uint32_t hash) noexcept nogil
cdef uint32_t shortcut_find(const Shortcuts *all, uint32_t hash, const Key *key) noexcept nogil
cdef void shortcut_set(Shortcuts *all, uint32_t hash, const Shortcut *draft, const FlowerKey *fields) noexcept nogil
cdef uint32_t plan_intern(Shortcuts *all, const Plan *draft) noexcept nogil


cdef inline uint32_t home_of(const Shortcuts *all, uint32_t hash) noexcept nogil:
    return <uint32_t>((<uint64_t>hash * all.n_buckets) >> 32)


cdef class Cuts:
    cdef Shortcuts all
    cdef readonly Tracker tracker
    cdef Program program        # whose counters those are
    cdef size_t size
    cdef int look_at(self, Program program) except -1

# The worker of a pipeline of rules, for who has packets of their own to run through it; see ruled.pyx.

cimport cython

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ctcore.batch cimport Batch
from ctcore.tracker cimport Tracker
from ctcore.types cimport N_REASONS, Decision, Key, Packet
from datapath.aim cimport Aim
from datapath.flowtable cimport Flows
from datapath.frame cimport Frame
from datapath.pipeline.level cimport Result
from datapath.pipeline.program cimport Program, Resume
from datapath.pipeline.trail cimport Trail
from datapath.pipeline.walk cimport Walker
from datapath.shortcut cimport Cuts, Plan, Shortcut
from datapath.pipeline.flower cimport FlowerKey
from datapath.worker cimport Summary

cdef enum:
    ALL_WALK = 0xFFFFFFFF

# What is asked of a call beside counting. Each may be NULL.
ctypedef struct Wanted:
    Decision *decisions
    Key *keys
    Result *results
    const Resume *resumes

@cython.final
cdef class RulePipeline:
    cdef readonly Program program
    cdef readonly Tracker tracker
    cdef readonly Walker walker
    cdef readonly Flows flows           # None: no flow table
    cdef readonly Cuts cuts             # None: likewise
    cdef Batch batch
    cdef Summary sums
    cdef Aim aim
    cdef uint32_t[::1] hooks            # by interface
    cdef uint32_t loaded                # how often rules were
    cdef uint32_t walks                 # packets that may still walk through the rules before others are turned away
    cdef uint64_t[N_REASONS] covered    # packets by what their `ct` had to say, where the rules' own reason stands before it
    cdef int64_t[N_REASONS] covered_first
    cdef int put_in(self, Program program) except -1
    cdef void run(self, const uint8_t *memory, const Frame *frame, Py_ssize_t n, const Wanted *wanted) noexcept nogil
    cdef bint turned_away(self, const Packet *p, int i, Result *result, Decision *decision) noexcept nogil
    cdef bint stays_out(
        self, const uint8_t *memory, const Frame *frame, const Packet *p, int i, const Resume *resume, Result *result, Decision *decision
    ) noexcept nogil
    cdef void tick(self, int64_t now) noexcept nogil
    cdef bint put_out(self, const Frame *frame, const Packet *p, int i, const Plan *plan) noexcept nogil
    cdef const Shortcut *matching(self, const uint8_t *memory, const Frame *frame, const Packet *p, int i) noexcept nogil
    cdef uint32_t epoch(self) noexcept nogil
    cdef void cover(self, uint8_t reason, int i) noexcept nogil
    cdef bint same_fields(self, const uint8_t *memory, const Frame *frame, const Packet *p, const Shortcut *cut) noexcept nogil
    cdef void read_fields(self, const uint8_t *memory, const Frame *frame, const Packet *p, FlowerKey *fields) noexcept nogil
    cdef void serve(self, const Packet *p, const Shortcut *cut, Decision *decision, bint decided) noexcept nogil
    cdef void long_way(self, const uint8_t *memory, const Frame *frame, Packet *p, int i, Result *result, Decision *decision) noexcept nogil
    cdef void remember(self, const uint8_t *memory, const Frame *frame, const Packet *p, int i, const Result *result) noexcept nogil
    cdef uint32_t plan_of(self, const Trail *trail, const Result *result) noexcept nogil
    cdef bint short_way(self, const uint8_t *memory, const Frame *frame, Packet *p, int i, Result *result, Decision *decision, bint decided) noexcept nogil

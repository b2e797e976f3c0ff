from libc.stdint cimport uint32_t

from ctcore.engine cimport Engine
from ctcore.strays cimport StrayTable


cdef class Tracker:
    cdef Engine ct
    cdef readonly object config
    cdef object identity        # by which associations know whose they are
    cdef size_t conns_size      # slab and table
    cdef size_t buffer_size
    cdef size_t expect_size
    cdef size_t help_size       # extensions, and helpers by port
    cdef size_t zones_size
    cdef size_t evictions_size
    cdef size_t nat_size        # links and chains
    cdef size_t rules_size
    cdef StrayTable strays      # keeps what ct points to
    cdef bint busy              # a thread is at work without the GIL

    cdef int start_nat(self, object rules) except -1
    cdef int put_rules(self, object rules) except -1
    cdef int enter(self) except -1
    cdef int idle(self) except -1
    cdef int prepare_helpers(self, object config) except -1

    cdef uint32_t slot_of(self, object ordinal) except? 0xFFFFFFFF
    cdef object snapshot(self, uint32_t conn)

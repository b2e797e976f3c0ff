# What a worker's loop knows of an iface, whatever is behind it; see iface.pyx.

from libc.stdint cimport int64_t, uint32_t

from datapath.frame cimport Frame
from datapath.live.rows cimport Send, Statistics
from datapath.live.umem cimport Pool, Umem

cdef enum:
    PRESSED = 1024              # what pressed() says of something full

cdef int64_t wall_ns() noexcept nogil

cdef class Iface:
    cdef readonly str name
    cdef readonly str driver
    cdef readonly Umem umem
    cdef readonly int worker
    cdef readonly uint32_t ordinal
    cdef readonly int fd        # to poll for frames; -1: there is nothing to wait for
    cdef readonly bint closed
    cdef Pool *pool
    cdef Statistics counts
    cdef int trouble            # errno of the last try to send, or 0

    cdef int setup(self, Umem umem, str name, int worker, int ordinal) except -1
    cdef int receive(self, Frame *rows, int most) noexcept nogil
    cdef int pressed(self) noexcept nogil
    cdef int send(self, const Send *rows, int n) noexcept nogil
    cdef int tidy(self) noexcept nogil

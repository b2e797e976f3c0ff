# Checksums that a local stack has left to its NIC; see partial.pyx.

from libc.stdint cimport uint8_t

from datapath.frame cimport Frame

cdef int complete(uint8_t *memory, const Frame *frames, int n) noexcept nogil

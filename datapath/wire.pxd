from libc.stdint cimport uint8_t, uint16_t

from ctcore.types cimport Packet
from datapath.frame cimport Frame

ctypedef struct ParseSettings:
    uint16_t zone
    uint8_t checksum            # verify L4 checksums
    uint8_t nat                 # address translation is on: it verifies those of ICMP errors in any case

cdef void parse(const ParseSettings *settings, const uint8_t *memory, const Frame *frames, int n, Packet *out) noexcept nogil

from libc.stdint cimport uint8_t, uint16_t

from ctcore.types cimport Packet
from datapath.frame cimport Frame

ctypedef struct ParseSettings:
    uint16_t zone
    uint8_t checksum            # verify L4 checksums
    uint8_t nat                 # address translation is on: it verifies those of ICMP errors in any case
    uint8_t fragments           # FRAGMENTS_*
    uint8_t at_hook             # as act_ct sees it: what ip_rcv() and ipv6_rcv() check, checksum and lengths, comes later

# What becomes of fragments.
cdef enum:
    FRAGMENTS_HELD = 0          # R_FRAGMENT; an atomic one (RFC 6946) is a packet like any other
    FRAGMENTS_GATHERED = 1      # R_FRAGMENT, atomic ones as well: reassembly sees all that Linux shows it
    FRAGMENTS_PASSED = 2        # these frames have been through reassembly

cdef bint parse(const ParseSettings *settings, const uint8_t *memory, const Frame *frames, int n, Packet *out) noexcept nogil

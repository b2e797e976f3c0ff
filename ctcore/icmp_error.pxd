from libc.stdint cimport uint32_t

from ctcore.engine cimport Engine
from ctcore.types cimport Packet

# What becomes of an ICMP or ICMPv6 packet before any lookup of its own tuple.
cdef enum Errand:
    ICMP_ORDINARY               # a request or reply: to be tracked like any other packet
    ICMP_DECIDED                # invalid or untracked; the reason says why
    ICMP_RELATED                # an error about a known flow

cdef Errand icmp_errand(Engine *ct, Packet *p, uint32_t *flow) noexcept nogil


cdef inline bint is_redirect(const Packet *p) noexcept nogil:
    """Of an error: does it tell of a better router (RFC 792, RFC 4861 4.5)?"""
    return p.key.dport >> 8 == (5 if p.key.family == 4 else 137)

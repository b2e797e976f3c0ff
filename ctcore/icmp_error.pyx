"""ICMP errors: which connection they are about.

An error quotes the packet that caused it. Its tuple, turned round, is looked up: the flow found is the one whose packets travel the way the
error does. An error is RELATED whoever sent it, but only if it is addressed to the sender of the quoted packet.
Not here: requests and replies (datagram), checksums and short headers (wire), the header fields of the quoted packet (tuples).
Safety: parse() passes an ICMP error only with its l4_have captured bytes; quoted_tuple() reads no further.
"""

from libc.stdint cimport uint8_t, uint32_t

from ctcore.engine cimport Engine
from ctcore.hashing cimport hash_of
from ctcore.helpers.pptp cimport name_quoted
from ctcore.lowlevel cimport likely, unlikely
from ctcore.table cimport table_find
from ctcore.timers cimport tick_reached
from ctcore.tuples cimport invert, quoted_tuple
from ctcore.types cimport *
from ctcore.zones cimport zone_try

cdef enum:
    HIGHEST_KNOWN = 18          # ICMP types above are a mystery to the kernel
    ND_REDIRECT = 137
    ND_OPT_REDIRECTED = 4       # RFC 4861 4.6.3

# What a type is, before anything else is looked at.
cdef enum Kind:
    KIND_ORDINARY
    KIND_ERROR
    KIND_UNTRACKED
    KIND_REDIRECT
    KIND_UNKNOWN


cdef inline Kind kind_of(const Packet *p, uint8_t type) noexcept nogil:
    if p.key.family == 4:
        if type == 3 or type == 4 or type == 5 or type == 11 or type == 12:
            return KIND_ERROR   # RFC 792
        return KIND_ORDINARY if type <= HIGHEST_KNOWN else KIND_UNKNOWN
    if type < 128:
        return KIND_ERROR       # RFC 4443 2.1
    if type == ND_REDIRECT:
        return KIND_REDIRECT
    if 130 <= type <= 136 or type == 143 or type == 151 or type == 152:
        return KIND_UNTRACKED   # listener reports, neighbour discovery, router discovery (RFC 2710, 3810, 4861, 4286)
    return KIND_ORDINARY


cdef inline Errand decided(Packet *p, uint8_t state, uint8_t reason) noexcept nogil:
    p.state = state
    p.reason = reason
    return ICMP_DECIDED


cdef uint32_t redirect_quote(const Packet *p) noexcept nogil:
    """Where a redirect quotes a packet, or 0 if it is not one to be believed (RFC 4861 8.1): from a router on the link, one hop away."""
    cdef const uint8_t *source = <const uint8_t *>p.key.src
    cdef uint8_t code = p.key.dport & 0xFF
    if p.hop_limit != 255 or code != 0 or source[0] != 0xFE or source[1] & 0xC0 != 0x80 or p.l4_have < 48:
        return 0
    return 48 if p.l4[40] == ND_OPT_REDIRECTED and p.l4[41] != 0 else 0


cdef uint32_t find_quoted(const Engine *ct, const Key *answer) noexcept nogil:
    """The flow of a tuple that has not expired, or NO_FLOW."""
    cdef uint32_t flow
    cdef int dir
    if likely(not ct.zones.split):
        flow = table_find(&ct.table, ct.pool.entry, hash_of(&ct.hash_key, answer), answer)
        return flow if flow != NO_FLOW and not tick_reached(ct.pool.entry[flow >> 1].deadline, ct.tick) else <uint32_t>NO_FLOW
    for dir in range(2):
        flow = zone_try(&ct.zones, &ct.table, ct.pool.entry, &ct.hash_key, answer, dir)
        if flow != NO_FLOW and not tick_reached(ct.pool.entry[flow >> 1].deadline, ct.tick):
            return flow
    return NO_FLOW


cdef Errand icmp_errand(Engine *ct, Packet *p, uint32_t *flow) noexcept nogil:
    """Sort an ICMP packet of the matching family.   Writes: state and reason if decided; flow if related."""
    cdef uint8_t type = p.key.dport >> 8
    cdef Kind kind = kind_of(p, type)
    cdef uint32_t quote = 8
    cdef uint8_t reason
    cdef Key quoted, answer
    if kind == KIND_ORDINARY:
        return ICMP_ORDINARY
    if kind == KIND_UNKNOWN:
        return decided(p, INVALID, R_ICMP_TYPE)
    if kind == KIND_UNTRACKED:
        return decided(p, UNTRACKED, R_ICMP6_UNTRACKED)
    if kind == KIND_REDIRECT:
        quote = redirect_quote(p)
        if quote == 0:
            return decided(p, INVALID, R_ICMP6_REDIRECT)
    reason = quoted_tuple(p.key.family, p.l4 + quote, p.l4_len - quote, p.l4_have - quote, &quoted)
    if reason != R_OK:
        return decided(p, NOT_SEEN if reason == R_SNAPPED else INVALID, reason)
    quoted.zone = p.key.zone
    if unlikely(ct.ext.tunnels) and quoted.proto == PROTO_GRE:
        name_quoted(ct, &quoted)
    if not invert(&quoted, &answer):
        return decided(p, INVALID, R_ICMP_INNER_ERROR)
    flow[0] = find_quoted(ct, &answer)
    if flow[0] == NO_FLOW:
        return decided(p, INVALID, R_ICMP_NO_CONN)
    if p.key.dst[0] != answer.dst[0] or p.key.dst[1] != answer.dst[1]:
        return decided(p, INVALID, R_ICMP_OUTER)
    return ICMP_RELATED

# Which transport headers address translation can change. Where Linux gives up on one, it drops the packet (nf_nat_proto.c).
#
# Safety: what is read here was read before, when the tuple was made: a byte within the length was captured.
# Not here: changing them (datapath.rewrite).

from libc.stdint cimport uint8_t, uint32_t

from ctcore.tuples cimport IP6_HEADER, Chain, skip_extensions
from ctcore.types cimport (
    PROTO_GRE, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE, REWRITE_DST, REWRITE_SRC, Packet,
)

cdef enum:
    QUOTED_AT = 8               # in an ICMP error
    LEAST_QUOTED = 8            # bytes of a quoted transport header, though four tell whose it is
    LEAST_GRE = 8               # up to the call id, be it version 0
    GRE_VERSION_BITS = 7
    WITH_CALL_ID = 1            # the version


cdef inline bint gre_fits(const uint8_t *header, uint32_t length, bint destination) noexcept nogil:
    """A version that Linux does not know matters only where the destination changes, for there the call id would be (RFC 2637 4.1)."""
    return length >= LEAST_GRE and not (destination and (header[1] & GRE_VERSION_BITS) > WITH_CALL_ID)


cdef inline bint header_fits(const Packet *p, uint8_t changes) noexcept nogil:
    """Can a tracked packet be changed?   changes: REWRITE_SRC, REWRITE_DST or both."""
    return p.key.proto != PROTO_GRE or gre_fits(p.l4, p.l4_len, (changes & REWRITE_DST) != 0)


cdef inline bint quote_fits(const Packet *p, uint8_t proto, uint8_t changes) noexcept nogil:
    """Can what an ICMP error quotes be changed, which is of a known connection and went the other way?   changes: those of the error itself."""
    cdef const uint8_t *ip = p.l4 + QUOTED_AT
    cdef uint32_t length = p.l4_len - QUOTED_AT
    cdef Chain chain
    if p.key.family == 4:
        chain.at = (ip[0] & 15) * 4
    else:
        chain.at = IP6_HEADER
        chain.proto = ip[6]
        skip_extensions(ip, length, p.l4_have - QUOTED_AT, &chain)
    length -= min(chain.at, length)
    if proto == PROTO_GRE:
        return gre_fits(ip + chain.at, length, (changes & REWRITE_SRC) != 0)
    if proto == PROTO_TCP or proto == PROTO_UDP or proto == PROTO_UDPLITE or proto == PROTO_SCTP:
        return length >= LEAST_QUOTED
    return True

"""Protocols whose connections are only timeouts: UDP, UDP-Lite, ICMP and ICMPv6 requests, GRE, and everything else (generic).

What differs between them is when a connection counts as assured and which timeout it then has; what ICMP may open is a table.
Not here: header faults (wire), ICMP errors (icmp_error), GRE keys (wire; without the PPTP helper each direction is its own connection).
"""

from libc.stdint cimport uint8_t, uint32_t

from ctcore.engine cimport ACCEPTED, REJECTED, Engine, Outcome, refresh
from ctcore.types cimport *


cdef inline void assure(Engine *ct, Entry *entry) noexcept nogil:
    if not entry.status & ASSURED:
        entry.status |= ASSURED
        ct.changes |= CHANGE_ASSURED


cdef inline Outcome udp_packet(Engine *ct, Entry *entry, Packet *p, int dir) noexcept nogil:
    """A question and its answer are not a stream: replied flows are assured, and live longer, only once they are two seconds old."""
    cdef bint stream = entry.status & SEEN_REPLY and ct.tick > entry.l4.udp.stream_ts
    refresh(ct, entry, p, dir, ct.set.udp_timeout[stream])
    if stream:
        assure(ct, entry)
    return ACCEPTED


cdef inline Outcome replied_packet(Engine *ct, Entry *entry, Packet *p, int dir, const uint32_t *timeout) noexcept nogil:
    """UDP-Lite and GRE: assured from the first packet after the reply on. timeout: unreplied, replied."""
    cdef bint replied = (entry.status & SEEN_REPLY) != 0
    refresh(ct, entry, p, dir, timeout[replied])
    if replied:
        assure(ct, entry)
    return ACCEPTED


cdef inline bint opens_icmp(const Entry *entry) noexcept nogil:
    """Only requests open a connection: echo, timestamp, information, address mask (RFC 792, 950); echo, node information (RFC 4443, 4620)."""
    cdef uint8_t type = entry.flow[ORIG].key.dport >> 8
    if entry.flow[ORIG].key.proto == PROTO_ICMP:
        return type == 8 or type == 13 or type == 15 or type == 17
    return type == 128 or type == 139


cdef Outcome icmp_packet(Engine *ct, Entry *entry, Packet *p, int dir) noexcept nogil:
    cdef bint v4 = p.key.proto == PROTO_ICMP
    if (p.key.family == 4) != v4:
        p.reason = R_ICMP_FAMILY
        return REJECTED
    if not opens_icmp(entry):
        p.reason = R_ICMP_NO_REQUEST
        return REJECTED
    refresh(ct, entry, p, dir, ct.set.icmp_timeout if v4 else ct.set.icmpv6_timeout)
    return ACCEPTED


cdef Outcome datagram_packet(Engine *ct, Entry *entry, Packet *p, int dir, bint fresh) noexcept nogil:
    """One packet of a protocol that is neither TCP nor SCTP.   Writes: the entry, ct.changes, p.reason where it is rejected."""
    cdef uint8_t proto = p.key.proto
    if proto == PROTO_UDP:
        if fresh:
            entry.l4.udp.stream_ts = ct.tick + ct.set.udp_stream_after
        return udp_packet(ct, entry, p, dir)
    if proto == PROTO_ICMP or proto == PROTO_ICMPV6:
        return icmp_packet(ct, entry, p, dir)
    if proto == PROTO_UDPLITE:
        return replied_packet(ct, entry, p, dir, ct.set.udp_timeout)
    if proto == PROTO_GRE:
        return replied_packet(ct, entry, p, dir, ct.set.gre_timeout)
    refresh(ct, entry, p, dir, ct.set.generic_timeout)
    return ACCEPTED

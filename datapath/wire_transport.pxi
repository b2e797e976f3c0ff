"""What of a transport header says nothing of its connection: lengths, checksums, flags, as the kernel's trackers check them before they look at their
state. Part of wire.pyx.

Invariant: nothing is read but l4_have bytes behind l4, and the IPv4 addresses before it.
Not here: IP, the straight way through all of it (wire.pyx), tuples (ctcore.tuples).
"""

# --- checksums -------------------------------------------------------------------------------------------------------------------------

cdef enum:
    SOUND = 0xFFFF              # the sum of an IPv4 header that is


cdef inline bint bad_covered_sum(const Packet *p, uint32_t length_and_proto, uint32_t covered, uint32_t head) noexcept nogil:
    """Does the pseudo-header (RFC 768, RFC 8200 8.1) with the first `covered` bytes of L4 not sum to zero? IPv4 has zeros behind its addresses.

    head: the sum of the IPv4 header, which Linux sums as well (nf_ip_checksum), so that at a hook, where nobody has looked at it before, a wrong one
    makes these sums wrong. False if not all of them were captured: what cannot be verified is believed.
    """
    cdef uint64_t total
    if p.l4_have < covered:
        return False
    total = add1(add1(p.key.src[0], p.key.src[1]), add1(p.key.dst[0], p.key.dst[1]))
    return fold(sum_bytes(p.l4, covered, add1(add1(total, head), htonl(length_and_proto)))) != 0xFFFF


cdef inline bint bad_sum(const Packet *p, uint8_t proto, uint32_t head) noexcept nogil:
    """The same over all of L4."""
    return bad_covered_sum(p, p.l4_len + proto, p.l4_len, head)


cdef inline bint bad_icmp_sum(const Packet *p, uint32_t head) noexcept nogil:
    """ICMP has no pseudo-header (RFC 792), ICMPv6 has one (RFC 4443 2.3).

    The kernel sums the IPv4 header as well, which gives 0xFFFF. That matters where all of the message is zero: its sum is then good.
    """
    if p.key.family == 6:
        return bad_sum(p, PROTO_ICMPV6, head)
    return p.l4_have == p.l4_len and fold(sum_bytes(p.l4, p.l4_len, head)) != 0xFFFF


cdef inline bint bad_crc(const Packet *p) noexcept nogil:
    """CRC32c over the SCTP packet with zeros for its checksum, which is stored in little-endian order (RFC 9260 6.8)."""
    cdef uint32_t crc = crc32c(0, p.l4, 8)
    crc = crc32c(crc32c(crc, <const uint8_t *>b"\0\0\0\0", 4), p.l4 + 12, p.l4_len - 12)
    return crc != (p.l4[8] | <uint32_t>p.l4[9] << 8 | <uint32_t>p.l4[10] << 16 | <uint32_t>p.l4[11] << 24)


# --- transport: what the trackers check before they look at their state ------------------------------------------------------------------

cdef void tcp(const ParseSettings *settings, Packet *p, uint32_t head) noexcept nogil:
    """RFC 9293 3.1, in the kernel's order: header, data offset, checksum, flags."""
    if p.l4_len < 20:
        p.l4_reason = R_TCP_SHORT
        return
    if p.l4_have < 20:
        close(p, R_SNAPPED)
        return
    p.seq = be32(p.l4 + 4)
    p.ack = be32(p.l4 + 8)
    p.doff = (p.l4[12] >> 4) * 4
    p.tcp_flags = p.l4[13]
    p.win = be16(p.l4 + 14)
    if p.doff < 20 or p.doff > p.l4_len:
        p.l4_reason = R_TCP_DOFF
    elif p.doff > p.l4_have:
        close(p, R_SNAPPED)
    elif settings.checksum and bad_sum(p, PROTO_TCP, head):
        p.l4_reason = R_TCP_CHECKSUM
    elif not valid_flags(p.tcp_flags):
        p.l4_reason = R_TCP_FLAGS


cdef void udp(const ParseSettings *settings, Packet *p, uint32_t head) noexcept nogil:
    """RFC 768. The sum goes over all bytes present, not over the UDP length; 0 means none, over IPv6 too: so does the kernel."""
    cdef uint16_t length
    if p.l4_len < 8:
        p.l4_reason = R_UDP_SHORT
        return
    if p.l4_have < 8:
        close(p, R_SNAPPED)
        return
    length = be16(p.l4 + 4)
    if length < 8 or length > p.l4_len:
        p.l4_reason = R_UDP_LENGTH
    elif settings.checksum and be16(p.l4 + 6) != 0 and bad_sum(p, PROTO_UDP, head):
        p.l4_reason = R_UDP_CHECKSUM


cdef void udplite(const ParseSettings *settings, Packet *p, uint32_t head) noexcept nogil:
    """RFC 3828 3.1: coverage for length, a mandatory checksum.

    The kernel sums with UDP's protocol number, so that a correct one is bad; and over IPv4 with the lowest byte of the length only.
    """
    cdef uint32_t coverage, length
    if p.l4_len < 8:
        p.l4_reason = R_UDP_SHORT
        return
    if p.l4_have < 8:
        close(p, R_SNAPPED)
        return
    coverage = be16(p.l4 + 4)
    if coverage == 0:
        coverage = p.l4_len
    if coverage < 8 or coverage > p.l4_len:
        p.l4_reason = R_UDP_LENGTH
        return
    length = p.l4_len & 0xFF if p.key.family == 4 else p.l4_len
    if be16(p.l4 + 6) == 0 or (settings.checksum and bad_covered_sum(p, length + PROTO_UDP, coverage, head)):
        p.l4_reason = R_UDP_CHECKSUM


cdef void sctp(const ParseSettings *settings, Packet *p) noexcept nogil:
    """RFC 9260 3. All chunks are needed later."""
    if p.l4_len < 12:
        p.l4_reason = R_SCTP_SHORT
    elif p.l4_have < p.l4_len:
        close(p, R_SNAPPED)
    elif settings.checksum and bad_crc(p):
        p.l4_reason = R_SCTP_CHECKSUM


cdef inline bint quotes(const Packet *p) noexcept nogil:
    """Is this an ICMP error (RFC 1122 3.2.2, RFC 4443 2.1) or a redirect?"""
    cdef uint8_t kind = p.l4[0]
    if p.key.family == 6:
        return kind < 128 or kind == ND_REDIRECT
    return 3 <= kind <= 5 or kind == 11 or kind == 12


cdef inline bint quotes_beyond_capture(const Packet *p) noexcept nogil:
    """Does conntrack need bytes of a quoted packet that were not captured?"""
    cdef Key quoted
    if p.l4_have == p.l4_len or not quotes(p):
        return False
    if p.key.family == 6 and p.l4[0] == ND_REDIRECT:
        return True
    return quoted_tuple(p.key.family, p.l4 + 8, p.l4_len - 8, p.l4_have - 8, &quoted) == R_SNAPPED


cdef void icmp(const ParseSettings *settings, Packet *p, uint32_t head) noexcept nogil:
    """ICMP of its own family: the kernel's error() comes before the lookup, so what is wrong here is final.

    Address translation verifies what quotes a packet even where nobody else does.
    """
    if settings.checksum and bad_icmp_sum(p, head):
        close(p, R_ICMP_CHECKSUM)
    elif quotes_beyond_capture(p):
        close(p, R_SNAPPED)
    elif settings.nat and not settings.checksum and quotes(p) and bad_icmp_sum(p, head):
        p.flaw |= FLAW_SUM


cdef inline void transport(const ParseSettings *settings, Packet *p, uint32_t head) noexcept nogil:
    """The tuple, then the checks of its protocol. head: the sum of its IPv4 header.   Reads: key, l4, l4_len, l4_have.   Writes: key's ports, TCP fields, l4_reason."""
    cdef uint8_t proto = p.key.proto
    cdef bint own_icmp = proto == PROTO_ICMP if p.key.family == 4 else proto == PROTO_ICMPV6
    cdef uint8_t reason = fill_ports(&p.key, p.l4, p.l4_len, p.l4_have)
    if reason != R_OK:
        close(p, R_ICMP_SHORT if own_icmp and reason == R_TUPLE_SHORT else reason)
    elif own_icmp:
        icmp(settings, p, head)
    elif proto == PROTO_TCP:
        tcp(settings, p, head)
    elif proto == PROTO_UDP:
        udp(settings, p, head)
    elif proto == PROTO_UDPLITE:
        udplite(settings, p, head)
    elif proto == PROTO_SCTP:
        sctp(settings, p)

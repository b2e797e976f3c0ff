"""What actions do to a frame's bytes, fast: pedit, csum and vlan, on a copy that is made when the first of them has something to change.

The twin of munge, which says in plain Python what is right, and to the byte the same. What came in is never written to. Frames without Ethernet are
changed from their IP header on.
Theory of operation: a draft begins as a reference to the frame where it lies. Who changes it calls draft_own() first, which copies it into the
draft's own memory, with room in front of it, so that a tag moves the two MACs and nothing else.
Invariants: data to data + have lies within one piece of memory; nothing is read or written beyond it; own says that it may be written.
Not here: which actions a packet gets (walk), address translation (datapath.rewrite).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from ctcore.lowlevel cimport be16, likely, put_be16
from ctcore.tuples cimport IP6_AUTH, IP6_DESTINATION, IP6_FRAGMENT, IP6_HOP_BY_HOP, IP6_NO_NEXT, IP6_ROUTING, is_extension
from ctcore.types cimport (
    PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE, R_OK, R_RULE_FIELD, R_RULE_ROOM,
)
from datapath.checksum cimport crc32c, fold, sum_bytes
from datapath.link cimport ETHER_IPV4, ETHER_IPV6, ETHER_QINQ, ETHER_VLAN

cdef extern from "arpa/inet.h" nogil:
    uint32_t htonl(uint32_t)

cdef enum:
    IP4_LEAST = 20
    IP6_LEAST = 40
    PROTO_IGMP = 2
    PAD1 = 0                    # options of IPv6
    JUMBO = 194
    NOWHERE = -1


cdef bint draft_own(Draft *d) noexcept nogil:
    """Let the draft be a copy that may be written. False if it is too large."""
    if d.own:
        return True
    if d.have > <uint32_t>(DRAFT_ROOM - DRAFT_HEADROOM):
        return False
    memcpy(d.room + DRAFT_HEADROOM, d.data, d.have)
    d.data = d.room + DRAFT_HEADROOM
    d.own = True
    return True


cdef inline uint8_t *writable(Draft *d, int64_t at) noexcept nogil:
    """Safe: the caller owns the draft."""
    return <uint8_t *>d.data + at


cdef inline bint tags(uint16_t kind) noexcept nogil:
    return kind == ETHER_VLAN or kind == ETHER_QINQ


cdef inline uint32_t least_of(uint16_t kind) noexcept nogil:
    """Bytes of an IP header, 0 for other ethertypes."""
    return IP4_LEAST if kind == ETHER_IPV4 else IP6_LEAST if kind == ETHER_IPV6 else 0


cdef Layers layers_of(const Draft *d) noexcept nogil:
    """Behind any tags."""
    cdef Layers found
    cdef uint32_t at = MACS
    found.l3, found.kind = NOWHERE, 0
    if not d.ethernet:
        at = d.l3
        found.kind = ETHER_IPV4 if d.family == 4 else ETHER_IPV6 if d.family == 6 else 0
    elif d.have >= ETHERNET:
        found.kind = be16(d.data + at)
        while tags(found.kind) and d.have >= at + 2 + TAG:
            at += TAG
            found.kind = be16(d.data + at)
        at += 2
    found.at = at
    if least_of(found.kind) and d.have >= at + least_of(found.kind):
        found.l3 = at
    return found


cdef inline int64_t header4(const Draft *d, int64_t l3) noexcept nogil:
    """Where an IPv4 header ends, by its own word."""
    return l3 + (d.data[l3] & 15) * 4


# --- pedit ------------------------------------------------------------------------------------------------------------------------------


cdef int64_t last_header(const Draft *d, int64_t l3, uint8_t wanted) noexcept nogil:
    """Where IPv6's last header is, if it is the one that is wanted: behind any others, but for later fragments (ipv6_find_hdr, RFC 8200 4)."""
    cdef int64_t at = l3 + IP6_LEAST, length
    cdef uint8_t kind = d.data[l3 + 6]
    while is_extension(kind) and kind != IP6_NO_NEXT:
        if at + (4 if kind == IP6_FRAGMENT else 2) > <int64_t>d.have:
            return NOWHERE
        length = (<int64_t>d.data[at + 1] + 1) * 8
        if kind == IP6_FRAGMENT:
            if be16(d.data + at + 2) & 0xFFF8:
                return NOWHERE
            length = 8
        elif kind == IP6_AUTH:                                          # RFC 4302 2.2
            length = (<int64_t>d.data[at + 1] + 2) * 4
        if at + length > <int64_t>d.have + d.missing:
            return NOWHERE
        kind = d.data[at]
        at += length
    return at if kind == wanted else <int64_t>NOWHERE


cdef inline int64_t base_of(const Draft *d, const Munge *munge) noexcept nogil:
    """Where the header begins that a munge is of. Of IPv4 nobody asks what it carries, as in Linux (pedit_l4_skb_offset)."""
    cdef Layers where
    if munge.base == BASE_FRAME:
        # The outermost tag lies beside a packet in Linux: a type is the one behind it.
        return NOWHERE if not d.ethernet else TAG if munge.offset >= MACS and draft_tagged(d) else 0
    where = layers_of(d)
    if munge.base == BASE_L3 or where.l3 < 0:
        return where.l3
    return last_header(d, where.l3, munge.proto) if where.kind == ETHER_IPV6 else header4(d, where.l3)


cdef inline void put(uint8_t *field, const Munge *munge, int64_t size) noexcept nogil:
    """The first `size` bytes of a field."""
    cdef int64_t i
    if munge.add and size > 0:
        field[0] = (field[0] & ~munge.mask[0]) | (<uint8_t>(field[0] + munge.value[0]) & munge.mask[0])
        return
    for i in range(size):
        field[i] = (field[i] & ~munge.mask[i]) | munge.value[i]


cdef uint8_t draft_pedit(Draft *d, const Munge *munge, uint32_t n) noexcept nogil:
    """Munges, one after the other, up to the first whose field is not there: what was changed before it stays, and the frame goes on (tcf_pedit_act).

    R_OK, or R_RULE_ROOM. Of a field that was not captured nothing changes here.
    """
    cdef uint32_t i
    cdef int64_t base, there, captured
    for i in range(n):
        base = base_of(d, &munge[i])            # anew each time: a type or a header length may have changed
        if base < 0:
            break
        captured = <int64_t>d.have - base - munge[i].offset
        there = <int64_t>d.have + d.missing - base
        there -= (there & 3) + munge[i].offset  # pedit changes words of four bytes, each only if all of it is there
        if min(there, captured) > 0:
            if not draft_own(d):
                return R_RULE_ROOM
            put(writable(d, base + munge[i].offset), &munge[i], min(min(there, captured), <int64_t>munge[i].size))
        if there < <int64_t>munge[i].size:
            break
    return R_OK


# --- csum -------------------------------------------------------------------------------------------------------------------------------

# Of a protocol: csum's bit for it, the least header in bytes, where the checksum lies, and whether addresses are part of it.
ctypedef struct Sum:
    uint8_t bit
    uint8_t header
    uint8_t at
    uint8_t pseudo


# What is summed of a packet: protocol (0: nothing), where its header begins, and where the packet ends by its own word.
ctypedef struct Segment:
    int64_t at
    int64_t end
    uint8_t proto


cdef Sum sum_for(uint16_t kind, uint8_t proto) noexcept nogil:
    if proto == PROTO_TCP:
        return Sum(SUM_TCP, 20, 16, True)
    if proto == PROTO_UDP:
        return Sum(SUM_UDP, 8, 6, True)
    if proto == PROTO_ICMP and kind == ETHER_IPV4:
        return Sum(SUM_ICMP, 8, 2, False)
    if proto == PROTO_ICMPV6 and kind == ETHER_IPV6:
        return Sum(SUM_ICMP, 8, 2, True)
    if proto == PROTO_IGMP and kind == ETHER_IPV4:
        return Sum(SUM_IGMP, 8, 2, False)
    if proto == PROTO_UDPLITE:
        return Sum(SUM_UDPLITE, 8, 6, True)
    if proto == PROTO_SCTP:
        return Sum(SUM_SCTP, 12, 8, False)
    return Sum(0, 0, 0, False)


cdef uint8_t payload_length(const uint8_t *header, int64_t size, uint32_t *length) noexcept nogil:
    """The length behind the fixed header, if a hop-by-hop header has a jumbo payload (RFC 2675 2). R_RULE_FIELD: that option is malformed."""
    cdef int64_t at = 2, left = size - 2, option
    while left > 1:
        if header[at] == JUMBO:
            if header[at + 1] != 4 or left < 6 or at & 3 != 2:
                return R_RULE_FIELD
            length[0] = <uint32_t>be16(header + at + 2) << 16 | be16(header + at + 4)
            return R_OK
        option = 1 if header[at] == PAD1 else <int64_t>header[at + 1] + 2
        if option > left:
            break
        at += option
        left -= option
    return R_OK


cdef void segment4(const Draft *d, int64_t l3, Segment *s) noexcept nogil:
    """Of later fragments nothing; the first one is summed, as far as it goes."""
    s.proto = 0 if be16(d.data + l3 + 6) & 0x1FFF else d.data[l3 + 9]
    s.at, s.end = header4(d, l3), l3 + be16(d.data + l3 + 2)


cdef uint8_t segment6(const Draft *d, int64_t l3, Segment *s) noexcept nogil:
    """Behind options and routing headers; of fragments, and behind AH, nothing. R_RULE_FIELD where a header is not there as a whole."""
    cdef int64_t size = <int64_t>d.have + d.missing, header
    cdef uint32_t length = be16(d.data + l3 + 4)
    cdef uint8_t kind = d.data[l3 + 6]
    s.proto, s.at = 0, l3 + IP6_LEAST
    while kind == IP6_HOP_BY_HOP or kind == IP6_ROUTING or kind == IP6_DESTINATION:
        if s.at + 2 > <int64_t>d.have:
            return R_RULE_FIELD if s.at + 2 > size else <uint8_t>R_OK
        header = (<int64_t>d.data[s.at + 1] + 1) * 8
        if s.at + header > size:
            return R_RULE_FIELD
        if kind == IP6_HOP_BY_HOP:
            if s.at + header > <int64_t>d.have:
                return R_OK
            if payload_length(d.data + s.at, header, &length) != R_OK:
                return R_RULE_FIELD
        kind = d.data[s.at]
        s.at += header
        if s.at >= size:
            return R_OK
    s.proto, s.end = kind, l3 + IP6_LEAST + length
    return R_OK


cdef inline uint64_t pseudo_header(const Draft *d, const Layers *where, uint8_t proto, uint32_t length) noexcept nogil:
    """RFC 768, RFC 8200 8.1: the sum of addresses, length and protocol."""
    cdef uint64_t total = <uint64_t>htonl(length) + htonl(proto)
    if where.kind == ETHER_IPV4:
        return sum_bytes(d.data + where.l3 + 12, 8, total)
    return sum_bytes(d.data + where.l3 + 8, 32, total)


cdef void sum_sctp(uint8_t *l4, uint32_t length) noexcept nogil:
    """RFC 9260 6.8. length: to the end of the frame, padding of Ethernet included, as Linux sums it (sctp_compute_cksum)."""
    cdef uint32_t crc
    memset(l4 + 8, 0, 4)
    crc = crc32c(0, l4, length)
    l4[8], l4[9], l4[10], l4[11] = crc & 0xFF, crc >> 8 & 0xFF, crc >> 16 & 0xFF, crc >> 24


cdef void sum_transport(Draft *d, const Layers *where, const Segment *s, const Sum *how) noexcept nogil:
    """The transport header's checksum. UDP's and UDP-Lite's with a length that cannot be becomes 0, and over IPv4 UDP's 0 stays (tcf_csum_ipv4_udp)."""
    cdef uint8_t *l4 = writable(d, s.at)
    cdef uint8_t *field = l4 + how.at
    cdef uint32_t length = <uint32_t>(s.end - s.at), covered = length, told
    cdef bint lite = s.proto == PROTO_UDPLITE
    cdef uint64_t before
    cdef uint16_t value
    if s.proto == PROTO_UDP and where.kind == ETHER_IPV4 and field[0] | field[1] == 0:
        return
    field[0] = field[1] = 0                 # first: a broken header length may put the field into the addresses
    if s.proto == PROTO_UDP or lite:
        told = be16(l4 + 4)
        if told != length and (not lite or (told and (told < how.header or told > length))):
            return
        covered = told if told else length
        length = told
    before = pseudo_header(d, where, s.proto, length) if how.pseudo else 0
    value = fold(sum_bytes(l4, covered, before)) ^ 0xFFFF
    if value == 0 and (s.proto == PROTO_UDP or lite):
        value = 0xFFFF
    memcpy(field, &value, 2)


cdef void sum_ip4(Draft *d, int64_t l3) noexcept nogil:
    """RFC 791 3.1, over the header as long as it says it is, or as there is."""
    cdef uint8_t *header = writable(d, l3)
    cdef uint16_t value = 0
    memcpy(header + 10, &value, 2)
    value = fold(sum_bytes(header, min(header4(d, l3), <int64_t>d.have) - l3, 0)) ^ 0xFFFF
    memcpy(header + 10, &value, 2)


cdef uint8_t draft_csum(Draft *d, uint8_t sums) noexcept nogil:
    """Checksums made anew, as act_csum does it. None of what was not captured as a whole.

    R_OK; R_RULE_FIELD where Linux drops the packet, which is shorter than it says, or than a header that is summed; R_RULE_ROOM.
    """
    cdef Layers where = layers_of(d)
    cdef int64_t size = <int64_t>d.have + d.missing
    cdef Segment s
    cdef Sum how
    if where.l3 < 0:
        return R_RULE_FIELD if least_of(where.kind) and where.at + least_of(where.kind) > size else <uint8_t>R_OK
    if where.kind == ETHER_IPV4:
        segment4(d, where.l3, &s)
    elif segment6(d, where.l3, &s) != R_OK:
        return R_RULE_FIELD
    how = sum_for(where.kind, s.proto)
    if how.bit & sums and (s.end > size or s.end - s.at < how.header):
        return R_RULE_FIELD
    if not draft_own(d):
        return R_RULE_ROOM
    if how.bit & sums and (size if how.bit == SUM_SCTP else s.end) <= <int64_t>d.have:
        if how.bit == SUM_SCTP:
            sum_sctp(writable(d, s.at), <uint32_t>(size - s.at))
        else:
            sum_transport(d, &where, &s, &how)
    if where.kind == ETHER_IPV4 and sums & SUM_IP4H and (header4(d, where.l3) <= <int64_t>d.have or not d.missing):
        sum_ip4(d, where.l3)
    return R_OK


# --- vlan -------------------------------------------------------------------------------------------------------------------------------


cdef bint make_headroom(Draft *d) noexcept nogil:
    """TAG bytes in front of a draft of its own. False if its memory is full."""
    if likely(d.data - d.room >= TAG):
        return True
    if d.have > <uint32_t>(DRAFT_ROOM - DRAFT_HEADROOM):
        return False
    memmove(d.room + DRAFT_HEADROOM, d.data, d.have)
    d.data = d.room + DRAFT_HEADROOM
    return True


cdef uint8_t push(Draft *d, const TagChange *change) noexcept nogil:
    cdef uint32_t macs = min(d.have, <uint32_t>MACS)
    if not draft_own(d) or not make_headroom(d):
        return R_RULE_ROOM
    memmove(writable(d, -TAG), d.data, macs)
    d.data -= TAG
    d.have += TAG
    put_be16(writable(d, macs), change.protocol)
    put_be16(writable(d, macs + 2), change.tag)
    return R_OK


cdef uint8_t draft_vlan(Draft *d, const TagChange *change) noexcept nogil:
    """The outermost tag; a frame without one stays as it is, but for a push, for which there has to be an Ethernet header."""
    if not d.ethernet:
        return R_RULE_FIELD if change.kind == VLAN_PUSH else <uint8_t>R_OK
    if change.kind == VLAN_PUSH:
        return push(d, change)
    if not draft_tagged(d):
        return R_OK
    if not draft_own(d):
        return R_RULE_ROOM
    if change.kind == VLAN_POP:
        memmove(writable(d, TAG), d.data, MACS)
        d.data += TAG
        d.have -= TAG
        return R_OK
    put_be16(writable(d, MACS), change.protocol)        # act_vlan takes the tag off, and puts one of its own protocol in its place
    put_be16(writable(d, MACS + 2), (be16(d.data + MACS + 2) & change.kept) | change.tag)
    return R_OK

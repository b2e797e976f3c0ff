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
from ctcore.tuples cimport IP6_AUTH, IP6_FRAGMENT, IP6_NO_NEXT, is_extension
from ctcore.types cimport (
    PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE, R_OK, R_RULE_FIELD, R_RULE_ROOM,
)
from datapath.checksum cimport crc32c, fold, sum_bytes
from datapath.link cimport ETHER_IPV4, ETHER_IPV6, ETHER_QINQ, ETHER_VLAN

cdef extern from "arpa/inet.h" nogil:
    uint32_t htonl(uint32_t)

cdef enum:
    ETHERNET = 14
    MACS = 12
    TAG = 4
    IP4_LEAST = 20
    IP6_LEAST = 40
    PROTO_IGMP = 2
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


cdef Layers layers_of(const Draft *d) noexcept nogil:
    """Behind any tags; of IPv6 the transport header is only found right behind the fixed one."""
    cdef Layers found
    cdef uint32_t at = MACS
    found.l3 = found.l4 = NOWHERE
    found.kind = found.proto = 0
    if not d.ethernet:
        at = d.l3
        found.kind = ETHER_IPV4 if d.family == 4 else ETHER_IPV6 if d.family == 6 else 0
    elif d.have >= ETHERNET:
        found.kind = be16(d.data + at)
        while tags(found.kind) and d.have >= at + 2 + TAG:
            at += TAG
            found.kind = be16(d.data + at)
        at += 2
    if found.kind == ETHER_IPV4 and d.have >= at + IP4_LEAST:
        found.l3, found.l4, found.proto = at, at + (d.data[at] & 15) * 4, d.data[at + 9]
    elif found.kind == ETHER_IPV6 and d.have >= at + IP6_LEAST:
        found.l3, found.l4, found.proto = at, at + IP6_LEAST, d.data[at + 6]
    return found


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
        return 0 if d.ethernet else NOWHERE
    where = layers_of(d)
    if munge.base == BASE_L3 or where.l3 < 0:
        return where.l3
    return last_header(d, where.l3, munge.proto) if where.kind == ETHER_IPV6 else where.l4


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


cdef Sum sum_for(uint8_t proto) noexcept nogil:
    if proto == PROTO_TCP:
        return Sum(SUM_TCP, 20, 16, True)
    if proto == PROTO_UDP:
        return Sum(SUM_UDP, 8, 6, True)
    if proto == PROTO_ICMP:
        return Sum(SUM_ICMP, 8, 2, False)
    if proto == PROTO_ICMPV6:
        return Sum(SUM_ICMP, 8, 2, True)
    if proto == PROTO_IGMP:
        return Sum(SUM_IGMP, 8, 2, False)
    if proto == PROTO_UDPLITE:
        return Sum(SUM_UDPLITE, 8, 6, True)
    if proto == PROTO_SCTP:
        return Sum(SUM_SCTP, 12, 8, False)
    return Sum(0, 0, 0, False)


cdef inline uint64_t pseudo_header(const Draft *d, const Layers *where, uint32_t length) noexcept nogil:
    """RFC 768, RFC 8200 8.1: the sum of addresses, length and protocol."""
    cdef uint64_t total = <uint64_t>htonl(length) + htonl(where.proto)
    if where.kind == ETHER_IPV4:
        return sum_bytes(d.data + where.l3 + 12, 8, total)
    return sum_bytes(d.data + where.l3 + 8, 32, total)


cdef void sum_transport(Draft *d, const Layers *where, int64_t end, uint8_t sums) noexcept nogil:
    """The transport header's checksum, over the packet as long as it says it is. UDP's 0 stays 0 (RFC 768)."""
    cdef Sum how = sum_for(where.proto)
    cdef uint8_t *l4 = writable(d, where.l4)
    cdef uint8_t *field = l4 + how.at
    cdef uint32_t length = <uint32_t>(end - where.l4), covered = length, crc
    cdef uint64_t before
    cdef uint16_t value
    if not how.bit & sums or end - where.l4 < how.header:
        return
    if where.proto == PROTO_SCTP:                                       # RFC 9260 6.8
        memset(field, 0, 4)
        crc = crc32c(0, l4, length)
        field[0], field[1], field[2], field[3] = crc & 0xFF, crc >> 8 & 0xFF, crc >> 16 & 0xFF, crc >> 24
        return
    if where.proto == PROTO_UDP and field[0] | field[1] == 0:
        return
    if where.proto == PROTO_UDPLITE:                                    # RFC 3828 3.1
        if be16(l4 + 4):
            covered = be16(l4 + 4)
        if covered > length or covered < how.header:
            return
    before = pseudo_header(d, where, length) if how.pseudo else 0       # first: a broken header length may put the field into the addresses
    field[0] = field[1] = 0
    value = fold(sum_bytes(l4, covered, before)) ^ 0xFFFF
    if value == 0 and (where.proto == PROTO_UDP or where.proto == PROTO_UDPLITE):
        value = 0xFFFF
    memcpy(field, &value, 2)


cdef void sum_ip4(Draft *d, const Layers *where) noexcept nogil:
    """RFC 791 3.1, over the header as long as it says it is, or as there is."""
    cdef uint8_t *header = writable(d, where.l3)
    cdef uint16_t value = 0
    memcpy(header + 10, &value, 2)
    value = fold(sum_bytes(header, min(where.l4, <int64_t>d.have) - where.l3, 0)) ^ 0xFFFF
    memcpy(header + 10, &value, 2)


cdef uint8_t draft_csum(Draft *d, uint8_t sums) noexcept nogil:
    """Checksums made anew. None of a fragment, nor of what is shorter than its header or was not captured as a whole."""
    cdef Layers where = layers_of(d)
    cdef int64_t size = <int64_t>d.have + d.missing, end
    cdef bint whole = True
    if where.l3 < 0:
        return R_OK
    if not draft_own(d):
        return R_RULE_ROOM
    if where.kind == ETHER_IPV4:
        end = min(where.l3 + be16(d.data + where.l3 + 2), size)
        whole = be16(d.data + where.l3 + 6) & 0x3FFF == 0
    else:
        end = min(where.l4 + be16(d.data + where.l3 + 4), size)
    if whole and end <= <int64_t>d.have:
        sum_transport(d, &where, end, sums)
    if where.kind == ETHER_IPV4 and sums & SUM_IP4H and (where.l4 <= <int64_t>d.have or not d.missing):
        sum_ip4(d, &where)
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
    if d.have < ETHERNET + TAG or not tags(be16(d.data + MACS)):
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

# Tuples: how a Key is read from headers and turned round. Used by wire on every packet and by the engine on packets quoted in ICMP errors.
#
# Lengths come in pairs: `len` is what the IP length promises, `have` (<= len) what may be read. A field beyond `len` is the packet's fault, a
# field between the two the capture's: R_SNAPPED. Functions that can fail return a Reason, R_OK where all went well.
# Not here: checks of header contents (wire), which types open a connection (the trackers).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ctcore.lowlevel cimport be16
from ctcore.types cimport (
    PROTO_GRE, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE, R_FRAGMENT, R_GRE_NOT_PPP, R_ICMP_INNER, R_IP6_CHAIN,
    R_OK, R_SNAPPED, R_TUPLE_SHORT, Key,
)

cdef enum:
    IP4_HEADER = 20
    IP6_HEADER = 40
    IP6_HOP_BY_HOP = 0
    IP6_ROUTING = 43
    IP6_FRAGMENT = 44
    IP6_AUTH = 51
    IP6_NO_NEXT = 59
    IP6_DESTINATION = 60
    GRE_PPP = 0x880B

# Where a chain of IPv6 headers ends: offset and protocol of what follows. frag: offset and M bit of the first fragment header, 0 without
# one or if it is atomic. fragmented: there is one.
ctypedef struct Chain:
    uint32_t at
    uint32_t data               # behind the first fragment header
    uint16_t frag
    uint8_t proto
    bint fragmented

cdef inline void fill_addresses(Key *key, uint8_t family, const uint8_t *ip) noexcept nogil:
    """Family and addresses from a whole fixed IP header."""
    key.family = family
    if family == 4:
        key.src[0] = key.src[1] = key.dst[0] = key.dst[1] = 0
        memcpy(key.src, ip + 12, 4)
        memcpy(key.dst, ip + 16, 4)
    else:
        memcpy(key.src, ip + 8, 16)
        memcpy(key.dst, ip + 24, 16)

cdef inline uint8_t short_of(uint32_t need, uint32_t length, uint32_t have) noexcept nogil:
    """May `need` bytes be read? R_OK, R_TUPLE_SHORT or R_SNAPPED."""
    return R_OK if need <= have else R_TUPLE_SHORT if need > length else R_SNAPPED

cdef inline uint8_t fill_gre(Key *key, const uint8_t *l4, uint32_t length, uint32_t have) noexcept nogil:
    """Only version 1 with its call id has a key; anything shorter or older is one connection per pair of addresses."""
    if length < 4:
        return R_OK
    if have < 4:
        return R_SNAPPED
    if (l4[1] & 7) != 1 or length < 8:
        return R_OK
    if have < 8:
        return R_SNAPPED
    if be16(l4 + 2) != GRE_PPP:             # RFC 2637 4.1
        return R_GRE_NOT_PPP
    key.dport = be16(l4 + 6)
    return R_OK

cdef inline uint8_t fill_ports(Key *key, const uint8_t *l4, uint32_t length, uint32_t have) noexcept nogil:
    """Ports, ICMP id and type, or GRE keys, by key.proto. R_OK, R_TUPLE_SHORT, R_GRE_NOT_PPP or R_SNAPPED."""
    cdef uint8_t reason
    cdef uint8_t proto = key.proto
    key.sport = key.dport = 0
    if proto == PROTO_TCP or proto == PROTO_UDP or proto == PROTO_SCTP or proto == PROTO_UDPLITE:
        reason = short_of(4, length, have)
        if reason == R_OK:
            key.sport = be16(l4)
            key.dport = be16(l4 + 2)
        return reason
    if proto == PROTO_ICMP or proto == PROTO_ICMPV6:
        reason = short_of(8, length, have)
        if reason == R_OK:
            key.sport = be16(l4 + 4)
            key.dport = be16(l4)
        return reason
    if proto == PROTO_GRE:
        return fill_gre(key, l4, length, have)
    return R_OK

cdef inline int icmp_opposite(uint8_t proto, uint8_t kind) noexcept nogil:
    """The reply's type for a request's and the other way round; -1 for a type that has no opposite."""
    if proto == PROTO_ICMP:
        if kind == 0 or kind == 8:                                      # echo
            return 8 - kind
        if 13 <= kind <= 18:                                            # timestamp 13/14, information 15/16, address mask 17/18
            return kind + 1 if kind & 1 else kind - 1
        return -1
    if kind == 128 or kind == 129:                                      # echo
        return 257 - kind
    if kind == 139 or kind == 140:                                      # node information
        return 279 - kind
    return -1

cdef inline bint invert(const Key *key, Key *out) noexcept nogil:
    """The tuple of the answers to `key`. False, with out undefined, for an ICMP type that has no answer. out may not be key.

    The last word is put together in a register: whoever hashes or compares it next would wait for single fields to be written.
    """
    cdef const uint64_t *w = <const uint64_t *>key
    cdef uint64_t *o = <uint64_t *>out
    cdef int opposite
    o[0], o[1], o[2], o[3] = w[2], w[3], w[0], w[1]
    if key.proto == PROTO_ICMP or key.proto == PROTO_ICMPV6:
        opposite = icmp_opposite(key.proto, key.dport >> 8)
        o[4] = w[4]
        out.dport = <uint16_t>(opposite << 8 | (key.dport & 0xFF)) if opposite >= 0 else 0
        return opposite >= 0
    o[4] = (w[4] & <uint64_t>0xFFFFFFFF00000000) | (w[4] & 0xFFFF) << 16 | (w[4] >> 16 & 0xFFFF)
    return True

cdef inline bint is_extension(uint8_t proto) noexcept nogil:
    """The headers conntrack skips; what it does not skip (ESP, mobility, HIP) is a protocol like any other."""
    return (proto == IP6_HOP_BY_HOP or proto == IP6_ROUTING or proto == IP6_DESTINATION or proto == IP6_AUTH or proto == IP6_FRAGMENT
            or proto == IP6_NO_NEXT)

cdef inline uint8_t skip_extensions(const uint8_t *ip, uint32_t length, uint32_t have, Chain *chain) noexcept nogil:
    """From chain.at and chain.proto to the first header that is none of IPv6's own; offsets count from `ip`.

    R_OK (chain.at may lie beyond length: a header needs only its first bytes here), R_IP6_CHAIN, R_SNAPPED, or R_FRAGMENT where a fragment
    header with an offset ends the chain: what follows is no header.
    """
    cdef uint32_t need
    cdef const uint8_t *h
    cdef uint16_t frag
    chain.frag = 0
    chain.fragmented = False
    while is_extension(chain.proto):
        need = chain.at + (4 if chain.proto == IP6_FRAGMENT else 2)
        if chain.proto == IP6_NO_NEXT or need > length:
            return R_IP6_CHAIN
        if need > have:
            return R_SNAPPED
        h = ip + chain.at
        if chain.proto == IP6_FRAGMENT:                                 # RFC 8200 4.5
            frag = be16(h + 2) & 0xFFF9
            chain.at += 8
            if not chain.fragmented:
                chain.frag = frag
                chain.data = chain.at
            chain.fragmented = True
            if frag & 0xFFF8:
                chain.proto = h[0]
                return R_FRAGMENT
        elif chain.proto == IP6_AUTH:                                   # RFC 4302 2.2: in 4-byte words, less two
            chain.at += (<uint32_t>h[1] + 2) * 4
        else:
            chain.at += (<uint32_t>h[1] + 1) * 8
        chain.proto = h[0]
    return R_OK

cdef inline uint8_t quoted_tuple(uint8_t family, const uint8_t *ip, uint32_t length, uint32_t have, Key *key) noexcept nogil:
    """The tuple of the packet that an ICMP error quotes at `ip`; the zone is left 0. R_OK, R_ICMP_INNER or R_SNAPPED.

    As lenient as the kernel: version, header length below 20 and checksum of a quoted header are not looked at.
    """
    cdef Chain chain
    cdef uint8_t reason
    memset(key, 0, sizeof(Key))
    reason = short_of(IP4_HEADER if family == 4 else IP6_HEADER, length, have)
    if reason != R_OK:
        return R_SNAPPED if reason == R_SNAPPED else R_ICMP_INNER
    fill_addresses(key, family, ip)
    if family == 4:
        chain.at = (ip[0] & 15) * 4
        chain.proto = ip[9]
        if be16(ip + 6) & 0x1FFF or chain.at > length:
            reason = R_ICMP_INNER
    else:
        chain.at = IP6_HEADER
        chain.proto = ip[6]
        reason = skip_extensions(ip, length, have, &chain)
    if reason == R_OK:
        key.proto = chain.proto
        # Safe: with chain.at beyond `have` nothing is left to be read.
        reason = fill_ports(key, ip + min(chain.at, have), length - min(chain.at, length), have - min(chain.at, have))
    return reason if reason == R_OK or reason == R_SNAPPED else R_ICMP_INNER

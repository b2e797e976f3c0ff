# Which worker a packet's connection belongs to, where several share the work; see steering.pyx.

from libc.stdint cimport uint32_t, uint64_t

from ctcore.lowlevel cimport mul_fold, unlikely
from ctcore.types cimport PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE, Key

cdef extern from *:
    """
    #define CT_STEER_HIGH 0x9E3779B97F4A7C15ULL
    #define CT_STEER_LOW 0xC2B2AE3D27D4EB4FULL
    #define CT_STEER_PORT 0x165667B19E3779F9ULL
    #define CT_STEER_PROTO 0xD6E8FEB86659FD93ULL
    #define CT_STEER_LAST 0xA0761D6478BD642FULL
    """
    const uint64_t STEER_HIGH "CT_STEER_HIGH"
    const uint64_t STEER_LOW "CT_STEER_LOW"
    const uint64_t STEER_PORT "CT_STEER_PORT"
    const uint64_t STEER_PROTO "CT_STEER_PROTO"
    const uint64_t STEER_LAST "CT_STEER_LAST"

cdef enum:
    MOST_SHARES = 64


cdef inline uint64_t steer_end(const uint64_t *address, uint32_t port) noexcept nogil:
    """One end of a conversation."""
    return mul_fold(mul_fold(address[0] ^ STEER_HIGH, address[1] ^ STEER_LOW) ^ port, STEER_PORT)


cdef inline uint64_t steer_ends(const uint64_t *src, uint32_t sport, const uint64_t *dst, uint32_t dport, uint32_t proto) noexcept nogil:
    """Both ends, whichever comes first."""
    return mul_fold((steer_end(src, sport) + steer_end(dst, dport)) ^ (proto * STEER_PROTO), STEER_LAST)


cdef inline uint32_t share_of(uint64_t hash, uint32_t count) noexcept nogil:
    """The hash's place among count equal parts of all hashes."""
    return <uint32_t>(((hash >> 32) * count) >> 32)


cdef inline bint is_steered(uint32_t proto) noexcept nogil:
    """Whether there are ports or an id to steer by."""
    return (proto == PROTO_TCP or proto == PROTO_UDP or proto == PROTO_ICMP or proto == PROTO_ICMPV6 or proto == PROTO_SCTP
            or proto == PROTO_UDPLITE)


cdef inline bint is_helped(uint32_t proto, uint32_t port) noexcept nogil:
    """The usual ports of what helpers read: FTP, PPTP, SIP, IRC; TFTP, SIP. What they announce is the first share's, and so are they."""
    if proto == PROTO_TCP:
        return port == 21 or port == 1723 or port == 5060 or port == 6667
    return proto == PROTO_UDP and (port == 69 or port == 5060)


cdef inline uint32_t owner_of(const Key *key, uint32_t count) noexcept nogil:
    """Who of `count` workers a tuple belongs to, its answers' as well."""
    cdef uint32_t dport = key.dport
    if not is_steered(key.proto) or unlikely(is_helped(key.proto, key.sport) or is_helped(key.proto, key.dport)):
        return 0
    if key.proto == PROTO_ICMP or key.proto == PROTO_ICMPV6:
        dport = key.sport
    return share_of(steer_ends(key.src, key.sport, key.dst, dport, key.proto), count)

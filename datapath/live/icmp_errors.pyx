"""ICMP errors: which packets may be answered with one, the bytes of it, and how many there may be.

Theory of operation: an error goes to the source of the packet it is about, and quotes its beginning: as much as makes an IPv4 packet of 576 bytes
(RFC 1812 4.3.2.3) or an IPv6 packet of 1280 (RFC 4443 2.4 c). Never answered are ICMP errors, fragments but the first, and sources that are no single
host (RFC 1812 4.3.2.7, RFC 4443 2.4 e): errors would breed errors. Each destination has a bucket, by a keyed hash, and all have one in common.
One error: hop limit 1, UDP of 1,000 bytes: type 3 code 0, its IP header and 952 bytes of the UDP packet, 1,048 bytes in all.
Invariants: nothing behind `have` is read; checksums are right whatever is quoted.
Not here: who sends it and which way (router), link-layer broadcasts (router).
"""

import secrets

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ctcore.lowlevel cimport be16, mul_fold, put_be16, put_be32
from ctcore.tuples cimport IP6_AUTH, IP6_DESTINATION, IP6_FRAGMENT, IP6_HOP_BY_HOP, IP6_ROUTING
from ctcore.types cimport PROTO_ICMP, PROTO_ICMPV6
from datapath.checksum cimport add1, fold, load32, load64, sum_bytes

cdef enum:
    IP4 = 20
    IP6 = 40
    HEADER = 8                  # of an error
    MOST4 = 576                 # bytes of an error
    TTL = 64
    PRECEDENCE = 0xC0           # internetwork control (RFC 1812 4.3.2.5)
    TOS_KEPT = 0x1C             # and the TOS of the packet, without ECN
    MOST_HEADERS = 8            # of IPv6 that are passed over
    INFORMATION6 = 0x80         # types with this bit are no errors (RFC 4443 2.1)
    REDIRECT6 = 137

# Bit t for each ICMP type that is no error: echo, router discovery, timestamp, information, address mask (RFC 792, RFC 950, RFC 1256); and extended
# echo (RFC 8335). What is not known may be an error.
cdef uint64_t QUERIES = (
    1ULL << 0 | 1ULL << 8 | 1ULL << 9 | 1ULL << 10 | 1ULL << 13 | 1ULL << 14 | 1ULL << 15 | 1ULL << 16 | 1ULL << 17 | 1ULL << 18 | 1ULL << 42
    | 1ULL << 43
)


# --- which may be made ------------------------------------------------------------------------------------------------------------------


cdef bint answerable4(const uint8_t *ip, uint32_t have) noexcept nogil:
    cdef uint32_t head, total
    if have < IP4 or ip[0] >> 4 != 4:
        return False
    head, total = (ip[0] & 15) << 2, be16(ip + 2)
    if head < IP4 or total < head or total > have or be16(ip + 6) & 0x1FFF:
        return False
    if ip[12] == 0 or ip[12] == 127 or ip[12] >= 224:            # no single host
        return False
    if ip[9] != PROTO_ICMP:
        return True
    return total > head and ip[head] < 64 and QUERIES >> ip[head] & 1


cdef bint answerable6(const uint8_t *ip, uint32_t have) noexcept nogil:
    cdef uint32_t at = IP6, end, i
    cdef uint8_t kind
    if have < IP6 or ip[0] >> 4 != 6:
        return False
    end, kind = IP6 + be16(ip + 4), ip[6]
    if end > have or ip[8] == 0xFF or (load64(ip + 8) == 0 and load64(ip + 16) == 0):
        return False
    for i in range(<uint32_t>MOST_HEADERS):
        if kind == PROTO_ICMPV6:
            return at < end and ip[at] & INFORMATION6 and ip[at] != REDIRECT6
        if kind != IP6_HOP_BY_HOP and kind != IP6_ROUTING and kind != IP6_FRAGMENT and kind != IP6_AUTH and kind != IP6_DESTINATION:
            return True
        if end - at < 8 or (kind == IP6_FRAGMENT and be16(ip + at + 2) & 0xFFF8):
            return False
        kind, at = ip[at], at + (8 if kind == IP6_FRAGMENT else (ip[at + 1] + 2) << 2 if kind == IP6_AUTH else (ip[at + 1] + 1) << 3)
        if at > end:
            return False
    return False


cdef bint may_be_answered(const uint8_t *packet, uint32_t have) noexcept nogil:
    """Whether an error about this IP packet may be sent to its source."""
    if have == 0:
        return False
    return answerable6(packet, have) if packet[0] >> 4 == 6 else answerable4(packet, have)


# --- its bytes --------------------------------------------------------------------------------------------------------------------------


cdef inline void put_sum(uint8_t *field, uint64_t total) noexcept nogil:
    cdef uint16_t value = ~fold(total)
    memcpy(field, &value, 2)


cdef inline void put_header(uint8_t *error, const Said *said) noexcept nogil:
    error[0], error[1] = said.type, said.code
    put_be16(error + 2, 0)
    put_be32(error + 4, said.word)


cdef uint32_t write4(uint8_t *room, const uint8_t *packet, const uint8_t *source, const Said *said, uint16_t ident) noexcept nogil:
    cdef uint32_t quoted = min(be16(packet + 2), <uint32_t>(MOST4 - IP4 - HEADER))
    cdef uint32_t total = IP4 + HEADER + quoted
    room[0], room[1] = 0x45, PRECEDENCE | (packet[1] & TOS_KEPT)
    put_be16(room + 2, total)
    put_be16(room + 4, ident)
    put_be16(room + 6, 0)
    room[8], room[9] = TTL, PROTO_ICMP
    put_be16(room + 10, 0)
    memcpy(room + 12, source, 4)
    memcpy(room + 16, packet + 12, 4)
    put_sum(room + 10, sum_bytes(room, IP4, 0))
    put_header(room + IP4, said)
    memcpy(room + IP4 + HEADER, packet, quoted)
    put_sum(room + IP4 + 2, sum_bytes(room + IP4, HEADER + quoted, 0))
    return total


cdef uint32_t write6(uint8_t *room, const uint8_t *packet, const uint8_t *source, const Said *said) noexcept nogil:
    cdef uint32_t quoted = min(<uint32_t>(IP6 + be16(packet + 4)), <uint32_t>(ERROR_ROOM - IP6 - HEADER))
    cdef uint32_t length = HEADER + quoted
    cdef uint8_t[4] pseudo                                       # length and protocol of RFC 8200 8.1, both of which fit in 16 bits
    memset(room, 0, 8)
    room[0] = 0x60
    put_be16(room + 4, length)
    room[6], room[7] = PROTO_ICMPV6, TTL
    memcpy(room + 8, source, 16)
    memcpy(room + 24, packet + 8, 16)
    put_header(room + IP6, said)
    memcpy(room + IP6 + HEADER, packet, quoted)
    put_be16(pseudo, length)
    put_be16(pseudo + 2, PROTO_ICMPV6)
    put_sum(room + IP6 + 2, add1(sum_bytes(room + 8, 32 + length, 0), load32(pseudo)))
    return IP6 + length


cdef uint32_t write_error(uint8_t *room, const uint8_t *packet, const uint8_t *source, const Said *said, uint16_t ident) noexcept nogil:
    """An error from `source` about a packet that may be answered, from its IP header on; how many bytes, ERROR_ROOM at most."""
    if packet[0] >> 4 == 6:
        return write6(room, packet, source, said)
    return write4(room, packet, source, said, ident)


# --- how many ---------------------------------------------------------------------------------------------------------------------------


cdef void limits_set(Limits *limits, double rate, double burst, double peer_rate, double peer_burst) except *:
    """rate: errors a second, 0: none; burst: at once after a pause; likewise for each destination, 0: no limit. Buckets are full then."""
    if not (0 <= rate <= 1e9 and 1 <= burst <= 1e6 and 0 <= peer_rate <= 1e9 and 1 <= peer_burst <= 1e6):
        raise ValueError("limits: expected rates of 0 to 10^9 a second, bursts of 1 to 10^6")
    memset(limits, 0, sizeof(Limits))
    limits.cost = <int64_t>(1e9 / rate) if rate else 0
    limits.most = <int64_t>(limits.cost * burst)
    limits.peer_cost = <int64_t>(1e9 / peer_rate) if peer_rate else 0
    limits.peer_most = <int64_t>(limits.peer_cost * peer_burst)
    limits.secret[0], limits.secret[1] = secrets.randbits(64), secrets.randbits(64) | 1
    limits.all.credit = limits.most
    for i in range(PEERS):
        limits.peer[i].credit = limits.peer_most


cdef inline bint spend(Budget *budget, int64_t cost, int64_t most, int64_t now) noexcept nogil:
    """Time that goes back gives nothing."""
    if budget.last == 0 or now - budget.last > most:             # the latter before it is added: it may be any number
        budget.credit = most
    elif now > budget.last:
        budget.credit = min(budget.credit + now - budget.last, most)
    budget.last = now
    if budget.credit < cost:
        return False
    budget.credit -= cost
    return True


cdef bint limits_peer(Limits *limits, const uint8_t *address, bint six, int64_t now) noexcept nogil:
    """Whether one more may go to this address. Who shares its bucket shares its errors; the key is secret, so nobody chooses with whom."""
    cdef uint64_t hi, lo = 0
    if limits.peer_cost == 0:
        return True
    hi = load64(address) if six else load32(address)
    if six:
        lo = load64(address + 8)
    hi = mul_fold(mul_fold(hi ^ limits.secret[0], lo ^ limits.secret[1]) ^ limits.secret[0], limits.secret[1])
    return spend(&limits.peer[hi >> 32 & (PEERS - 1)], limits.peer_cost, limits.peer_most, now)


cdef bint limits_all(Limits *limits, int64_t now) noexcept nogil:
    """Whether one more may be sent at all."""
    return limits.cost != 0 and spend(&limits.all, limits.cost, limits.most, now)

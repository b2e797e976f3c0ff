# Link layers: from the first byte of a frame to its IP header, for every LINKTYPE a capture may have here.
#
# A Cursor walks over the frame. `length` is what the frame had on the wire, `have` (<= length) what was captured; only take() moves it, and
# only over captured bytes. Functions return a Reason, R_OK with *family set to 4 or 6.
# Not here: the IP header itself (wire), whether the capture can be read (capture).

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from ctcore.lowlevel cimport be16, be32
from ctcore.types cimport R_FRAME_SHORT, R_NOT_IP, R_OK, R_SNAPPED

cdef enum:
    MAX_TAGS = 4                # VLAN tags deep
    MAX_LABELS = 16             # MPLS labels deep
    ETHER_IPV4 = 0x0800
    ETHER_IPV6 = 0x86DD
    ETHER_VLAN = 0x8100
    ETHER_QINQ = 0x88A8
    ETHER_QINQ_OLD1 = 0x9100
    ETHER_QINQ_OLD2 = 0x9200
    ETHER_MPLS = 0x8847
    ETHER_MPLS_MULTICAST = 0x8848
    ETHER_PPPOE = 0x8864
    PPPOE_VERSION_TYPE = 0x11
    PPP_IPV4 = 0x0021
    PPP_IPV6 = 0x0057

# LINKTYPE_* of the capture formats; LINKTYPE_RAW has three numbers, two of them from BSD systems' DLT_RAW.
cdef enum:
    LINKTYPE_NULL = 0
    LINKTYPE_ETHERNET = 1
    LINKTYPE_RAW_12 = 12
    LINKTYPE_RAW_14 = 14
    LINKTYPE_RAW = 101
    LINKTYPE_LOOP = 108
    LINKTYPE_SLL = 113
    LINKTYPE_IPV4 = 228
    LINKTYPE_IPV6 = 229
    LINKTYPE_SLL2 = 276

ctypedef struct Cursor:
    const uint8_t *p
    uint32_t length
    uint32_t have

cdef inline uint8_t take(Cursor *c, uint32_t n, const uint8_t **header) noexcept nogil:
    """Step over n bytes; R_OK with *header at the first of them."""
    if n > c.have:
        return R_FRAME_SHORT if n > c.length else R_SNAPPED
    header[0] = c.p
    c.p += n
    c.length -= n
    c.have -= n
    return R_OK

cdef inline uint8_t by_version(Cursor *c, uint8_t *family) noexcept nogil:
    """The version nibble decides; the cursor stays before it."""
    if c.have < 1:
        return R_FRAME_SHORT if c.length < 1 else R_SNAPPED
    family[0] = c.p[0] >> 4
    return R_OK if family[0] == 4 or family[0] == 6 else R_NOT_IP

cdef inline uint8_t by_mpls(Cursor *c, uint8_t *family) noexcept nogil:
    """Labels down to the bottom of the stack (RFC 3032 2.1), then IP or, with nibble 0, a pseudowire (RFC 4385 3)."""
    cdef uint8_t reason
    cdef const uint8_t *h
    for _ in range(MAX_LABELS):
        reason = take(c, 4, &h)
        if reason != R_OK:
            return reason
        if h[2] & 1:
            return by_version(c, family)
    return R_NOT_IP

cdef inline uint8_t by_pppoe(Cursor *c, uint8_t *family) noexcept nogil:
    """A session's data (RFC 2516 4); its length bounds the packet. The protocol may be compressed to one odd byte (RFC 1661 6.5)."""
    cdef uint32_t bound, proto
    cdef const uint8_t *h
    cdef uint8_t reason = take(c, 6, &h)
    if reason != R_OK:
        return reason
    if h[0] != PPPOE_VERSION_TYPE or h[1] != 0:
        return R_NOT_IP
    bound = be16(h + 4)
    if bound > c.length:
        return R_FRAME_SHORT
    c.length = bound
    c.have = min(c.have, bound)
    reason = take(c, 1, &h)
    if reason != R_OK:
        return reason
    proto = h[0]
    if not proto & 1:
        reason = take(c, 1, &h)
        if reason != R_OK:
            return reason
        proto = proto << 8 | h[0]
    family[0] = 4 if proto == PPP_IPV4 else 6
    return R_OK if proto == PPP_IPV4 or proto == PPP_IPV6 else R_NOT_IP

cdef inline bint is_vlan(uint16_t kind) noexcept nogil:
    return kind == ETHER_VLAN or kind == ETHER_QINQ or kind == ETHER_QINQ_OLD1 or kind == ETHER_QINQ_OLD2

cdef inline uint8_t by_ethertype(Cursor *c, uint16_t kind, uint8_t *family) noexcept nogil:
    """What follows an Ethernet type. Below 0x600 it is a length (IEEE 802.3): LLC, in which conntrack does not look for IP."""
    cdef uint8_t reason
    cdef const uint8_t *h
    for _ in range(MAX_TAGS):
        if not is_vlan(kind):
            break
        reason = take(c, 4, &h)
        if reason != R_OK:
            return reason
        kind = be16(h + 2)
    if kind == ETHER_IPV4 or kind == ETHER_IPV6:
        family[0] = 4 if kind == ETHER_IPV4 else 6
        return R_OK
    if kind == ETHER_MPLS or kind == ETHER_MPLS_MULTICAST:
        return by_mpls(c, family)
    if kind == ETHER_PPPOE:
        return by_pppoe(c, family)
    return R_NOT_IP

cdef inline uint8_t by_address_family(uint32_t af, uint8_t *family) noexcept nogil:
    """AF_INET is 2 everywhere; AF_INET6 is 10 on Linux, 24, 28 and 30 on the BSDs."""
    family[0] = 4 if af == 2 else 6
    return R_OK if af == 2 or af == 10 or af == 24 or af == 28 or af == 30 else R_NOT_IP

cdef inline uint8_t to_ip(Cursor *c, uint32_t link, uint8_t *family) noexcept nogil:
    """Move the cursor from the frame's first byte to its IP header."""
    cdef uint8_t reason
    cdef const uint8_t *h
    cdef uint32_t af
    if link == LINKTYPE_ETHERNET:
        reason = take(c, 14, &h)
        return by_ethertype(c, be16(h + 12), family) if reason == R_OK else reason
    if link == LINKTYPE_SLL:
        reason = take(c, 16, &h)
        return by_ethertype(c, be16(h + 14), family) if reason == R_OK else reason
    if link == LINKTYPE_SLL2:
        reason = take(c, 20, &h)
        return by_ethertype(c, be16(h), family) if reason == R_OK else reason
    if link == LINKTYPE_NULL or link == LINKTYPE_LOOP:
        reason = take(c, 4, &h)
        if reason != R_OK:
            return reason
        af = be32(h)
        if link == LINKTYPE_NULL and (af & 0xFFFF) == 0:                  # written by a little-endian host
            af = h[0] | h[1] << 8
        return by_address_family(af, family)
    if link == LINKTYPE_IPV4 or link == LINKTYPE_IPV6:
        family[0] = 4 if link == LINKTYPE_IPV4 else 6
        return R_OK
    if link == LINKTYPE_RAW or link == LINKTYPE_RAW_12 or link == LINKTYPE_RAW_14:
        return by_version(c, family)
    return R_NOT_IP

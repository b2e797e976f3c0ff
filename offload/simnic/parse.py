"""What a NIC's parser makes of a frame: the key, and where the headers lie. Its own parser, on the bytes of the wire.

Ethernet, up to two VLAN tags, IPv4 without options, IPv6 without extensions, whole packets only; TCP, UDP, GRE, ICMP, ports of SCTP and UDP-Lite.
Everything else is for software (contract A8.61): a Why instead of a key. What is no IP at all has a key of its Ethernet header.
Invariants: nothing is read at or beyond offset + caplen; whatever is said of a key lies within the packet by its IP header, too.
Not here: checksums, which a NIC's steering does not look at.
"""

from __future__ import annotations

import numpy as np

from offload.simnic.kernel import inlined
from offload.simnic.layout import W_CT, W_DST_MAC, W_NETWORK, W_PORTS, W_SRC_MAC, W_TYPES, WORDS
from offload.simnic.results import Why

ETHERNET, TAG, IP4, IP6, MOST_TAGS = 14, 4, 20, 40, 2
ETH_IP, ETH_VLAN, ETH_IPV6, ETH_QINQ = 0x0800, 0x8100, 0x86DD, 0x88A8
ICMP, TCP, UDP, GRE, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 47, 58, 132, 136
# Extension headers of IPv6 (IANA): hop-by-hop, routing, fragment, AH, destination, mobility, HIP, shim6.
HOP_BY_HOP, ROUTING, FRAGMENT, AUTH, DESTINATION, MOBILITY, HIP, SHIM6 = 0, 43, 44, 51, 60, 135, 139, 140

# Where the headers lie, in the array `at`: -1 where there is none. AT_END: of the IP packet; AT_GRE: version and flags of GRE.
AT_L3, AT_L4, AT_END, AT_GRE = 0, 1, 2, 3
N_AT = 4

LINK, TRUNCATED, TAGS = int(Why.LINK), int(Why.TRUNCATED), int(Why.TAGS)
IP_HEADER, IP_LENGTH, IP_OPTIONS = int(Why.IP_HEADER), int(Why.IP_LENGTH), int(Why.IP_OPTIONS)
IP6_EXTENSION, IS_FRAGMENT, TRANSPORT = int(Why.IP6_EXTENSION), int(Why.FRAGMENT), int(Why.TRANSPORT)


@inlined
def be16(m, i):
    return np.int64(m[i]) << 8 | np.int64(m[i + 1])


@inlined
def load32(m, i):
    """In the machine's order, as all loads of whole fields."""
    return np.int64(m[i]) | np.int64(m[i + 1]) << 8 | np.int64(m[i + 2]) << 16 | np.int64(m[i + 3]) << 24


@inlined
def load64(m, i):
    return load32(m, i) | load32(m, i + 4) << 32


@inlined
def load48(m, i):
    return load32(m, i) | np.int64(m[i + 4]) << 32 | np.int64(m[i + 5]) << 40


@inlined
def parse(m, offset, caplen, length, key, at):
    """A frame to its key.   Writes: key, whose iface and ct fields are 0; at, in bytes from the start of m. Returns a Why, 0: parsed.

    length: bytes on the wire; caplen of them lie in m from offset on.
    """
    for w in range(WORDS):
        key[w] = 0
    at[AT_L3] = at[AT_L4] = at[AT_END] = -1
    end = offset + caplen
    if caplen < ETHERNET:
        return TRUNCATED
    key[W_DST_MAC] = load48(m, offset)
    key[W_SRC_MAC] = load48(m, offset + 6)
    kind = be16(m, offset + 12)
    key[W_TYPES] = kind
    l3 = offset + ETHERNET
    tags = 0
    while kind == ETH_VLAN or kind == ETH_QINQ:
        if tags == MOST_TAGS:
            return TAGS
        if l3 + TAG > end:
            return TRUNCATED
        tci = be16(m, l3) & 0xEFFF
        kind = be16(m, l3 + 2)
        if tags == 0:
            key[W_TYPES] |= tci << 16 | kind << 32
        else:
            key[W_TYPES] |= tci << 48
            key[W_NETWORK] = kind
        tags += 1
        l3 += TAG
    if kind == ETH_IP:
        return parse_ip4(m, l3, end, offset + length, key, at)
    if kind == ETH_IPV6:
        return parse_ip6(m, l3, end, offset + length, key, at)
    return 0


@inlined
def parse_ip4(m, l3, end, wire_end, key, at):
    """RFC 791 3.1. end: of what was captured; wire_end: of the frame."""
    if l3 + IP4 > end:
        return TRUNCATED
    first = np.int64(m[l3])
    if first >> 4 != 4 or first & 15 < 5:
        return IP_HEADER
    if first & 15 != 5:
        return IP_OPTIONS
    if be16(m, l3 + 6) & 0x3FFF:
        return IS_FRAGMENT
    total = be16(m, l3 + 2)
    if total < IP4 or l3 + total > wire_end:
        return IP_LENGTH
    proto = np.int64(m[l3 + 9])
    key[0] = load32(m, l3 + 12)
    key[2] = load32(m, l3 + 16)
    key[W_PORTS] = proto << 48 | np.int64(4) << 56
    key[W_NETWORK] |= np.int64(m[l3 + 1]) << 16 | np.int64(m[l3 + 8]) << 24
    at[AT_L3], at[AT_L4], at[AT_END] = l3, l3 + IP4, l3 + total
    return parse_l4(m, l3 + IP4, min(end, l3 + total), proto, key, at)


@inlined
def parse_ip6(m, l3, end, wire_end, key, at):
    """RFC 8200 3. A payload length of 0 is a jumbogram's (RFC 2675), or of a packet that has none."""
    if l3 + IP6 > end:
        return TRUNCATED
    if m[l3] >> 4 != 6:
        return IP_HEADER
    proto = np.int64(m[l3 + 6])
    if proto == FRAGMENT:
        return IS_FRAGMENT
    if (
        proto == HOP_BY_HOP or proto == ROUTING or proto == AUTH or proto == DESTINATION or proto == MOBILITY or proto == HIP or proto == SHIM6
    ):  # fmt: skip
        return IP6_EXTENSION
    last = l3 + IP6 + be16(m, l3 + 4)
    if last > wire_end:
        return IP_LENGTH
    key[0] = load64(m, l3 + 8)
    key[1] = load64(m, l3 + 16)
    key[2] = load64(m, l3 + 24)
    key[3] = load64(m, l3 + 32)
    key[W_PORTS] = proto << 48 | np.int64(6) << 56
    key[W_NETWORK] |= (be16(m, l3) >> 4 & 0xFF) << 16 | np.int64(m[l3 + 7]) << 24
    at[AT_L3], at[AT_L4], at[AT_END] = l3, l3 + IP6, last
    return parse_l4(m, l3 + IP6, min(end, last), proto, key, at)


@inlined
def parse_l4(m, l4, end, proto, key, at):
    """end: of the packet, and of what was captured. Of protocols that are not known nothing is read."""
    if proto == TCP:
        if l4 + 20 > end:
            return TRUNCATED
        if m[l4 + 12] >> 4 < 5:
            return TRANSPORT
        key[W_PORTS] |= be16(m, l4) | be16(m, l4 + 2) << 16
        key[W_NETWORK] |= (be16(m, l4 + 12) & 0xFFF) << 32
    elif proto == UDP or proto == UDPLITE or proto == SCTP:
        if l4 + 8 > end:
            return TRUNCATED
        key[W_PORTS] |= be16(m, l4) | be16(m, l4 + 2) << 16
    elif proto == ICMP or proto == ICMPV6:
        if l4 + 8 > end:
            return TRUNCATED
        key[W_NETWORK] |= np.int64(m[l4]) << 48 | np.int64(m[l4 + 1]) << 56
    elif proto == GRE:
        if l4 + 4 > end:
            return TRUNCATED
        at[AT_GRE] = be16(m, l4)
    return 0


assert W_CT == WORDS - 1

"""The fields that flower rules match, read from a packet that parse() has been over.

Theory of operation: parse() says where the IP header is; from there on the fields are read as Linux's flow dissector reads them, which believes every
header that is there: checksums, and lengths but those of headers, are nothing to it. Fragments have no ports, not even the first. A packet whose
checksum is wrong, or was left wrong by pedit, is matched by its ports like any other.
Invariants: nothing is read beyond frame.caplen; a FlowerKey has no padding, so that masks can be laid over it word by word.
Not here: rules (rules), comparing (classify), what ct says (filled in by whoever does the ct action).
"""

import numpy as np

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from ctcore.lowlevel cimport be16
from ctcore.tuples cimport IP6_DESTINATION, IP6_FRAGMENT, IP6_HEADER, IP6_HOP_BY_HOP, IP6_ROUTING
from ctcore.types cimport PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE, Packet
from datapath.frame cimport Frame, checked_frames
from datapath.link cimport ETHER_IPV4, ETHER_IPV6, ETHER_QINQ, ETHER_VLAN, LINKTYPE_ETHERNET
from datapath.wire cimport FRAGMENTS_GATHERED, ParseSettings, parse

cdef enum:
    ETHERNET = 14
    TAG = 4
    IP4_HEADER = 20
    ARP = 28                    # Ethernet and IPv4 (RFC 826)
    # What has to be there of a transport header.
    PORTS = 4
    ICMP = 8
    TCP = 20
    ARP_REQUEST = 1
    ARP_REPLY = 2
    ETHER_ARP = 0x0806
    ETHER_RARP = 0x8035

assert sizeof(FlowerKey) == 8 * FLOWER_WORDS

FLOWER_DTYPE = np.dtype([
    ("dst_mac", "u1", 6), ("src_mac", "u1", 6), ("eth_type", "u2"), ("indev", "u2"), ("vlan_tci", "u2"), ("vlan_ethtype", "u2"),
    ("cvlan_tci", "u2"), ("cvlan_ethtype", "u2"), ("ip_proto", "u1"), ("ip_tos", "u1"), ("ip_ttl", "u1"), ("ip_flags", "u1"),
    ("src_port", "u2"), ("dst_port", "u2"), ("src_ip", "u1", 16), ("dst_ip", "u1", 16), ("tcp_flags", "u2"), ("icmp_type", "u1"),
    ("icmp_code", "u1"), ("ct_mark", "u4"), ("ct_label", "u8", 2), ("ct_zone", "u2"), ("ct_state", "u1"), ("arp_op", "u1"), ("arp_sip", "u1", 4),
    ("arp_tip", "u1", 4), ("arp_sha", "u1", 6), ("arp_tha", "u1", 6),
])
assert FLOWER_DTYPE.itemsize == sizeof(FlowerKey)


cdef void read_arp(const uint8_t *arp, uint32_t have, FlowerKey *key) noexcept nogil:
    """RFC 826, requests and replies of Ethernet and IPv4. Others have no fields to match, not even an operation (__skb_flow_dissect_arp)."""
    if have < ARP or be16(arp) != 1 or be16(arp + 2) != ETHER_IPV4 or arp[4] != 6 or arp[5] != 4:
        return
    if be16(arp + 6) != ARP_REQUEST and be16(arp + 6) != ARP_REPLY:
        return
    key.arp_op = arp[7]
    memcpy(key.arp_sha, arp + 8, 6)
    memcpy(key.arp_sip, arp + 14, 4)
    memcpy(key.arp_tha, arp + 18, 6)
    memcpy(key.arp_tip, arp + 24, 4)


cdef uint32_t read_ethernet(const uint8_t *frame, uint32_t have, FlowerKey *key, uint16_t *payload) noexcept nogil:
    """MACs, types, and two tags (IEEE 802.1Q 9.6). Where the payload begins; its type is written to `payload`."""
    cdef uint32_t at = ETHERNET
    cdef uint16_t kind
    payload[0] = 0
    if have < ETHERNET:
        return have
    memcpy(key.dst_mac, frame, 12)
    kind = key.eth_type = be16(frame + 12)
    if (kind == ETHER_VLAN or kind == ETHER_QINQ) and have >= at + TAG:
        key.vlan_tci = be16(frame + at) & 0xEFFF
        kind = key.vlan_ethtype = be16(frame + at + 2)
        at += TAG
        if (kind == ETHER_VLAN or kind == ETHER_QINQ) and have >= at + TAG:
            key.cvlan_tci = be16(frame + at) & 0xEFFF
            kind = key.cvlan_ethtype = be16(frame + at + 2)
            at += TAG
    if kind == ETHER_ARP or kind == ETHER_RARP:
        read_arp(frame + at, have - at, key)
    payload[0] = kind
    return at


cdef inline bint is_option(uint8_t proto) noexcept nogil:
    """A header of IPv6 that the dissector steps over; IPsec's AH is none."""
    return proto == IP6_HOP_BY_HOP or proto == IP6_ROUTING or proto == IP6_DESTINATION


cdef uint32_t read_ip4(const uint8_t *ip, FlowerKey *key) noexcept nogil:
    """RFC 791 3.1. Where the transport header begins, 0: nowhere. Of a header that is too short by its own word nothing is believed."""
    cdef uint16_t frag = be16(ip + 6) & 0x3FFF
    if ip[0] & 15 < 5:
        return 0
    key.ip_proto, key.ip_tos, key.ip_ttl = ip[9], ip[1], ip[8]
    memcpy(key.src_ip, ip + 12, 4)
    memcpy(key.dst_ip, ip + 16, 4)
    if frag:
        key.ip_flags = IP_FRAGMENT if frag & 0x1FFF else IP_FRAGMENT | IP_FIRST_FRAGMENT
        return 0
    return (ip[0] & 15) * 4


cdef uint32_t read_ip6(const uint8_t *ip, uint32_t have, FlowerKey *key) noexcept nogil:
    """RFC 8200 3 and 4, likewise."""
    cdef uint32_t at = IP6_HEADER
    key.ip_proto, key.ip_tos, key.ip_ttl = ip[6], <uint8_t>(be16(ip) >> 4), ip[7]
    memcpy(key.src_ip, ip + 8, 16)
    memcpy(key.dst_ip, ip + 24, 16)
    while is_option(key.ip_proto):
        if at + 2 > have:
            return 0
        key.ip_proto = ip[at]
        at += (<uint32_t>ip[at + 1] + 1) * 8
    if key.ip_proto != IP6_FRAGMENT:
        return at
    if at + 8 <= have:
        key.ip_proto = ip[at]
        key.ip_flags = IP_FRAGMENT if be16(ip + at + 2) & 0xFFF8 else IP_FRAGMENT | IP_FIRST_FRAGMENT
    return 0


cdef void read_l4(const uint8_t *l4, uint32_t have, FlowerKey *key) noexcept nogil:
    """Ports, flags, ICMP's type and code, each if its header is there. Neither checksums nor the IP header's length are asked."""
    if key.ip_proto == PROTO_ICMP or key.ip_proto == PROTO_ICMPV6:
        if have >= ICMP:
            key.icmp_type, key.icmp_code = l4[0], l4[1]
    elif have >= PORTS and (
        key.ip_proto == PROTO_TCP or key.ip_proto == PROTO_UDP or key.ip_proto == PROTO_UDPLITE or key.ip_proto == PROTO_SCTP
    ):
        key.src_port, key.dst_port = be16(l4), be16(l4 + 2)
        if key.ip_proto == PROTO_TCP and have >= TCP and l4[12] >> 4 >= 5:
            key.tcp_flags = be16(l4 + 12) & 0xFFF


cdef void flower_key(const uint8_t *frame, uint32_t have, bint ethernet, uint8_t family, uint32_t l3, FlowerKey *key) noexcept nogil:
    """A frame of `have` bytes to the fields.   Writes: all of key; indev and the ct_* fields are 0.

    family, l3: of frames without Ethernet, as they came: which IP header follows, 0: none, and where. As in Linux (__skb_flow_dissect) the type says what
    an IP header is, not its own version.
    """
    cdef uint32_t at = l3, l4 = 0
    cdef uint16_t kind = 0
    memset(key, 0, sizeof(FlowerKey))
    if ethernet:
        at = read_ethernet(frame, have, key, &kind)
    elif family:
        kind = key.eth_type = ETHER_IPV4 if family == 4 else ETHER_IPV6
    have -= at
    if kind == ETHER_IPV4 and have >= <uint32_t>IP4_HEADER:
        l4 = read_ip4(frame + at, key)
    elif kind == ETHER_IPV6 and have >= <uint32_t>IP6_HEADER:
        l4 = read_ip6(frame + at, have, key)
    if l4 and l4 < have:
        read_l4(frame + at + l4, have - l4, key)


def flower_keys(const uint8_t[::1] memory not None, frames not None):
    """The fields of frames; see flower.pyi."""
    cdef const Frame *frame = checked_frames(memory, frames)
    cdef const uint8_t *base = &memory[0] if memory.shape[0] else NULL
    cdef Py_ssize_t n = len(frames), i
    cdef ParseSettings settings
    cdef Packet p
    cdef FlowerKey *key
    keys = np.zeros(n, dtype=FLOWER_DTYPE)
    key = <FlowerKey *><size_t>keys.ctypes.data
    memset(&settings, 0, sizeof(ParseSettings))
    settings.fragments, settings.at_hook = FRAGMENTS_GATHERED, True
    for i in range(n):
        parse(&settings, base, frame + i, 1, &p)
        flower_key(base + frame[i].offset, frame[i].caplen, frame[i].link == LINKTYPE_ETHERNET, p.key.family, p.l3_off, key + i)
    return keys

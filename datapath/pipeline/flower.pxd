# A packet as flower sees it: the fields that rules match, in one struct of whole words, so that a rule is compared as value and mask.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    FLOWER_WORDS = 14
    IP_FRAGMENT = 1             # ip_flags, as in rules.IP_FLAGS
    IP_FIRST_FRAGMENT = 2

# Numbers in host order, addresses as in a packet. What a packet does not have is 0. eth_type is the frame's own, of a tagged frame 802.1Q or
# 802.1ad; the types behind its tags are the other two. The ct_* fields are those of the last `ct` action.
ctypedef struct FlowerKey:
    uint8_t dst_mac[6]
    uint8_t src_mac[6]
    uint16_t eth_type
    uint16_t indev
    uint16_t vlan_tci           # priority << 13 | id
    uint16_t vlan_ethtype
    uint16_t cvlan_tci
    uint16_t cvlan_ethtype
    uint8_t ip_proto
    uint8_t ip_tos
    uint8_t ip_ttl
    uint8_t ip_flags
    uint16_t src_port
    uint16_t dst_port
    uint8_t src_ip[16]          # IPv4 in the first four bytes and zeros behind
    uint8_t dst_ip[16]
    uint16_t tcp_flags
    uint8_t icmp_type
    uint8_t icmp_code
    uint32_t ct_mark
    uint64_t ct_label[2]        # low word first
    uint16_t ct_zone
    uint8_t ct_state
    uint8_t arp_op
    uint8_t arp_sip[4]
    uint8_t arp_tip[4]
    uint8_t arp_sha[6]
    uint8_t arp_tha[6]

cdef void flower_key(const uint8_t *frame, uint32_t have, bint ethernet, uint8_t family, uint32_t l3, FlowerKey *key) noexcept nogil

# A frame that actions may change: where it lies, and in which memory a changed one does. See draft.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from ctcore.lowlevel cimport be16
from ctcore.types cimport Packet
from datapath.frame cimport Frame
from datapath.link cimport ETHER_QINQ, ETHER_VLAN, LINKTYPE_ETHERNET

cdef enum:
    MACS = 12                   # bytes of an Ethernet header: both addresses; all of it, without tags; a tag
    ETHERNET = 14
    TAG = 4
    DRAFT_ROOM = 1 << 19        # bytes of memory for a changed frame: twice the largest that a capture may hold
    DRAFT_HEADROOM = 256        # bytes free in front of it, for tags

# data: of the frame as it is, in memory that is not to be written, or (own) in room.
ctypedef struct Draft:
    const uint8_t *data
    uint8_t *room               # DRAFT_ROOM bytes
    uint32_t have               # bytes
    uint32_t missing            # bytes behind them that were on the wire and not captured
    uint8_t own
    uint8_t ethernet            # other frames have no header to be changed in front of their IP header
    uint8_t family              # of another frame's IP header, 0 without one, and where it begins: it stays there
    uint16_t l3

# Where a munge's offset counts from.
cdef enum:
    BASE_FRAME = 0
    BASE_L3 = 1
    BASE_L4 = 2

# One change of a header field: the bytes of the field become old & ~mask | value, or old & ~mask | (old + value) & mask if it is one byte to add to.
ctypedef struct Munge:
    uint8_t base
    uint8_t offset
    uint8_t size                # bytes, up to 16
    uint8_t add
    uint8_t proto               # of BASE_L4: IPv6 has to have this header
    uint8_t[16] value
    uint8_t[16] mask

# Which checksums are made anew: a bit for each, by the places of their names in tc_actions.CSUM_ORDER.
cdef enum:
    SUM_IP4H = 0x01
    SUM_ICMP = 0x02
    SUM_IGMP = 0x04
    SUM_TCP = 0x08
    SUM_UDP = 0x10
    SUM_UDPLITE = 0x20
    SUM_SCTP = 0x40

cdef enum:
    VLAN_PUSH = 0
    VLAN_POP = 1
    VLAN_MODIFY = 2

# A tag that is put in front, taken off, or changed. kept: the bits of the tag that stay.
ctypedef struct TagChange:
    uint16_t protocol
    uint16_t tag
    uint16_t kept
    uint8_t kind

# Offsets in a frame: of its payload, and of the IP header, -1 if that is not there as a whole. kind: ethertype of the payload.
ctypedef struct Layers:
    int64_t at
    int64_t l3
    uint16_t kind

cdef inline void draft_begin(Draft *d, const uint8_t *memory, const Frame *frame, const Packet *p) noexcept nogil:
    """A frame as it came. p: what parse() made of it."""
    d.data = memory + frame.offset
    d.have = frame.caplen
    d.missing = max(frame.len, frame.caplen) - frame.caplen
    d.ethernet, d.own = frame.link == LINKTYPE_ETHERNET, False
    d.family, d.l3 = p.key.family, p.l3_off

cdef inline bint draft_tagged(const Draft *d) noexcept nogil:
    """Has this Ethernet frame a tag?"""
    return d.have >= ETHERNET + TAG and (be16(d.data + MACS) == ETHER_VLAN or be16(d.data + MACS) == ETHER_QINQ)


cdef Layers layers_of(const Draft *d) noexcept nogil
cdef bint draft_own(Draft *d) noexcept nogil
cdef uint8_t draft_pedit(Draft *d, const Munge *munge, uint32_t n) noexcept nogil
cdef uint8_t draft_csum(Draft *d, uint8_t sums) noexcept nogil
cdef uint8_t draft_vlan(Draft *d, const TagChange *change) noexcept nogil

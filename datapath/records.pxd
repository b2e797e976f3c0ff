# The scans over the records of a capture: their state, why they stop, and the numbers of the formats. See records.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from datapath.frame cimport Frame

cdef extern from *:
    """
    #define swap16 __builtin_bswap16
    #define swap32 __builtin_bswap32
    """
    uint16_t swap16(uint16_t) noexcept nogil
    uint32_t swap32(uint32_t) noexcept nogil

cdef enum:
    RECORD_LIMIT = 1 << 24      # bytes; the largest pcapng block, and the largest snaplen, that is believed
    SNAPLEN = 262144            # a pcap record may always be this long, whatever the file header says: many writers say less than they write
    IFACES = 1 << 16            # most interfaces of a section: memory stays bounded
    PCAP_HEADER = 24
    PCAP_RECORD = 16
    BLOCK_MIN = 12
    SECTION_MIN = 28
    INTERFACE_MIN = 20
    NO_SLOT = 255
    BLOCK_SECTION = 0x0A0D0D0A  # reads the same in both byte orders
    BLOCK_INTERFACE = 1
    BLOCK_PACKET = 2            # obsolete, as old dumpcap versions wrote it
    BLOCK_SIMPLE = 3
    BLOCK_ENHANCED = 6
    BYTE_ORDER = 0x1A2B3C4D

# Why a scan stopped. From HEADER on it is damage: a sentence of DAMAGE, filled in with what the scan left in a and b.
cdef enum Stop:
    FULL, MORE, SECTION, INTERFACE, LINK, NO_ROW
    HEADER, TRUNCATED, IMPLAUSIBLE, ORDER, LENGTH_ODD, LENGTH_UNDER, TRAILER, CAPLEN, IFACE_NONE, IFACE_ID

ctypedef struct Iface:
    uint64_t mul                # time stamp -> ns: stamp * mul / div >> shift, plus seconds
    uint64_t div
    int64_t seconds
    uint32_t shift
    uint32_t link
    uint32_t snaplen            # 0: no limit
    uint32_t ordinal            # in the capture
    uint8_t fcs                 # bytes of frame check sequence at the end of each frame
    uint8_t slot                # in SUPPORTED_LINKS, or NO_SLOT

ctypedef struct Scan:
    const uint8_t *memory
    uint64_t have
    uint64_t at
    Frame *frames
    uint32_t rows
    uint32_t n
    Iface *ifaces               # of this section
    uint32_t n_ifaces
    uint32_t n_slots            # allocated
    uint32_t links              # bit set over slots: links of packets met
    uint32_t limit              # pcap: most bytes a record may have
    uint8_t swapped             # the file's byte order is not ours
    uint8_t lengths_swapped     # pcap before 2.4
    int64_t ts                  # of the last packet
    uint64_t need               # MORE: bytes from `at` on
    uint64_t a                  # damage: what its sentence tells
    uint64_t b


cdef inline uint32_t u32(const Scan *s, const uint8_t *p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return swap32(value) if s.swapped else value


cdef inline uint16_t u16(const Scan *s, const uint8_t *p) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, p, 2)
    return swap16(value) if s.swapped else value


cdef Stop scan_pcap(Scan *s) noexcept nogil
cdef Stop scan_pcapng(Scan *s) noexcept nogil

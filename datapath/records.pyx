"""The record scans: from header to header through the bytes of a pcap or pcapng capture, one Frame written a packet.

Packet bytes are neither copied nor touched. A scan stops when the caller's rows are full, when it needs bytes that are not there yet, at a
block that changes how the rest is read (a section, an interface: rare, left to the caller), or at damage.
Invariants: a Frame lies within the `have` bytes; nothing of a record is believed before the record as a whole is checked; `at` stands at a
record that was not handed out, so a scan called again goes on where it stopped.
Not here: where the bytes come from (stream), file headers and interfaces (capture).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from datapath.frame cimport Frame

cdef extern from *:
    """
    /* raw * mul / div >> shift, plus seconds, as ns in the range of int64. raw < 2^64 and mul < 2^30, so 128 bits hold every step. */
    static inline int64_t stamp_ns(uint64_t raw, uint64_t mul, uint64_t div, unsigned shift, int64_t seconds)
    {
        unsigned __int128 scaled = (unsigned __int128)raw * mul;
        __int128 ns = (__int128)((div == 1 ? scaled : scaled / div) >> shift) + (__int128)seconds * 1000000000;
        return ns > INT64_MAX ? INT64_MAX : ns < INT64_MIN ? INT64_MIN : (int64_t)ns;
    }
    /* Each header says where the next one is, so nothing but this overlaps the waits for memory. All of what lies ahead is fetched, not only
       headers, since the checksums will read it, soon enough if each batch is processed before the next is scanned (Pipeline.replay). */
    #define AHEAD 8192
    #define MOST 2048
    static inline void fetch_ahead(const uint8_t *record, uint32_t length)
    {
        const uint8_t *end = record + AHEAD + (length < MOST ? length : MOST);
        for (const uint8_t *line = record + AHEAD; line < end; line += 64)
            __builtin_prefetch(line, 0, 2);
    }
    """
    void fetch_ahead(const uint8_t *record, uint32_t length) noexcept nogil
    int64_t stamp_ns(uint64_t raw, uint64_t mul, uint64_t div, unsigned int shift, int64_t seconds) noexcept nogil

DAMAGE = {
    HEADER: "truncated: {unit} at byte {at:,} has a header of {a:,} bytes, {b:,} are left",
    TRUNCATED: "truncated: {unit} at byte {at:,} says {a:,} bytes, {b:,} are left",
    IMPLAUSIBLE: "implausible: {unit} at byte {at:,} says {a:,} bytes, expected at most {b:,}",
    ORDER: "damaged: section header at byte {at:,} has byte order {a:#010x}, expected 0x1a2b3c4d in either order",
    LENGTH_ODD: "damaged: {unit} at byte {at:,} says {a:,} bytes, expected a multiple of 4",
    LENGTH_UNDER: "damaged: {unit} at byte {at:,} says {a:,} bytes, expected at least {b:,}",
    TRAILER: "damaged: {unit} at byte {at:,} says {a:,} bytes at its start and {b:,} at its end",
    CAPLEN: "damaged: packet block at byte {at:,} says {a:,} captured bytes, it has room for {b:,}",
    IFACE_NONE: "damaged: packet block at byte {at:,} comes before any interface",
    IFACE_ID: "damaged: packet block at byte {at:,} is of interface {a:,}, expected one below {b:,}",
}


cdef inline Stop stop(Scan *s, Stop why, uint64_t a, uint64_t b) noexcept nogil:
    s.a, s.b = a, b
    return why


cdef inline void emit(Scan *s, const Iface *iface, uint64_t offset, uint32_t caplen, uint32_t length) noexcept nogil:
    """Append a frame whose caplen bytes at offset are there.

    What was captured was on the wire: where a record claims fewer bytes on the wire than it holds (some writers put the IP length there, or
    nothing), the larger number is right. A frame check sequence is no part of the packet; of a snapped frame it was not captured.
    """
    cdef Frame *frame = &s.frames[s.n]
    length = max(length, caplen)
    length -= min(length, <uint32_t>iface.fcs)
    frame.offset = offset
    frame.caplen = min(caplen, length)
    frame.len = length
    frame.ts = s.ts
    frame.link = iface.link
    frame.iface = iface.ordinal
    s.links |= <uint32_t>1 << iface.slot
    s.n += 1


cdef inline Stop pcap_record(Scan *s, const Iface *iface) noexcept nogil:
    """The record at `at`. FULL: it is a row now, and `at` stands behind it."""
    cdef const uint8_t *record = s.memory + s.at
    cdef uint32_t caplen, length
    if s.have - s.at < PCAP_RECORD:
        s.need = PCAP_RECORD
        return MORE
    caplen = u32(s, record + 8)
    length = u32(s, record + 12)
    fetch_ahead(record, caplen + PCAP_RECORD)
    # Version 2.3 and older files have them in either order (libpcap knows of both); the captured bytes are the fewer.
    if s.lengths_swapped and caplen > length:
        caplen, length = length, caplen
    if caplen > s.limit:
        return stop(s, IMPLAUSIBLE, caplen, s.limit)
    if s.have - s.at - PCAP_RECORD < caplen:
        s.need = PCAP_RECORD + caplen
        return MORE
    # Seconds are unsigned (until 2106), and 2^32 s with 2^32 us on top are still below 2^63 ns.
    s.ts = <int64_t>u32(s, record) * 1000000000 + <int64_t>(u32(s, record + 4) * iface.mul)
    emit(s, iface, s.at + PCAP_RECORD, caplen, length)
    s.at += PCAP_RECORD + caplen
    return FULL


cdef Stop scan_pcap(Scan *scan) noexcept nogil:
    """Walk over pcap records until the rows are full or something else is to be done."""
    # On copies, which stay in registers: the compiler cannot know that the frames written are not the scan itself.
    cdef Scan s = scan[0]
    cdef Iface iface = scan.ifaces[0]
    cdef Stop why = FULL
    while s.n < s.rows and why == FULL:
        why = pcap_record(&s, &iface)
    scan[0] = s
    return why


cdef inline Stop check_block(Scan *s, uint32_t *kind, uint32_t *length) noexcept nogil:
    """Check the block at `at` as a whole: byte order, length at both ends, presence. FULL: it is sound."""
    cdef const uint8_t *block = s.memory + s.at
    cdef uint32_t magic
    if s.have - s.at < BLOCK_MIN:
        s.need = BLOCK_MIN
        return MORE
    kind[0] = u32(s, block)
    if kind[0] == BLOCK_SECTION:
        memcpy(&magic, block + 8, 4)
        if magic != BYTE_ORDER and magic != swap32(BYTE_ORDER):
            return stop(s, ORDER, magic, 0)
        s.swapped = magic != BYTE_ORDER
    length[0] = u32(s, block + 4)
    fetch_ahead(block, length[0])
    if length[0] % 4:
        return stop(s, LENGTH_ODD, length[0], 0)
    if length[0] > RECORD_LIMIT:
        return stop(s, IMPLAUSIBLE, length[0], RECORD_LIMIT)
    if length[0] < shortest(kind[0]):
        return stop(s, LENGTH_UNDER, length[0], shortest(kind[0]))
    if s.have - s.at < length[0]:
        s.need = length[0]
        return MORE
    if u32(s, block + length[0] - 4) != length[0]:
        return stop(s, TRAILER, length[0], u32(s, block + length[0] - 4))
    return FULL


cdef inline uint32_t shortest(uint32_t kind) noexcept nogil:
    """Bytes a block of this kind has at least."""
    if kind == BLOCK_ENHANCED or kind == BLOCK_PACKET:
        return 32
    if kind == BLOCK_SECTION:
        return SECTION_MIN
    if kind == BLOCK_INTERFACE:
        return INTERFACE_MIN
    return 16 if kind == BLOCK_SIMPLE else BLOCK_MIN


cdef inline Stop packet_block(Scan *s, uint32_t kind, uint32_t size) noexcept nogil:
    """The packet of a sound packet block of `size` bytes. FULL: it is a row now."""
    cdef const uint8_t *block = s.memory + s.at
    cdef const Iface *iface
    cdef uint32_t caplen, length, ident = 0, header = 28
    if kind == BLOCK_ENHANCED:
        ident = u32(s, block + 8)
    elif kind == BLOCK_PACKET:
        ident = u16(s, block + 8)
    if ident >= s.n_ifaces:
        return stop(s, IFACE_ID if s.n_ifaces else IFACE_NONE, ident, s.n_ifaces)
    iface = &s.ifaces[ident]
    if kind == BLOCK_SIMPLE:
        # It has no time stamp: the packet keeps that of the one before it. Its captured length is the interface's snaplen's business.
        header = 12
        length = u32(s, block + 8)
        caplen = min(length, iface.snaplen) if iface.snaplen else length
    else:
        caplen = u32(s, block + 20)
        length = u32(s, block + 24)
    if caplen > size - header - 4:
        return stop(s, CAPLEN, caplen, size - header - 4)
    if iface.slot == NO_SLOT:
        return stop(s, LINK, iface.link, 0)
    if kind != BLOCK_SIMPLE:
        s.ts = stamp_ns(<uint64_t>u32(s, block + 12) << 32 | u32(s, block + 16), iface.mul, iface.div, iface.shift, iface.seconds)
    emit(s, iface, s.at + header, caplen, length)
    return FULL


cdef inline Stop next_block(Scan *s) noexcept nogil:
    """The block at `at`. FULL: it was skipped, or is a row now, and `at` stands behind it."""
    cdef uint32_t kind = 0, length = 0
    cdef Stop why = check_block(s, &kind, &length)
    if why != FULL:
        return why
    if kind == BLOCK_SECTION:
        return SECTION
    if kind == BLOCK_INTERFACE:
        return INTERFACE
    if kind == BLOCK_ENHANCED or kind == BLOCK_SIMPLE or kind == BLOCK_PACKET:
        if s.n == s.rows:
            return NO_ROW
        why = packet_block(s, kind, length)
        if why != FULL:
            return why
    s.at += length
    return FULL


cdef Stop scan_pcapng(Scan *scan) noexcept nogil:
    """Walk over pcapng blocks until a packet finds no row or something else is to be done; what is no packet and not needed is skipped."""
    cdef Scan s = scan[0]       # as in scan_pcap
    cdef Stop why = FULL
    while why == FULL:
        why = next_block(&s)
    scan[0] = s
    return FULL if why == NO_ROW else why

"""The door: frames become rows of Packet. The only place with bounds checks.

What the kernel does before conntrack (link layer, ip_rcv, the extension headers) and the parts of its protocol trackers that look at nothing
but the packet (lengths, checksums, flag combinations) happen here, once; behind the door l4 points at l4_have bytes that may be read.
Outcomes: a packet that never reaches conntrack has a final verdict, state NOT_SEEN and a reason; one without a tuple, or a bad ICMP packet of
its own family, is final and INVALID; anything else is PENDING, and l4_reason says what its tracker will hold against it, since Linux
looks the tuple up first.

Theory of operation: nearly all packets are whole, sound TCP or UDP over IPv4 without options over Ethernet. plain() computes everything about such
a packet and answers yes, or no without saying why; then general() takes it step by step and finds the reason. One worked packet: a frame of
60 bytes, type 0x0800, first IP byte 0x45, total length 40 (6 bytes of padding): IP sum and TCP sum are 0xFFFF, flags ACK: yes.

Invariants: every field of a row is written; l4 + l4_have never exceeds the captured frame nor the IP packet; l4_have <= l4_len.
The caller guarantees that each frame lies in memory. Not here: reassembly, states, NAT.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

import numpy as np

from ctcore.batch cimport Batch
from ctcore.lowlevel cimport be16, be32, prefetch
from ctcore.tuples cimport (
    IP4_HEADER, IP6_FRAGMENT, IP6_HEADER, IP6_HOP_BY_HOP, Chain, fill_addresses, fill_ports, quoted_tuple, skip_extensions,
)
from ctcore.types cimport (
    ACCEPT, ACK, DROP, FIN, FLAW_SUM, HELD, INVALID, NO_FLOW, NOT_SEEN, PENDING, RST, SYN, URG,
    PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE,
    R_FRAGMENT, R_ICMP_CHECKSUM, R_ICMP_SHORT, R_IP6_CHAIN, R_IP6_MALFORMED, R_IP_CHECKSUM, R_IP_HEADER, R_IP_LENGTH, R_IP_TRUNCATED, R_IP_VERSION,
    R_L4_BEYOND, R_NOT_IP, R_OK, R_SCTP_CHECKSUM, R_SCTP_SHORT, R_SNAPPED, R_TCP_CHECKSUM, R_TCP_DOFF, R_TCP_FLAGS, R_TCP_SHORT,
    R_TUPLE_SHORT, R_UDP_CHECKSUM, R_UDP_LENGTH, R_UDP_SHORT, Key, Packet,
)
from datapath.checksum cimport add1, crc32c, fold, load32, load64, sum_bytes
from datapath.frame cimport Frame, checked_frames
from datapath.link cimport LINKTYPE_ETHERNET, Cursor, to_ip

from datapath.frame import FRAME_DTYPE

cdef extern from "arpa/inet.h" nogil:
    uint32_t htonl(uint32_t)

cdef enum:
    PREFETCH_AHEAD = 16         # frames; their memory is fetched while these are parsed
    PLAIN_HEADERS = 14 + 20     # Ethernet and IPv4 without options
    ND_REDIRECT = 137
    PAD1 = 0                    # options of IPv6 (RFC 8200 4.2, RFC 2675 2)
    JUMBO = 194

MODES = {"held": FRAGMENTS_HELD, "gathered": FRAGMENTS_GATHERED, "passed": FRAGMENTS_PASSED}

# Bit f is set if flags f (without PSH, ECE, CWR and reserved bits) are a combination that some stack sends (RFC 9293 3.10).
cdef uint64_t VALID_FLAGS = (
    1ULL << SYN | 1ULL << (SYN | URG) | 1ULL << (SYN | ACK) | 1ULL << RST | 1ULL << (RST | ACK)
    | 1ULL << (FIN | ACK) | 1ULL << (FIN | ACK | URG) | 1ULL << ACK | 1ULL << (ACK | URG)
)


cdef inline bint valid_flags(uint8_t flags) noexcept nogil:
    return VALID_FLAGS >> (flags & (FIN | SYN | RST | ACK | URG)) & 1


cdef inline void close(Packet *p, uint8_t reason) noexcept nogil:
    """A final verdict. The reasons up to R_FRAGMENT are those of packets that conntrack does not see; the others lose their connection."""
    p.reason = reason
    if reason > R_FRAGMENT:
        p.state = INVALID
        p.verdict = ACCEPT
    else:
        p.state = NOT_SEEN
        p.verdict = HELD if reason == R_FRAGMENT else ACCEPT if reason == R_NOT_IP or reason == R_SNAPPED else DROP


include "wire_transport.pxi"


# --- IP --------------------------------------------------------------------------------------------------------------------------------

cdef uint8_t ipv4(const ParseSettings *settings, const Cursor *c, Packet *p) noexcept nogil:
    """RFC 791 3.1, in the kernel's order. Reads nothing beyond the header; R_OK with l4, l4_len, l4_have set."""
    cdef uint32_t header, total
    if c.have < IP4_HEADER:
        return R_SNAPPED if c.length >= IP4_HEADER else R_IP_HEADER
    if c.p[0] >> 4 != 4:
        return R_IP_VERSION
    header = (c.p[0] & 15) * 4
    total = be16(c.p + 2)
    fill_addresses(&p.key, 4, c.p)
    p.key.proto = c.p[9]
    p.hop_limit = c.p[8]
    if header < IP4_HEADER or (header > c.length and not settings.at_hook):
        return R_IP_HEADER
    if settings.at_hook:
        p.ip_len = total = min(total, c.length)
        if total < header:
            return R_L4_BEYOND
    if header > c.have:
        return R_SNAPPED
    if not settings.at_hook and fold(sum_bytes(c.p, header, 0)) != 0xFFFF:
        return R_IP_CHECKSUM
    if total > c.length:
        return R_IP_TRUNCATED
    if total < header:
        return R_IP_LENGTH
    p.ip_len = total
    p.l4 = c.p + header
    p.l4_len = total - header
    p.l4_have = min(total, c.have) - header
    return R_FRAGMENT if be16(c.p + 6) & 0x3FFF else R_OK


cdef uint8_t hop_by_hop(const Cursor *c, uint32_t total) noexcept nogil:
    """The one extension header that every node reads (RFC 8200 4.3): malformed, it costs the packet before conntrack sees it.

    Only what no host and no bridge lets pass is malformed: options that do not end with the header, and a jumbo payload that is none.
    """
    cdef uint32_t at = IP6_HEADER + 2, end, length
    if total < at:
        return R_IP_HEADER
    if c.have < at:
        return R_SNAPPED
    end = IP6_HEADER + (<uint32_t>c.p[IP6_HEADER + 1] + 1) * 8
    if end > total:
        return R_IP_HEADER
    if end > c.have:
        return R_SNAPPED
    while at < end:
        if c.p[at] == PAD1:
            at += 1
            continue
        if at + 2 > end:
            return R_IP6_MALFORMED
        length = 2 + <uint32_t>c.p[at + 1]
        if at + length > end or (c.p[at] == JUMBO and not valid_jumbo(c, at)):
            return R_IP6_MALFORMED
        at += length
    return R_OK


cdef inline bint valid_jumbo(const Cursor *c, uint32_t at) noexcept nogil:
    """RFC 2675 2 and 3, of the option at c.p[at]: aligned, larger than other packets, in the place of the usual length, and all there.

    Safe: the option lies within its header.
    """
    cdef uint32_t length
    if c.p[at + 1] != 4 or at & 3 != 2 or be16(c.p + 4) != 0:
        return False
    length = be32(c.p + at + 2)
    return length > 0xFFFF and length <= c.length - IP6_HEADER


cdef inline bint is_held(const ParseSettings *settings, const Chain *chain, uint8_t reason, uint32_t total) noexcept nogil:
    """Does reassembly take this packet? Not a first fragment that ends within its transport header (RFC 8200 4.5 forbids it): Linux lets it pass."""
    cdef uint32_t need = 20 if chain.proto == PROTO_TCP else 8 if chain.proto == PROTO_UDP or chain.proto == PROTO_ICMPV6 else 1
    if chain.frag == 0 and not (settings.fragments == FRAGMENTS_GATHERED and chain.fragmented and chain.data < total):
        return False
    return not (reason == R_OK and chain.at + need > total)


cdef inline bint refused(const Chain *chain, uint32_t total) noexcept nogil:
    """Does reassembly drop this packet, whose chain is broken? If its fragment header is cut off, or nothing is behind it."""
    if chain.fragmented:
        return chain.data >= total
    return chain.proto == IP6_FRAGMENT and chain.at <= total


cdef uint8_t ipv6(const ParseSettings *settings, const Cursor *c, Packet *p) noexcept nogil:
    """RFC 8200 3 and 4. R_OK with l4, l4_len, l4_have set, also where the chain ends behind the packet and no tuple field is needed from there."""
    cdef uint32_t total, have
    cdef uint8_t reason
    cdef Chain chain
    if c.have < IP6_HEADER:
        return R_SNAPPED if c.length >= IP6_HEADER else R_IP_HEADER
    if c.p[0] >> 4 != 6:
        return R_IP_VERSION
    total = be16(c.p + 4) + <uint32_t>IP6_HEADER
    chain.at = IP6_HEADER
    chain.proto = c.p[6]
    fill_addresses(&p.key, 6, c.p)
    p.key.proto = chain.proto
    p.hop_limit = c.p[7]
    if total == IP6_HEADER and chain.proto == IP6_HOP_BY_HOP:           # a jumbogram (RFC 2675): the frame's end is the packet's
        total = c.length
    if settings.at_hook:
        total = min(total, c.length)
    if total > c.length:
        return R_IP_TRUNCATED
    p.ip_len = total
    reason = hop_by_hop(c, total) if chain.proto == IP6_HOP_BY_HOP else R_OK
    if reason != R_OK:
        return reason
    have = min(total, c.have)
    reason = skip_extensions(c.p, total, have, &chain)
    p.key.proto = chain.proto
    p.l4 = c.p + min(chain.at, have)
    p.l4_len = total - min(chain.at, total)
    p.l4_have = have - min(chain.at, have)
    # What has no length is none of reassembly's business, nor is what has been through it.
    if be16(c.p + 4) != 0 and settings.fragments != FRAGMENTS_PASSED:
        if is_held(settings, &chain, reason, total):
            return R_FRAGMENT
        if reason == R_IP6_CHAIN and refused(&chain, total):
            return R_IP6_MALFORMED
        if chain.fragmented and p.l4_len:                               # atomic (RFC 6946): Linux takes the header out before it counts
            p.ip_len -= 8
    if reason == R_FRAGMENT:                                            # behind an atomic one: nothing reassembles it
        return R_IP6_CHAIN
    if reason == R_OK and chain.at > total and fill_ports(&p.key, p.l4, 0, 0) != R_OK:
        return R_L4_BEYOND
    return reason


cdef void general(const ParseSettings *settings, const uint8_t *start, const Frame *frame, Packet *p) noexcept nogil:
    """Any frame, step by step. The row is complete, but for what parse() writes."""
    cdef Cursor c
    cdef uint8_t family, reason
    memset(p, 0, sizeof(Packet))
    c.p = start
    c.have = frame.caplen
    c.length = max(frame.len, frame.caplen)
    reason = to_ip(&c, frame.link, &family)
    if reason == R_OK:
        p.l3_off = <uint16_t>(c.p - start)
        reason = ipv4(settings, &c, p) if family == 4 else ipv6(settings, &c, p)
    if reason == R_OK:
        transport(settings, p, fold(sum_bytes(c.p, p.l4 - c.p, 0)) if family == 4 and settings.at_hook else SOUND)
    else:
        close(p, reason)


# --- the straight way ------------------------------------------------------------------------------------------------------------------

cdef inline bint plain(const ParseSettings *settings, const uint8_t *f, const Frame *frame, Packet *p) noexcept nogil:
    """Is this whole and sound TCP or UDP over IPv4 without options over Ethernet? Then the row is complete, but for what parse() writes."""
    cdef const uint8_t *ip = f + 14
    cdef const uint8_t *l4 = f + PLAIN_HEADERS
    cdef uint32_t total, length
    cdef uint64_t addresses, total_sum
    if frame.link != LINKTYPE_ETHERNET or frame.caplen < PLAIN_HEADERS + 8:
        return False
    # Safe: 42 bytes are there. 0x0800 and 0x45; neither offset nor M bit.
    if (be16(f + 12) ^ 0x0800) | (ip[0] ^ 0x45) | (be16(ip + 6) & 0x3FFF):
        return False
    total = be16(ip + 2)
    length = total - IP4_HEADER             # wraps if total is too small: the first comparison refuses that
    if (total < IP4_HEADER + 8) | (total + 14 > frame.caplen):
        return False
    addresses = load64(ip + 12)
    total_sum = add1(add1(load64(ip), load32(ip + 8)), addresses)
    if fold(total_sum) != 0xFFFF:
        return False
    if ip[9] == PROTO_TCP:
        if not plain_tcp(settings, l4, length, addresses, p):
            return False
    elif ip[9] != PROTO_UDP or not plain_udp(settings, l4, length, addresses, p):
        return False
    fill_addresses(&p.key, 4, ip)
    p.key.sport = be16(l4)
    p.key.dport = be16(l4 + 2)
    p.key.proto = ip[9]
    p.l4 = l4
    p.l4_len = p.l4_have = length
    p.ip_len = total
    p.l4_reason = p.reason = R_OK
    p.verdict = PENDING
    p.state = NOT_SEEN
    p.hop_limit = ip[8]
    p.flaw = 0
    p.l3_off = 14
    return True


cdef inline bint plain_tcp(const ParseSettings *settings, const uint8_t *l4, uint32_t length, uint64_t addresses, Packet *p) noexcept nogil:
    """A sound segment of `length` bytes, of which 8 are there at least. addresses: as they lie in the header, for the sum."""
    cdef uint32_t doff
    if length < 20:
        return False
    doff = (l4[12] >> 4) * 4
    if (doff < 20) | (doff > length) | (not valid_flags(l4[13])):
        return False
    if settings.checksum and fold(sum_bytes(l4, length, add1(addresses, htonl(length + PROTO_TCP)))) != 0xFFFF:
        return False
    p.seq = be32(l4 + 4)
    p.ack = be32(l4 + 8)
    p.win = be16(l4 + 14)
    p.doff = <uint8_t>doff
    p.tcp_flags = l4[13]
    return True


cdef inline bint plain_udp(const ParseSettings *settings, const uint8_t *l4, uint32_t length, uint64_t addresses, Packet *p) noexcept nogil:
    """A sound datagram, likewise."""
    cdef uint32_t told = be16(l4 + 4)
    if (told < 8) | (told > length):
        return False
    if settings.checksum and be16(l4 + 6) != 0 and fold(sum_bytes(l4, length, add1(addresses, htonl(length + PROTO_UDP)))) != 0xFFFF:
        return False
    p.seq = p.ack = 0
    p.win = 0
    p.doff = p.tcp_flags = 0
    return True


cdef inline void fetch(const uint8_t *f) noexcept nogil:
    """Headers may straddle two cache lines. Prefetching never faults, so these addresses need not be checked."""
    prefetch(f)
    prefetch(f + PLAIN_HEADERS + 20)


cdef bint parse(const ParseSettings *settings, const uint8_t *memory, const Frame *frames, int n, Packet *out) noexcept nogil:
    """Frame rows to Packet rows.   Reads: frames, memory.   Writes: every field of out[0..n-1]; index is the row, hash and flow are empty.

    Says whether there are fragments among them (R_FRAGMENT).
    """
    cdef int i
    cdef bint fragments = False
    cdef Packet *p
    cdef const Frame *frame
    for i in range(min(n, PREFETCH_AHEAD)):
        fetch(memory + frames[i].offset)
    for i in range(n):
        frame = frames + i
        p = out + i
        if i + PREFETCH_AHEAD < n:
            fetch(memory + frame[PREFETCH_AHEAD].offset)
        if not plain(settings, memory + frame.offset, frame, p):
            general(settings, memory + frame.offset, frame, p)
            fragments |= p.reason == R_FRAGMENT
        p.wire_len = max(frame.len, frame.caplen)
        p.key.zone = settings.zone
        p.now = frame.ts
        p.hash = 0
        p.flow = NO_FLOW
        p.index = i
    return fragments


def parse_batch(memory, frames, *, int zone=0, bint checksum=True, bint nat=False, str fragments="held", bint at_hook=False):
    """Parse frames[k] of memory into a Batch of k rows, which keeps the memory alive. See wire.pyi."""
    cdef ParseSettings settings
    cdef Batch batch
    cdef const uint8_t[::1] view
    cdef const Frame *rows
    cdef size_t base
    cdef int n
    if not 0 <= zone <= 0xFFFF:
        raise ValueError(f"zone = {zone}: expected 0 to 65535")
    data = np.ascontiguousarray(memory if isinstance(memory, np.ndarray) else np.frombuffer(memory, dtype=np.uint8))
    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(f"memory: expected uint8[n], found {data.dtype} of {data.ndim} dimensions")
    if isinstance(frames, np.ndarray):
        frames = np.require(frames, requirements="CA")
    view = data
    rows = checked_frames(view, frames)
    n = len(frames)
    batch = Batch(max(n, 1))
    batch.size = n
    batch._owner = data
    settings.zone = zone
    settings.checksum = checksum
    settings.nat = nat
    settings.at_hook = at_hook
    if fragments not in MODES:
        raise ValueError(f"fragments = '{fragments}': expected {', '.join(MODES)}")
    settings.fragments = MODES[fragments]
    base = data.ctypes.data
    with nogil:
        parse(&settings, <const uint8_t *>base, rows, n, batch.row)
    return batch

"""Rewriting: what address translation has decided about a packet, done to its bytes in place.

Theory of operation: Linux changes a packet in up to two passes, destination first (PREROUTING), then source (POSTROUTING). Both are done in one
here, with the same bytes in the end: each field is written once, what that adds to the sums is put together and goes into each checksum once. Only
a quoted header whose fields overlap takes both (translate_overlapping).
Checksums are adjusted by what was changed and not made anew (RFC 1624, equation 3), so that a wrong one stays exactly as wrong, and a packet that
was captured in part can be translated. Made anew are SCTP's CRC and the checksum of an ICMP error, as in Linux. In such an error the quoted packet
is translated too, the other way round: its destination where the error's source is.
One worked packet: 10.0.0.2:40000 > 198.51.100.1:80 leaves as 192.0.2.1:1024. The TCP sum gets, for each 16-bit word m that becomes m',
~m + m': of two words of the address and one of the port; the IP header's sum the same but for the port.

Invariants: nothing is read or written before l3, nor beyond l4 + p.l4_have; an adjusted checksum is never 0xFFFF but in UDP and UDP-Lite, where
0 means none (RFC 768): so does Linux, whose sums never fold to zero. Translating back gives the original bytes, but for a sum written as 0xFFFF
elsewhere (0 says the same) and CRCs that were wrong before.
Not here: what is to be changed (ctcore.nat), helpers' edits of the payload (edits).
"""

import numpy as np

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ctcore.lowlevel cimport be32, likely, unlikely
from ctcore.tuples cimport IP4_HEADER, IP6_HEADER, Chain, invert, skip_extensions
from ctcore.types cimport (
    ACCEPT, PROTO_GRE, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE, R_OK,
    REWRITE_DST, REWRITE_EDIT, REWRITE_INNER_DST, REWRITE_INNER_SRC, REWRITE_SEQ, REWRITE_SRC, ACK, Key, Packet, Rewrite,
)
from ctcore.types import REWRITE_DTYPE
from datapath.checksum cimport add1, crc32c, fold, load32, load64, sum_bytes
from datapath.frame cimport Frame, checked_frames
from datapath.wire cimport ParseSettings, parse

from datapath.edits import edited
from datapath.wire import parse_batch

cdef extern from "arpa/inet.h" nogil:
    uint16_t htons(uint16_t)
    uint32_t htonl(uint32_t)

cdef enum:
    CHANGES = REWRITE_SRC | REWRITE_DST | REWRITE_INNER_SRC | REWRITE_INNER_DST | REWRITE_SEQ | REWRITE_EDIT
    QUOTE = 8                   # an ICMP error's header; behind it the packet it is about (RFC 792, RFC 4443 3.1)
    ECHO6 = 128
    ECHO6_REPLY = 129

# A multiple of 0xFFFF, which adds nothing to a sum but keeps it from being zero.
cdef uint64_t NOT_ZERO = 0xFFFF0000ULL

# Bit t is set for each ICMP type that has an id: echo, timestamp, information, address mask; each with its reply (RFC 792, RFC 950).
cdef uint32_t WITH_ID = 1 << 0 | 1 << 8 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 18

# The headers to be translated: those of the packet itself, or of the one an ICMP error quotes. len: bytes from l4 on by the outer packet's IP
# length, as far as Linux looks; have: of these, bytes that may be touched.
ctypedef struct Header:
    uint8_t *l3
    uint8_t *l4
    uint32_t len
    uint32_t have


# --- sums ------------------------------------------------------------------------------------------------------------------------------

cdef inline void adjust(uint8_t *field, uint64_t moved) noexcept nogil:
    """RFC 1624, equation 3. 0xFFFF never comes out, as in Linux."""
    cdef uint16_t value
    memcpy(&value, field, 2)
    value = <uint16_t>(fold(add1(moved, NOT_ZERO | (value ^ 0xFFFF))) ^ 0xFFFF)
    memcpy(field, &value, 2)


cdef inline uint64_t put16(uint8_t *field, uint16_t value) noexcept nogil:
    """Store a number in network order; what that adds to a sum over the field."""
    cdef uint16_t old
    cdef uint16_t new = htons(value)
    memcpy(&old, field, 2)
    memcpy(field, &new, 2)
    return <uint64_t>(old ^ 0xFFFF) + new


cdef inline uint64_t put32(uint8_t *field, uint32_t value) noexcept nogil:
    cdef uint32_t old
    cdef uint32_t new = htonl(value)
    memcpy(&old, field, 4)
    memcpy(field, &new, 4)
    return <uint64_t>(~old) + new


cdef inline uint64_t all_bits(uint8_t flag) noexcept nogil:
    """A mask of ones if the flag is set. Which half of a tuple changes differs from packet to packet: a branch would be foreseen half of the time."""
    return ~<uint64_t>0 * (flag != 0)


cdef inline uint64_t put_port(uint8_t *field, uint16_t new, uint64_t mask) noexcept nogil:
    """Store what of a port changes; what that adds to a sum over it."""
    cdef uint16_t old
    memcpy(&old, field, 2)
    new = old ^ (<uint16_t>(old ^ htons(new)) & <uint16_t>mask)
    memcpy(field, &new, 2)
    return <uint64_t>(old ^ 0xFFFF) + new


cdef inline uint64_t put_ports(uint8_t *l4, const Key *to, uint8_t halves) noexcept nogil:
    return put_port(l4, to.sport, all_bits(halves & REWRITE_SRC)) + put_port(l4 + 2, to.dport, all_bits(halves & REWRITE_DST))


cdef inline uint64_t put_address4(uint8_t *field, const uint64_t *new, uint64_t mask) noexcept nogil:
    cdef uint32_t old = <uint32_t>load32(field)
    cdef uint32_t then = old ^ ((old ^ <uint32_t>load32(<const uint8_t *>new)) & <uint32_t>mask)
    memcpy(field, &then, 4)
    return <uint64_t>(~old) + then


cdef inline uint64_t put_address6(uint8_t *field, const uint64_t *new, uint64_t mask) noexcept nogil:
    cdef uint64_t moved = 0, old, then
    cdef int i
    for i in range(2):
        old = load64(field + 8 * i)
        then = old ^ ((old ^ new[i]) & mask)
        memcpy(field + 8 * i, &then, 8)
        moved = add1(moved, add1(~old, then))
    return moved


cdef inline uint64_t put_addresses6(uint8_t *l3, const Key *to, uint8_t halves) noexcept nogil:
    return add1(
        put_address6(l3 + 8, to.src, all_bits(halves & REWRITE_SRC)), put_address6(l3 + 24, to.dst, all_bits(halves & REWRITE_DST))
    )


cdef inline uint64_t put_addresses4(uint8_t *l3, const Key *to, uint8_t halves) noexcept nogil:
    return put_address4(l3 + 12, to.src, all_bits(halves & REWRITE_SRC)) + put_address4(l3 + 16, to.dst, all_bits(halves & REWRITE_DST))


cdef inline uint64_t put_addresses(const Header *h, const Key *to, uint8_t halves) noexcept nogil:
    """Store the new addresses, and adjust IPv4's header for them; what that adds to a sum over them."""
    cdef uint64_t moved
    if to.family == 6:
        return put_addresses6(h.l3, to, halves)
    moved = put_addresses4(h.l3, to, halves)
    adjust(h.l3 + 10, moved)
    return moved


# --- transport: ports and ids. moved: what the addresses add. False where Linux drops the packet: there is less of it than the change needs ---

cdef inline bint tcp(const Header *h, const Key *to, uint8_t halves, uint64_t moved) noexcept nogil:
    """A quoted segment may end behind its first 8 bytes (RFC 792); then there is no checksum to adjust."""
    if unlikely(h.have < 4):
        return h.len >= 8
    moved = add1(moved, put_ports(h.l4, to, halves))
    if likely(h.len >= 20 and h.have >= 18):
        adjust(h.l4 + 16, moved)
    return h.len >= 8


cdef inline bint udp(const Header *h, uint8_t proto, const Key *to, uint8_t halves, uint64_t moved) noexcept nogil:
    """0 stays 0, and what becomes 0 is 0xFFFF (RFC 768). UDP-Lite always has a checksum, which covers the ports at least (RFC 3828 3.1)."""
    cdef uint8_t *check = h.l4 + 6
    if unlikely(h.have < 4):
        return h.len >= 8
    moved = add1(moved, put_ports(h.l4, to, halves))
    if h.have >= 8 and (proto == PROTO_UDPLITE or check[0] | check[1]):
        adjust(check, moved)
        if check[0] | check[1] == 0:
            check[0] = check[1] = 0xFF
    return h.len >= 8


cdef bint sctp(const Header *h, const Key *to, uint8_t halves) noexcept nogil:
    """The CRC goes over what there is (RFC 9260 6.8), in a quoted packet too, where it may have been right for more than that."""
    cdef uint32_t crc
    if h.have < 4:
        return h.len >= 8
    put_ports(h.l4, to, halves)
    if h.len >= 12 and h.have == h.len:
        crc = crc32c(crc32c(0, h.l4, 8), <const uint8_t *>b"\0\0\0\0", 4)
        crc = crc32c(crc, h.l4 + 12, h.len - 12)
        h.l4[8], h.l4[9], h.l4[10], h.l4[11] = crc & 0xFF, crc >> 8 & 0xFF, crc >> 16 & 0xFF, crc >> 24
    return h.len >= 8


cdef bint icmp(const Header *h, const Key *to) noexcept nogil:
    """The id belongs to both halves of the tuple."""
    if h.have >= 8 and h.l4[0] < 32 and WITH_ID >> h.l4[0] & 1:
        adjust(h.l4 + 2, put16(h.l4 + 4, to.sport))
    return h.len >= 8


cdef bint icmpv6(const Header *h, const Key *to, uint64_t moved) noexcept nogil:
    """The sum covers the addresses (RFC 4443 2.3), and the id of echo; Linux leaves that of node information alone."""
    if h.have >= 8:
        if h.l4[0] == ECHO6 or h.l4[0] == ECHO6_REPLY:
            moved = add1(moved, put16(h.l4 + 4, to.sport))
        adjust(h.l4 + 2, moved)
    return h.len >= 8


cdef bint gre(const Header *h, const Key *to, uint8_t halves) noexcept nogil:
    """Version 1 has the receiver's call id (RFC 2637 4.1) and nothing of the sender. Version 0 is translated by its addresses, others not at all."""
    cdef uint8_t version
    if not halves & REWRITE_DST or h.have < 8:
        return h.len >= 8
    version = h.l4[1] & 7
    if version == 1:
        put16(h.l4 + 6, to.dport)
    return version <= 1


cdef inline bint transport(const Header *h, uint8_t proto, const Key *to, uint8_t halves, uint64_t moved) noexcept nogil:
    if likely(proto == PROTO_TCP):
        return tcp(h, to, halves, moved)
    if proto == PROTO_UDP or proto == PROTO_UDPLITE:
        return udp(h, proto, to, halves, moved)
    if proto == PROTO_SCTP:
        return sctp(h, to, halves)
    if proto == PROTO_ICMP:
        return icmp(h, to)
    if proto == PROTO_ICMPV6:
        return icmpv6(h, to, moved)
    if proto == PROTO_GRE:
        return gre(h, to, halves)
    return True


cdef inline bint translate(const Header *h, uint8_t proto, const Key *to, uint8_t halves) noexcept nogil:
    """One pair of headers: addresses and ports of these halves, REWRITE_SRC and REWRITE_DST."""
    return transport(h, proto, to, halves, put_addresses(h, to, halves))


# --- ICMP errors -----------------------------------------------------------------------------------------------------------------------

cdef bint quoted_header(const Header *outer, uint8_t family, Header *quoted) noexcept nogil:
    """The headers of the quoted packet. False if not even its addresses are there, of which no engine asks for a change.

    Where no transport header can be found (a later fragment, a broken chain), quoted.l4 is NULL.
    """
    cdef Chain chain
    cdef uint32_t length = outer.len - min(outer.len, <uint32_t>QUOTE), have = outer.have - min(outer.have, <uint32_t>QUOTE)
    if have < <uint32_t>(IP4_HEADER if family == 4 else IP6_HEADER):
        return False
    quoted.l3 = outer.l4 + QUOTE
    if family == 4:
        chain.at = (quoted.l3[0] & 15) * 4
    else:
        chain.at = IP6_HEADER
        chain.proto = quoted.l3[6]
        if skip_extensions(quoted.l3, length, have, &chain) != R_OK:
            quoted.l4 = NULL
            return True
    # Safe: where chain.at lies beyond `have`, nothing is left to be touched.
    quoted.l4 = quoted.l3 + min(chain.at, have)
    quoted.len = length - min(chain.at, length)
    quoted.have = have - min(chain.at, have)
    return True


cdef bint translate_overlapping(const Header *outer, const Key *to, uint8_t halves) noexcept nogil:
    """A quoted IPv4 header that claims to be shorter than it can be: ports and addresses share bytes, so what is written last stays.

    As in Linux: in the first pass the source, in the second the destination, with the header read anew, whose length a port may have overwritten;
    in each the ports, then the address, which sums count as it is then.
    """
    cdef Header quoted
    cdef uint8_t half
    cdef uint8_t[8] before
    cdef uint64_t moved
    for half in range(REWRITE_SRC, REWRITE_DST + 1):
        if not halves & half:
            continue
        quoted_header(outer, 4, &quoted)
        # Of TCP the port has been written when the sum is adjusted by the address, of others it has not.
        moved = put_ports(quoted.l4, to, half) if to.proto == PROTO_TCP and quoted.have >= 4 else 0
        memcpy(before, quoted.l3 + 12, 8)
        moved = add1(moved, put_addresses4(quoted.l3, to, half))
        memcpy(quoted.l3 + 12, before, 8)
        if not transport(&quoted, to.proto, to, half, moved):
            return False
        put_addresses(&quoted, to, half)
    return True


cdef bint translate_quoted(const Header *outer, const Key *to, uint8_t halves) noexcept nogil:
    """Translate the quoted packet, then set the error's checksum. That goes over all of the message; where the capture lacks some, over what changed.

    to: the tuple that the quoted packet is to have.
    """
    cdef Header quoted
    cdef uint8_t *check = outer.l4 + 2
    cdef uint64_t before = 0
    cdef bint whole = outer.have == outer.len
    if not quoted_header(outer, to.family, &quoted):
        return False
    if not whole:
        before = fold(sum_bytes(quoted.l3, outer.have - QUOTE, 0)) ^ 0xFFFF
    if quoted.l4 == NULL:
        put_addresses(&quoted, to, halves)
    elif unlikely(quoted.l4 < quoted.l3 + IP4_HEADER):
        if not translate_overlapping(outer, to, halves):
            return False
    elif not translate(&quoted, to.proto, to, halves):
        return False
    if not whole:
        adjust(check, add1(before, fold(sum_bytes(quoted.l3, outer.have - QUOTE, 0))))
        return True
    check[0] = check[1] = 0
    if to.family == 4:
        before = 0
    else:
        before = sum_bytes(outer.l3 + 8, 32, htonl(outer.len + PROTO_ICMPV6))
    adjust(check, sum_bytes(outer.l4, outer.len, before))
    return True


cdef bint rewrite_error(const Header *outer, const Packet *p, const Rewrite *r) noexcept nogil:
    """An ICMP error about a translated connection: the quoted packet, then the error's own addresses."""
    cdef Key back
    cdef uint8_t inner = (REWRITE_SRC if r.flags & REWRITE_INNER_SRC else 0) | (REWRITE_DST if r.flags & REWRITE_INNER_DST else 0)
    cdef uint8_t own = r.flags & (REWRITE_SRC | REWRITE_DST)
    if not invert(&r.to, &back) or not translate_quoted(outer, &back, inner):
        return False
    return own == 0 or translate(outer, p.key.proto, &r.to, own)


# --- sequence numbers ------------------------------------------------------------------------------------------------------------------

cdef inline uint64_t shift(uint8_t *field, int32_t by) noexcept nogil:
    return put32(field, be32(field) + <uint32_t>by)


cdef bint shift_numbers(uint8_t *l4, const Packet *p, const Rewrite *r) noexcept nogil:
    """Sequence numbers behind a payload that a helper has made longer or shorter. SACK blocks are edits, for each edge is moved by its own.

    Of an ICMP error it is what lies at their places, as in Linux (ctcore.helpers.registry, adjust_error).
    """
    if (p.key.proto != PROTO_TCP and p.key.proto != PROTO_ICMP and p.key.proto != PROTO_ICMPV6) or p.l4_have < 20:
        return False
    adjust(l4 + 16, shift(l4 + 4, r.seq_delta))
    if l4[13] & ACK:
        adjust(l4 + 16, shift(l4 + 8, r.ack_delta))
    return True


# --- a packet --------------------------------------------------------------------------------------------------------------------------

cdef bint rewrite_packet(uint8_t *l3, uint8_t *l4, const Packet *p, const Rewrite *r) noexcept nogil:
    """Change a packet as told. l3, l4: its headers in memory that may be written, as p.l3_off and p.l4 are in the frame it was parsed from.

    False if Linux drops it instead, since there is less of it than it takes; what was changed by then stays changed.
    """
    cdef Header own
    own.l3 = l3
    own.l4 = l4
    own.len = p.l4_len
    own.have = p.l4_have
    if unlikely(r.flags & (REWRITE_INNER_SRC | REWRITE_INNER_DST)):
        if not rewrite_error(&own, p, r):
            return False
    elif likely(r.flags & (REWRITE_SRC | REWRITE_DST)) and not translate(&own, p.key.proto, &r.to, r.flags):
        return False
    if unlikely(r.flags & REWRITE_SEQ):
        return shift_numbers(l4, p, r)
    return True


cdef inline bint is_plain(const Packet *p, const Rewrite *r) noexcept nogil:
    """A whole TCP header over IPv4, of which nothing but addresses and ports changes."""
    return (
        p.key.family == 4 and p.key.proto == PROTO_TCP and p.l4_have >= 20 and r.to.family == 4
        and (r.flags & ~(REWRITE_SRC | REWRITE_DST)) == 0
    )


cdef inline void translate_plain(uint8_t *l3, uint8_t *l4, const Key *to, uint8_t halves) noexcept nogil:
    """What translate() does of such a packet, in a straight line."""
    cdef uint64_t moved = put_addresses4(l3, to, halves)
    adjust(l3 + 10, moved)
    adjust(l4 + 16, moved + put_ports(l4, to, halves))      # neither comes near 64 bits


cdef void rewrite_rows(uint8_t *memory, const Frame *frames, Packet *row, const Rewrite *rewrites, int n) noexcept nogil:
    """A stage: change accepted packets in place.   Reads: all of the row; frames, rewrites.   Writes: memory.

    A datagram of fragments lies elsewhere, and is left alone.
    """
    cdef int i
    cdef uint8_t *start
    for i in range(n):
        start = memory + frames[i].offset
        if rewrites[i].flags and row[i].verdict == ACCEPT and start <= row[i].l4 <= start + frames[i].caplen:
            if likely(is_plain(&row[i], &rewrites[i])):
                translate_plain(start + row[i].l3_off, <uint8_t *>row[i].l4, &rewrites[i].to, rewrites[i].flags)
            else:
                rewrite_packet(start + row[i].l3_off, <uint8_t *>row[i].l4, &row[i], &rewrites[i])


def rewrite_in_place(uint8_t[::1] memory not None, frames not None, rewrites not None):
    """Make the changes in the memory itself; see rewrite.pyi."""
    cdef const Frame *frame = checked_frames(memory, frames)
    cdef Py_ssize_t n = len(frames), i
    cdef const Rewrite *told
    cdef ParseSettings settings
    cdef Packet p
    if not isinstance(rewrites, np.ndarray) or rewrites.dtype != REWRITE_DTYPE or rewrites.shape != (n,) or not rewrites.flags.c_contiguous:
        raise ValueError(f"rewrites: expected a contiguous array of {n} REWRITE_DTYPE, one for each frame")
    sent = np.ones(n, dtype=bool)
    told = <const Rewrite *><size_t>rewrites.ctypes.data
    memset(&settings, 0, sizeof(ParseSettings))
    settings.at_hook = True      # who tracks has looked at it, or was told not to
    for i in range(n):
        if told[i].flags & CHANGES == 0:
            continue
        parse(&settings, &memory[0] if memory.shape[0] else NULL, frame + i, 1, &p)
        if p.l4 != NULL and p.key.family != told[i].to.family:
            raise ValueError(f"rewrites[{i}]: expected a tuple of IPv{p.key.family}, as the packet's")
        sent[i] = p.l4 != NULL and rewrite_packet(&memory[frame[i].offset] + p.l3_off, <uint8_t *>p.l4, &p, &told[i])
    return sent


def copied(const uint8_t[::1] memory not None, frames not None):
    """Frames in memory of their own; see rewrite.pyi."""
    cdef const Frame *frame = checked_frames(memory, frames)
    cdef Py_ssize_t i
    cdef uint8_t[::1] copy
    cdef uint64_t at = 0
    laid = frames.copy()
    sizes = frames["caplen"].astype(np.uint64)
    laid["offset"] = np.cumsum(sizes) - sizes
    moved = np.empty(int(sizes.sum()), dtype=np.uint8)
    copy = moved
    for i in range(len(frames)):
        if frame[i].caplen:
            memcpy(&copy[at], &memory[frame[i].offset], frame[i].caplen)
            at += frame[i].caplen
    return moved, laid


def translated(memory, frames, rewrites, edits=None):
    """A copy of frames with the changes made, and which of them can be sent; see rewrite.pyi."""
    moved, laid = copied(memory, frames)
    sent = rewrite_in_place(moved, laid, rewrites)
    if edits is not None and (sent & (rewrites["flags"] & REWRITE_EDIT != 0)).any():
        moved = edit_frames(moved, laid, sent, rewrites, edits)
    return moved, laid, sent


def rewritten(memory, frames, rewrites, edits=None):
    """The same of those only that can be sent; see rewrite.pyi."""
    moved, laid, sent = translated(memory, frames, rewrites, edits)
    return moved, laid[sent]


def edit_frames(memory, frames, sent, rewrites, edits):
    """Make edits in frames that are to be sent. frames, sent: are changed where that is so. Returns the memory in which they lie then."""
    batch = parse_batch(memory, frames, checksum=False, at_hook=True)
    pieces = [memory]
    end = len(memory)
    for i in np.flatnonzero(sent & (rewrites["flags"] & REWRITE_EDIT != 0)).tolist():
        row, start, told = batch.array[i], int(frames["offset"][i]), rewrites[i]
        data = memory[start:start + int(frames["caplen"][i])].tobytes()
        first = int(told["first_edit"])
        changed = edited(data, row, int(row["l4"]) - memory.ctypes.data - start, edits[first:first + int(told["n_edits"])])
        sent[i] = changed is not None
        if changed is not None:
            frames["offset"][i], frames["caplen"][i], frames["len"][i] = end, len(changed), int(frames["len"][i]) + len(changed) - len(data)
            pieces.append(np.frombuffer(changed, dtype=np.uint8))
            end += len(changed)
    return np.concatenate(pieces)

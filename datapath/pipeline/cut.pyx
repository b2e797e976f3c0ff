"""Cutting a datagram up again on its way out of a hook, never larger than its fragments came in: datapath.refragment and datapath.joined, fast.

Theory of operation: as long as the fragments' old borders are there, and the pieces between them add up to what the datagram is now, they are used;
otherwise it is cut anew at the size of the largest. Borders are lost where somebody wanted more bytes of the datagram in one piece than its first
fragment had (origin_joined). Pieces are written one at a time, each into the same memory.
One datagram of 800 + 100 bytes: translation wants 8 bytes of UDP in one piece, which the first one has; out come 800 + 100 again.
Invariants: nothing is read beyond what was captured; pieces put together give the datagram.
Not here: reassembly (ctcore.fragments), when a packet leaves (walk).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

import numpy as np

from ctcore.batch cimport Batch
from ctcore.fragment_whole cimport Part, Whole
from ctcore.lowlevel cimport be16, put_be16, put_be32
from ctcore.tuples cimport (
    IP4_HEADER, IP6_DESTINATION, IP6_FRAGMENT, IP6_HEADER, IP6_HOP_BY_HOP, IP6_ROUTING, Chain, skip_extensions,
)
from ctcore.types cimport (
    ACK, PROTO_GRE, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE, R_OK, REWRITE_DST, REWRITE_INNER_DST,
    REWRITE_INNER_SRC, REWRITE_QUOTE, REWRITE_SRC, REWRITE_WHOLE, SEQ_ADJUST, Decision, Packet, Rewrite,
)
from datapath.checksum cimport fold, sum_bytes
from datapath.pipeline.draft cimport Draft, Layers, layers_of

from ctcore.types import DECISION_DTYPE, REWRITE_DTYPE

PART_DTYPE = np.dtype([("number", "u8"), ("offset", "u4"), ("length", "u4")])
assert PART_DTYPE.itemsize == sizeof(Part)

cdef enum:
    MTU = 65535                 # of any way out
    LEAST_MTU6 = 1280           # RFC 8200 5
    FRAGMENT_HEADER = 8         # RFC 8200 4.5
    COPIED = 0x80               # an option of IPv4 that belongs into every fragment (RFC 791 3.1)
    END = 0
    NOP = 1
    SCTP_HEADER = 12
    LEAST_WRITTEN = 8
    ERROR = 8                   # an ICMP error's header (RFC 792, RFC 4443 3.1)
    LONGEST_LINK = PIECE_ROOM - MTU - 256


# --- what is in one piece by now --------------------------------------------------------------------------------------------------------


cdef void origin_of(Origin *origin, const uint8_t *finished, const Whole *whole, bint verified) noexcept nogil:
    """Of a datagram in the finished memory."""
    cdef uint32_t i
    origin.whole = <const Whole *>(finished + whole.parts - sizeof(Whole))
    origin.part = <const Part *>(finished + whole.parts)
    origin.carried = origin.joined = 0
    for i in range(whole.n_parts):
        origin.carried += origin.part[i].length
    origin.verified = verified


cdef inline uint32_t written_header(uint8_t proto, uint32_t there) noexcept nogil:
    """Bytes of a transport header that translation wants: all of it, or else the first 8; none of other protocols'. there: of it, and behind it."""
    cdef uint32_t size
    if proto == PROTO_TCP:
        size = 20
    elif proto == PROTO_SCTP:
        size = SCTP_HEADER
    elif proto in (PROTO_ICMP, PROTO_UDP, PROTO_GRE, PROTO_ICMPV6, PROTO_UDPLITE):
        size = LEAST_WRITTEN
    else:
        size = 0
    return size if there >= size else LEAST_WRITTEN


cdef uint32_t quoted_at(const Packet *p) noexcept nogil:
    """Where the transport header of the packet begins that an ICMP error quotes, from the error's own on; of a broken chain, its IP header."""
    cdef Chain chain
    cdef const uint8_t *ip = p.l4 + ERROR
    if p.l4_have < ERROR + IP4_HEADER:
        return ERROR
    if p.key.family == 4:
        return ERROR + (ip[0] & 15) * 4
    chain.at = IP6_HEADER
    chain.proto = ip[6]
    if skip_extensions(ip, p.l4_len - ERROR, p.l4_have - ERROR, &chain) != R_OK:
        return ERROR
    return ERROR + chain.at


cdef uint32_t written(const Packet *p, const Decision *d, const Rewrite *r) noexcept nogil:
    """Bytes from the transport header on that are written to."""
    cdef uint32_t size = 0, at
    if r.flags & (REWRITE_INNER_SRC | REWRITE_INNER_DST):
        at = quoted_at(p)
        size = at + written_header(r.to.proto, p.l4_len - min(at, p.l4_len))
    elif r.flags & REWRITE_QUOTE:
        size = ERROR + (<uint32_t>IP4_HEADER if p.key.family == 4 else <uint32_t>IP6_HEADER)
    elif r.flags & (REWRITE_SRC | REWRITE_DST):
        size = written_header(p.key.proto, p.l4_len)
    if p.key.proto == PROTO_TCP and d.status & SEQ_ADJUST and p.tcp_flags & ACK:
        size = max(size, <uint32_t>p.doff)      # acknowledgements may be selective, and then are options (RFC 2018)
    return size


cdef void origin_joined(Origin *origin, const Packet *p, const Decision *d, const Rewrite *r) noexcept nogil:
    """After a `ct` action on the datagram as it came to that, which was decided so and is to be rewritten so."""
    cdef int64_t size = origin.carried
    cdef uint32_t wanted
    if not r.flags & REWRITE_WHOLE:
        wanted = written(p, d, r)
        # Unlike all others' checksums, SCTP's is looked for as if it were to be written.
        if p.key.proto == PROTO_SCTP and origin.verified and p.l4_len >= SCTP_HEADER:
            wanted = max(wanted, <uint32_t>SCTP_HEADER)
        # Headers behind an IPv6 fragment header are carried by it, too.
        size = <int64_t>origin.carried - p.l4_len + wanted if wanted else 0
    origin.joined = <uint32_t>max(<int64_t>origin.joined, min(size, <int64_t>origin.carried))


# --- borders ----------------------------------------------------------------------------------------------------------------------------


cdef inline uint32_t border(const Origin *origin, uint32_t *part) noexcept nogil:
    """Where the next piece ends in what the fragments carried, by the parts from *part on, which moves behind it."""
    cdef uint32_t end = origin.part[part[0]].offset + origin.part[part[0]].length
    part[0] += 1
    if end >= origin.joined:
        return end
    while part[0] < origin.whole.n_parts and origin.part[part[0]].offset + origin.part[part[0]].length <= origin.joined:
        part[0] += 1
    return origin.joined


cdef bint old_borders_fit(const Cutting *c) noexcept nogil:
    """Are there several pieces within the old borders, none too long, all but the last of a multiple of 8 bytes, and as long as the datagram?"""
    cdef uint32_t part = 0, end = 0, at, n = 0
    cdef int64_t length
    while part < c.origin.whole.n_parts:
        at = end
        end = border(c.origin, &part)
        length = <int64_t>end - at - (c.moved if n == 0 else 0)
        if (n == 0 and length <= 0) or length > c.most or (end < c.origin.carried and length & 7):
            return False
        n += 1
    return n > 1 and <int64_t>end - c.moved == c.total


cdef bint choose_borders(Cutting *c, int64_t most) noexcept nogil:
    """Where to cut, given the most that a piece may carry. False: nowhere."""
    c.most = <uint32_t>max(most, <int64_t>0)
    c.step = c.most & ~<uint32_t>7
    c.kept = old_borders_fit(c)
    return c.kept or c.step > 0 or c.total <= most


# --- the datagram -----------------------------------------------------------------------------------------------------------------------


cdef bint unfragmentable(Cutting *c, const uint8_t *ip, uint32_t have) noexcept nogil:
    """IPv6: the headers that every fragment repeats, and where the type of what follows stands (RFC 8200 4.5). False: not all are there."""
    cdef bint routed = False
    c.head, c.next_at = IP6_HEADER, 6
    while ip[c.next_at] == IP6_HOP_BY_HOP or ip[c.next_at] == IP6_ROUTING or ip[c.next_at] == IP6_DESTINATION:
        if ip[c.next_at] == IP6_DESTINATION and routed:
            break
        if c.head + 2 > have:
            return False
        routed |= ip[c.next_at] == IP6_ROUTING
        c.next_at = c.head
        c.head += (<uint32_t>ip[c.head + 1] + 1) * 8
    return c.head <= have


cdef bint begin6(Cutting *c, const uint8_t *ip, uint32_t have) noexcept nogil:
    cdef uint32_t length = be16(ip + 4) + <uint32_t>IP6_HEADER
    cdef const Whole *whole = c.origin.whole
    c.uncut = length <= min(<uint32_t>MTU, whole.largest)
    if c.uncut:
        c.head, c.total = 0, max(length, have)
        return True
    if not unfragmentable(c, ip, have) or c.head >= length:
        return False
    c.moved = <int64_t>c.head - (<int64_t>whole.length - c.origin.carried)
    c.total = length - c.head
    return choose_borders(c, <int64_t>min(<uint32_t>MTU, max(whole.largest, <uint32_t>LEAST_MTU6)) - c.head - FRAGMENT_HEADER)


cdef bint begin4(Cutting *c, const uint8_t *ip, uint32_t have) noexcept nogil:
    cdef uint32_t length = be16(ip + 2)
    c.head = (ip[0] & 15) * 4
    if c.head < IP4_HEADER or c.head > have or c.head >= length:
        return False
    c.moved = 0
    c.total = length - c.head
    return choose_borders(c, <int64_t>min(<uint32_t>MTU, c.origin.whole.largest) - c.head)


cdef bint cut_begin(Cutting *c, const Origin *origin, const Draft *d, uint8_t *room) noexcept nogil:
    """A draft as it is now, which was put together from fragments. False: it cannot be cut up, and Linux drops it. room: PIECE_ROOM bytes."""
    cdef Layers where = layers_of(d)
    if where.l3 < 0 or where.l3 > LONGEST_LINK:
        return False
    c.origin, c.frame, c.have, c.l3, c.room = origin, d.data, d.have, <uint32_t>where.l3, room
    c.done = c.part = c.kept = c.uncut = 0
    c.six = d.data[where.l3] >> 4 != 4
    if c.six:
        return d.have - c.l3 >= IP6_HEADER and begin6(c, d.data + c.l3, d.have - c.l3)
    return begin4(c, d.data + c.l3, d.have - c.l3)


# --- pieces -----------------------------------------------------------------------------------------------------------------------------


cdef void later_options(uint8_t *option, uint32_t size) noexcept nogil:
    """Of all fragments but the first: what is not to be copied is replaced, so that all headers are equally long (as in Linux)."""
    cdef uint32_t at = 0, length, i
    while at < size and option[at] != END:
        if option[at] == NOP:
            at += 1
            continue
        length = option[at + 1] if at + 1 < size else 0
        if length < 2 or at + length > size:
            return
        if not option[at] & COPIED:
            for i in range(length):
                option[at + i] = NOP
        at += length


cdef void write_header4(Cutting *c, uint8_t *ip, uint32_t length, bint more) noexcept nogil:
    """A header with the fields of a fragment, and its checksum."""
    cdef uint16_t value
    cdef bint dont = c.origin.whole.dont and not c.kept
    memcpy(ip, c.frame + c.l3, c.head)
    if c.done:
        later_options(ip + IP4_HEADER, c.head - IP4_HEADER)
    put_be16(ip + 2, <uint16_t>(c.head + length))
    put_be16(ip + 6, <uint16_t>(dont << 14 | more << 13 | c.done >> 3))
    put_be16(ip + 10, 0)
    value = fold(sum_bytes(ip, c.head, 0)) ^ 0xFFFF
    memcpy(ip + 10, &value, 2)


cdef void write_header6(Cutting *c, uint8_t *ip, uint32_t length, bint more) noexcept nogil:
    """The headers that are repeated, then the fragment header (RFC 8200 4.5)."""
    memcpy(ip, c.frame + c.l3, c.head)
    put_be16(ip + 4, <uint16_t>(c.head + FRAGMENT_HEADER + length - IP6_HEADER))
    ip[c.head] = ip[c.next_at]
    ip[c.head + 1] = 0
    ip[c.next_at] = IP6_FRAGMENT
    put_be16(ip + c.head + 2, <uint16_t>(c.done | more))
    put_be32(ip + c.head + 4, c.origin.whole.ident)


cdef bint cut_next(Cutting *c) noexcept nogil:
    """Write the next piece. False: there is none."""
    cdef uint32_t length, head = c.head, start = c.l3 + c.head + c.done, there
    cdef uint8_t *ip = c.room + c.l3
    if c.done == c.total:
        return False
    if c.uncut:
        length = c.total
    elif c.kept:
        length = <uint32_t>(border(c.origin, &c.part) - c.moved - c.done)
    else:
        length = c.total - c.done if c.total - c.done <= c.most else c.step
    memcpy(c.room, c.frame, c.l3)
    if not c.uncut and c.six:
        write_header6(c, ip, length, c.done + length < c.total)
        head += FRAGMENT_HEADER
    elif not c.uncut:
        write_header4(c, ip, length, c.done + length < c.total)
    there = min(length, c.have - min(c.have, start))
    memcpy(ip + head, c.frame + start, there)
    c.size = c.l3 + head + there
    c.missing = length - there
    c.done += length
    return True


# --- from Python, for who compares ------------------------------------------------------------------------------------------------------


def cut_up(const uint8_t[::1] frame not None, datagram, uint32_t joined=0):
    """See cut.pyi."""
    cdef Draft d
    cdef Origin origin
    cdef Whole whole
    cdef Cutting cutting
    parts, room = np.array([(0, 0, 0)] * len(datagram.parts), dtype=PART_DTYPE), np.empty(PIECE_ROOM, dtype=np.uint8)
    parts["offset"], parts["length"] = [part[1] for part in datagram.parts], [part[2] for part in datagram.parts]
    memset(&whole, 0, sizeof(Whole))
    whole.n_parts, whole.length, whole.largest, whole.dont, whole.ident = (
        len(parts), datagram.length, datagram.largest, datagram.dont, datagram.ident,
    )
    origin.whole, origin.part, origin.joined, origin.carried = &whole, <const Part *><size_t>parts.ctypes.data, joined, parts["length"].sum()
    memset(&d, 0, sizeof(Draft))
    d.data, d.have, d.ethernet = &frame[0], frame.shape[0], True
    if not cut_begin(&cutting, &origin, &d, <uint8_t *><size_t>room.ctypes.data):
        return []
    pieces = []
    while cut_next(&cutting):
        pieces.append((room[:cutting.size].tobytes(), cutting.missing))
    return pieces


def joined_of(Batch batch not None, decision not None, rewrite not None, uint32_t carried, *, bint verified):
    """See cut.pyi."""
    cdef Origin origin
    cdef Decision d
    cdef Rewrite r
    decision, rewrite = np.ascontiguousarray(decision, dtype=DECISION_DTYPE), np.ascontiguousarray(rewrite, dtype=REWRITE_DTYPE)
    memcpy(&d, <const void *><size_t>decision.ctypes.data, sizeof(Decision))
    memcpy(&r, <const void *><size_t>rewrite.ctypes.data, sizeof(Rewrite))
    memset(&origin, 0, sizeof(Origin))
    origin.carried, origin.verified = carried, verified
    origin_joined(&origin, &batch.row[0], &d, &r)
    return origin.joined

"""Steering in the datapath: which worker a frame belongs to, read from the frame as it was received.

Theory of operation: a function of the frame's bytes, the number of workers, and of what helpers have announced (ctcore.strays). The tuple is read as the door reads it (wire): tags skipped,
extension headers walked; of an ICMP error it is the quoted packet's, so that the error meets the connection it is about. ctcore.steering says whose
that is: both directions have one owner, and translation chooses only tuples whose answers come back to it.
Of fragments only the first one has ports. Each worker is the gatherer of some datagrams, by a hash of addresses, protocol and id, which all fragments
have: it learns the owner from the first one (gather).
Invariants: nothing outside of the frame is read; what has no tuple stays where it is, and so does what the pipeline will not track anyway.
Not here: handing frames over (handoff), datagrams (gather).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from ctcore.lowlevel cimport be16, be32, likely, unlikely
from ctcore.steering cimport MOST_SHARES, owner_of, share_of, steer_ends
from ctcore.strays cimport StrayTable, Strays, is_stray, stray_load
from ctcore.tuples cimport IP4_HEADER, IP6_HEADER, Chain, fill_addresses, fill_ports, quoted_tuple, skip_extensions
from ctcore.types cimport PROTO_ICMP, PROTO_ICMPV6, R_FRAGMENT, R_OK, Key
from datapath.link cimport LINKTYPE_ETHERNET, Cursor, to_ip

cdef enum:
    ND_REDIRECT = 137
    ND_QUOTE = 48               # bytes of a redirect in front of what it quotes (RFC 4861 4.5, 4.6.3)
    ND_OPT_REDIRECTED = 4
    MORE = 0x2000               # of IPv4's fragments
    OFFSET = 0x1FFF

# The IP packet behind a frame's link layer.
ctypedef struct Inside:
    const uint8_t *ip
    const uint8_t *l4
    uint32_t l4_len             # bytes that the packet says there are, of this fragment
    uint32_t l4_have            # that may be read
    uint32_t id                 # of the datagram
    bint fragment


cdef bint open_ipv4(const Cursor *c, Inside *in_, Course *course) noexcept nogil:
    """RFC 791 3.1. False: there is nothing to go by."""
    cdef uint32_t header, total
    cdef uint16_t frag
    if c.have < IP4_HEADER or c.p[0] >> 4 != 4:
        return False
    header, total, frag = (c.p[0] & 15) * 4, be16(c.p + 2), be16(c.p + 6)
    if header < IP4_HEADER or header > c.have or total < header:
        return False
    fill_addresses(&course.key, 4, c.p)
    course.key.proto = c.p[9]
    in_.l4, in_.l4_len, in_.l4_have = c.p + header, total - header, min(total, c.have) - header
    in_.id, in_.fragment = be16(c.p + 4), frag & (MORE | OFFSET) != 0
    course.start, course.length, course.more = (frag & OFFSET) * 8, in_.l4_len, frag & MORE != 0
    return True


cdef bint open_ipv6(const Cursor *c, Inside *in_, Course *course) noexcept nogil:
    """RFC 8200 3 and 4.5. An atomic fragment is none."""
    cdef uint32_t total
    cdef uint8_t reason
    cdef Chain chain
    if c.have < IP6_HEADER or c.p[0] >> 4 != 6:
        return False
    total = be16(c.p + 4) + <uint32_t>IP6_HEADER
    chain.at, chain.proto = IP6_HEADER, c.p[6]
    reason = skip_extensions(c.p, total, min(total, c.have), &chain)
    if reason != R_OK and reason != R_FRAGMENT:
        return False
    fill_addresses(&course.key, 6, c.p)
    course.key.proto = chain.proto
    in_.fragment = chain.frag != 0
    if in_.fragment:
        if chain.data > min(total, c.have):
            return False
        in_.id = be32(c.p + chain.data - 4)
        course.start, course.length, course.more = chain.frag & 0xFFF8, total - chain.data, chain.frag & 1
    # Safe: what lies beyond the frame is not read, since nothing of it is there.
    in_.l4, in_.l4_len = c.p + min(chain.at, c.have), total - min(chain.at, total)
    in_.l4_have = min(total, c.have) - min(chain.at, min(total, c.have))
    return True


cdef inline uint32_t quote_at(const Inside *in_, uint8_t family) noexcept nogil:
    """Where an ICMP message quotes a packet (RFC 792, RFC 4443 2.1), or 0: it is none that does."""
    cdef uint8_t kind = in_.l4[0]
    if family == 4:
        return 8 if 3 <= kind <= 5 or kind == 11 or kind == 12 else 0
    if kind == ND_REDIRECT:
        return ND_QUOTE if in_.l4_have >= ND_QUOTE and in_.l4[40] == ND_OPT_REDIRECTED else 0
    return 8 if kind < 128 else 0


cdef bint read_tuple(const Inside *in_, Key *key) noexcept nogil:
    """The rest of the tuple, or the quoted packet's. False: it has none."""
    cdef uint32_t quote
    if fill_ports(key, in_.l4, in_.l4_len, in_.l4_have) != R_OK:
        return False
    if key.proto == (PROTO_ICMP if key.family == 4 else PROTO_ICMPV6):
        quote = quote_at(in_, key.family)
        if quote:
            return quoted_tuple(key.family, in_.l4 + quote, in_.l4_len - quote, in_.l4_have - quote, key) == R_OK
    return True


cdef uint32_t gatherer_of(const Key *datagram, uint32_t count) noexcept nogil:
    cdef uint32_t id = <uint32_t>datagram.sport << 16 | datagram.dport
    return share_of(steer_ends(datagram.src, id, datagram.dst, id, datagram.proto), count)


cdef inline uint32_t owner_now(const Key *key, uint32_t count, const Strays *strays) noexcept nogil:
    """What helpers have announced is the first worker's."""
    if unlikely(strays != NULL and stray_load(&strays.n)) and is_stray(strays, key):
        return 0
    return owner_of(key, count)


cdef void steer(const uint8_t *frame, uint32_t have, uint32_t count, const Strays *strays, Course *course) noexcept nogil:
    """What is to be done with an Ethernet frame of `have` bytes, where there are `count` workers. strays: or NULL.   Writes: course."""
    cdef Cursor c
    cdef Inside in_
    cdef Key key
    cdef uint8_t family = 0
    course.errand = STAYS
    memset(&course.key, 0, sizeof(Key))
    c.p, c.length, c.have = frame, have, have
    if to_ip(&c, LINKTYPE_ETHERNET, &family) != R_OK:
        return
    if not (open_ipv4(&c, &in_, course) if family == 4 else open_ipv6(&c, &in_, course)):
        return
    if likely(not in_.fragment):
        if read_tuple(&in_, &course.key):
            course.errand, course.owner = OWNED, owner_now(&course.key, count, strays)
        return
    course.errand, course.owner = FRAGMENT, NO_OWNER
    if course.start == 0:
        key = course.key
        if read_tuple(&in_, &key):
            course.owner = owner_now(&key, count, strays)
    # All fragments of a datagram have these: of IPv6, what follows the fragment header may differ (RFC 8200 4.5).
    course.key.sport, course.key.dport = <uint16_t>(in_.id >> 16), <uint16_t>in_.id
    course.key.proto = course.key.proto if family == 4 else 0
    course.gatherer = gatherer_of(&course.key, count)


def course_of(const uint8_t[::1] frame not None, count, StrayTable strays=None):
    """See steer.pyi."""
    cdef Course course
    if not 1 <= count <= MOST_SHARES:
        raise ValueError(f"count = {count}: expected 1 to {<int>MOST_SHARES}")
    steer(&frame[0] if frame.shape[0] else NULL, <uint32_t>frame.shape[0], count, NULL if strays is None else strays.all, &course)
    if course.errand == STAYS:
        return None
    if course.errand == OWNED:
        return course.owner, None
    return None if course.owner == NO_OWNER else course.owner, course.gatherer

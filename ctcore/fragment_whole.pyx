"""Datagrams that have become whole, written in one piece into memory that stays until finished_release().

Theory of operation: a datagram is the first fragment's headers with new lengths, then all payloads; in front of it stands its description (Whole)
and where its bytes came from (Part). Room for all that can be finished is reserved before anything is, so that nothing moves.
Not here: which fragments make a datagram (fragments), where they lie until then (fragment_store).
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from ctcore.fragment_store cimport FIXED, NONE, Piece, Store, give_back, map_lazily, piece_copy, unmap
from ctcore.lowlevel cimport unlikely

cdef enum:
    KEPT = 8 << 20              # bytes of finished memory that stay resident

# --- memory -----------------------------------------------------------------------------------------------------------------------------


cdef void finished_reserve(Finished *f, size_t need) noexcept nogil:
    """Make room for datagrams of so many bytes before the next release. Call it once between two releases."""
    f.reserved = True
    if need <= f.size:
        return
    need = (need + KEPT) & ~<size_t>4095
    unmap(f.memory, f.size)
    f.memory = <uint8_t *>map_lazily(need)
    f.size = need if f.memory != NULL else 0


cdef void finished_release(Finished *f) noexcept nogil:
    """The finished datagrams are needed no longer."""
    if unlikely(f.used > KEPT):
        give_back(f.memory + KEPT, f.size - KEPT)
    f.used = 0
    f.reserved = False


# --- writing ----------------------------------------------------------------------------------------------------------------------------


cdef uint32_t captured(const Store *s, uint32_t run) noexcept nogil:
    """How many bytes of the datagram are there before the first that was not captured."""
    cdef uint32_t have = s.piece[run].head, piece
    while run != NONE:
        piece = run
        while piece != NONE:
            have += s.piece[piece].have
            if s.piece[piece].have < s.piece[piece].length:
                return have
            piece = s.piece[piece].next
        run = s.piece[run].after
    return have


cdef bint lay_out(Finished *f, Whole *whole) noexcept nogil:
    """Room for a datagram in the finished memory. False only if the system had none when that was reserved."""
    cdef size_t parts = finished_next(f.used) + sizeof(Whole)
    cdef size_t frame = parts + whole.n_parts * sizeof(Part)
    cdef size_t end = frame + whole.link_length + whole.have
    if end > f.size:
        return False
    whole.parts = parts
    whole.frame = frame
    f.used = end
    return True


cdef void write(const Store *s, uint32_t run, uint8_t *ip, uint32_t have, Part *part) noexcept nogil:
    """The first fragment's headers and all payloads, `have` bytes of them, and where they came from."""
    cdef const Piece *one
    cdef uint32_t piece, length
    while run != NONE:
        piece = run
        while piece != NONE:
            one = &s.piece[piece]
            length = min(one.head + one.have, have)
            piece_copy(s, piece, 0, length, ip)
            ip += length
            have -= length
            part.number = one.number
            part.offset = one.offset
            part.length = one.length
            part += 1
            piece = one.next
        run = s.piece[run].after


cdef bint write_datagram(Finished *f, const Store *s, uint32_t run, const uint8_t *link, Whole *whole) noexcept nogil:
    """A link header and all pieces of a datagram, from its first run on, as `whole` describes it. Tells it where; False if there is no room."""
    if not lay_out(f, whole):
        return False
    memcpy(f.memory + whole.frame, link, whole.link_length)
    write(s, run, datagram_at(f, whole), whole.have, <Part *>(f.memory + whole.parts))
    (<Whole *>(f.memory + whole.parts - sizeof(Whole)))[0] = whole[0]
    return True


# --- headers ----------------------------------------------------------------------------------------------------------------------------


cdef uint8_t joint_ecn(uint8_t seen) noexcept nogil:
    """What to set in the datagram's ECN field, by the values its fragments had (RFC 3168 5.3); BAD_ECN if these cannot be of one datagram.

    seen: bit 0 is "not capable", 1 and 2 are the two of capable senders, 3 is "congestion experienced".
    """
    if seen & 1:
        return 0 if seen == 1 else BAD_ECN
    return 3 if seen & 8 and seen & 6 else 0


cdef void mend4(uint8_t *ip, uint32_t head, uint32_t total, uint8_t ecn, bint dont) noexcept nogil:
    """The first fragment's header becomes the datagram's (RFC 791 3.2): lengths, ECN, no fragment any more, and their checksum."""
    cdef uint32_t total_sum = 0, at
    ip[1] |= ecn
    ip[2] = <uint8_t>(total >> 8)
    ip[3] = <uint8_t>total
    ip[6] = 0x40 if dont else 0
    ip[7] = ip[10] = ip[11] = 0
    for at in range(0, head, 2):
        total_sum += <uint32_t>ip[at] << 8 | ip[at + 1]
    while total_sum >> 16:
        total_sum = (total_sum & 0xFFFF) + (total_sum >> 16)
    ip[10] = <uint8_t>(~total_sum >> 8)
    ip[11] = <uint8_t>~total_sum


cdef void mend6(uint8_t *ip, uint32_t next_at, uint8_t next_type, uint32_t total, uint8_t ecn) noexcept nogil:
    """The same of IPv6 (RFC 8200 4.5): the header before the fragment header names what came behind that.

    Where that header stands is kept in a byte by Linux: beyond 255, it spoils another one.
    """
    ip[next_at & 0xFF] = next_type
    ip[1] |= ecn << 4
    ip[4] = <uint8_t>((total - FIXED) >> 8)
    ip[5] = <uint8_t>(total - FIXED)

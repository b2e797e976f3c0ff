from libc.stdint cimport uint8_t, uint16_t, uint32_t

from ctcore.engine cimport Engine
from ctcore.icmp_error cimport is_redirect
from ctcore.nat_headers cimport quote_fits
from ctcore.nat_table cimport Nat, NatRange
from ctcore.tuples cimport invert
from ctcore.types cimport (
    DST_NAT, DST_NAT_DONE, FLAW_SUM, REWRITE_DST, REWRITE_INNER_DST, REWRITE_INNER_SRC, REWRITE_QUOTE, REWRITE_SRC, SRC_NAT, SRC_NAT_DONE, Entry,
    Key, Packet,
)

cdef enum:
    REFUSED = 0xFFFFFFFE        # instead of a connection that has to give way: there is nothing to translate to
    BOUND = SRC_NAT_DONE | DST_NAT_DONE

# A tuple being chosen.
ctypedef struct Choice:
    const NatRange *range
    const Entry *entry          # the connection, which is not in the table yet
    Key tuple                   # as its packets leave
    int manip
    uint16_t zone
    uint32_t victim             # connection that has to give way, or NO_CONN

cdef uint16_t draw(Nat *nat) noexcept nogil
cdef uint32_t nat_decide(Engine *ct, uint32_t conn, int manip) noexcept nogil
cdef uint32_t nat_setup(Engine *ct, Entry *entry, int manip, const NatRange *allowed) noexcept nogil
cdef uint32_t nat_bind(Engine *ct, uint32_t conn, int manip, uint32_t rule) noexcept nogil
cdef void nat_foresee(const Engine *ct, Key *leaving) noexcept nogil
cdef void nat_exhausted(Engine *ct, uint32_t conn) noexcept nogil


cdef inline uint8_t changed_by(const Entry *entry, int dir) noexcept nogil:
    """Which half of its tuple a packet of this direction leaves with changed: replies show the other one.

    The two bits of the status lie in the order of REWRITE_SRC and REWRITE_DST; for replies they change places, which a table of four two-bit
    values does: packets of both directions come mixed, and a branch would be foreseen half of the time.
    """
    cdef uint32_t as_they_are = 0b11_10_01_00, swapped = 0b11_01_10_00
    cdef uint32_t table = as_they_are ^ ((as_they_are ^ swapped) & <uint32_t>-dir)
    return <uint8_t>(table >> 2 * (entry.status // SRC_NAT & 3) & 3)


cdef inline void plan_rewrite(Engine *ct, const Entry *entry, int dir) noexcept nogil:
    """The packet at hand leaves as the opposite flow expects its answers."""
    if ct.rewrite != NULL:
        invert(&entry.flow[1 - dir].key, &ct.rewrite.to)
        ct.rewrite.flags |= changed_by(entry, dir)


cdef inline bint error_fits(const Entry *entry, const Packet *p, uint8_t changes) noexcept nogil:
    """Can an ICMP error about this connection be translated?   changes: REWRITE_SRC, REWRITE_DST, or both, of the error itself.

    A sum that is bad would be made good. A redirect names a router that is none where the packet goes. What is quoted may be too little.
    """
    if p.flaw & FLAW_SUM or (is_redirect(p) and entry.status & (BOUND | SRC_NAT | DST_NAT) != BOUND):
        return False
    return not changes or quote_fits(p, entry.flow[0].key.proto, changes)


cdef inline void plan_error_rewrite(Engine *ct, const Entry *entry, int dir, uint8_t outer) noexcept nogil:
    """An ICMP error that travels in this direction quotes a packet of the other: its destination is that one's source (RFC 5508 4.2).

    outer: REWRITE_SRC, REWRITE_DST, or both. Linux looks at what it quotes whether there is anything to be changed or not.
    """
    if ct.rewrite != NULL:
        invert(&entry.flow[1 - dir].key, &ct.rewrite.to)
        ct.rewrite.flags |= outer | REWRITE_QUOTE
        ct.rewrite.flags |= (REWRITE_INNER_DST if outer & REWRITE_SRC else 0) | (REWRITE_INNER_SRC if outer & REWRITE_DST else 0)

"""Connections by their original source, so that a new one can find what another one of the same source was translated to (RFC 4787 4.1).

Theory of operation: a chain for each hash of a source, the newest connection first. What leads to a connection is a reference: its slot, a few bits of
its source's hash, and whether the chain ends with it. A stranger is passed by without a look at its memory, and the end is known without one as well.
Invariants (nat_fault): every live connection of a tracker that translates is in one chain, that of its original source; the last one's reference says
that it is; pools count the live connections that their rules decided on.
Not here: choosing (nat).
"""

from libc.stdint cimport uint32_t, uint64_t

from ctcore.engine cimport Engine
from ctcore.nat_table cimport NatLink, NatRule
from ctcore.types cimport NO_CONN, ORIG


cdef void nat_link(Engine *ct, uint32_t conn) noexcept nogil:
    """A connection is confirmed: others of its source can find it, and its rules' pools count it."""
    cdef NatLink *link = &ct.nat.link[conn]
    cdef uint64_t hash = source_hash(&ct.nat, &ct.pool.entry[conn].flow[ORIG].key)
    cdef uint32_t *head = chain_of(&ct.nat, hash)
    cdef NatRule *rule
    cdef int manip
    link.prev = NO_CONN
    link.next = head[0]
    if head[0] != NO_REF:
        ct.nat.link[head[0] & REF_SLOT].prev = conn
    head[0] = conn | tag_bits(hash) | (REF_LAST if head[0] == NO_REF else 0)
    for manip in range(2):
        if link.rule[manip]:
            rule = &ct.nat.rule[link.rule[manip] - 1]
            rule.in_use += 1
            rule.high_water = max(rule.high_water, rule.in_use)


cdef inline uint32_t *ref_to(Engine *ct, uint32_t conn, uint64_t hash) noexcept nogil:
    """Where the reference to a connection stands: in the one before it, or the head."""
    cdef uint32_t prev = ct.nat.link[conn].prev
    return chain_of(&ct.nat, hash) if prev == NO_CONN else &ct.nat.link[prev].next


cdef void nat_unlink(Engine *ct, uint32_t conn) noexcept nogil:
    """A confirmed connection goes."""
    cdef NatLink *link = &ct.nat.link[conn]
    cdef uint64_t hash = source_hash(&ct.nat, &ct.pool.entry[conn].flow[ORIG].key)
    cdef int manip
    ref_to(ct, conn, hash)[0] = link.next
    if link.next != NO_REF:
        ct.nat.link[link.next & REF_SLOT].prev = link.prev
    elif link.prev != NO_CONN:
        ref_to(ct, link.prev, hash)[0] |= REF_LAST
    for manip in range(2):
        if link.rule[manip]:
            ct.nat.rule[link.rule[manip] - 1].in_use -= 1


cdef uint32_t ref_at(const Engine *ct, uint32_t conn):
    return ref_to(<Engine *>ct, conn, source_hash(&ct.nat, &ct.pool.entry[conn].flow[ORIG].key))[0]


cdef str nat_fault(const Engine *ct):
    """What breaks an invariant, or an empty string."""
    cdef uint32_t chain, ref, conn, chained = 0, i
    cdef int manip
    in_use = [0] * ct.nat.n_rules
    for chain in range(ct.nat.n_heads):
        ref = ct.nat.head[chain]
        while ref != NO_REF and chained <= ct.live:
            conn = ref & REF_SLOT
            if not ct.pool.entry[conn].live:
                return f"connection in slot {conn} is in a chain of sources, and dead"
            for manip in range(2):
                if ct.nat.link[conn].rule[manip]:
                    in_use[ct.nat.link[conn].rule[manip] - 1] += 1
            chained += 1
            if ref & REF_TAG != tag_bits(source_hash(&ct.nat, &ct.pool.entry[conn].flow[ORIG].key)):
                return f"connection in slot {conn} is referred to under another source's tag"
            ref = ct.nat.link[conn].next
            if (ct.nat.link[conn].next == NO_REF) != ((ref_at(ct, conn) & REF_LAST) != 0):
                return f"connection in slot {conn} is the last of its source's chain, or not, and its reference says otherwise"
    for i in range(ct.nat.n_rules):
        if ct.nat.rule[i].in_use != in_use[i]:
            return f"NAT rule {i} counts {ct.nat.rule[i].in_use} connections, {in_use[i]} have it"
    return "" if ct.nat.rule == NULL or chained == ct.live else f"{chained} connections are chained by source, {ct.live} live"

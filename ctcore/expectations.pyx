"""Expectations: connections that a helper announces before they are opened.

An expectation names destination address and port, protocol and zone exactly; source address and port may be left open. The first packet that
fits makes its connection RELATED, with the expecting one as its master. One shot, unless permanent.
The chains' heads are written when the first row is used: a tracker that expects nothing touches none of this memory. What a helper announces is
linked to its master's extension as well, youngest first: helpers may have few of each kind, and the oldest makes room.
Invariants: every row is in one chain or in the free list; no row outlives its master (tracker calls expect_remove_of, expect_remove_owned).
Not here: helpers, which find out what to expect.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ctcore.lowlevel cimport mul_fold
from ctcore.strays cimport stray_expected, strays_add, strays_drop
from ctcore.types cimport Key, NO_CONN


cdef uint64_t NEVER = <uint64_t>-1


cdef inline uint32_t chain_of(const Expectations *all, const Key *key) noexcept nogil:
    """By what is never left open: destination, port and protocol. Under a secret, since what is announced stands in strangers' packets."""
    cdef uint64_t port = (<uint64_t>key.dport << 8) | key.proto
    return <uint32_t>mul_fold(key.dst[0] ^ port, key.dst[1] ^ all.secret) & (all.n_heads - 1)


cdef inline bint same_target(const Key *a, const Key *b) noexcept nogil:
    """What is never left open."""
    return (a.dst[0] == b.dst[0] and a.dst[1] == b.dst[1] and a.dport == b.dport and a.proto == b.proto and a.family == b.family
            and a.zone == b.zone)


cdef inline bint overlap(const Expectation *a, const Expectation *b) noexcept nogil:
    """Could a packet fit both?"""
    return (
        same_target(&a.key, &b.key) and (a.any_sport or b.any_sport or a.key.sport == b.key.sport)
        and (a.any_src or b.any_src or (a.key.src[0] == b.key.src[0] and a.key.src[1] == b.key.src[1]))
    )


cdef inline bint alike(const Expectation *a, const Expectation *b) noexcept nogil:
    """Do they fit the same packets?"""
    return a.any_src == b.any_src and a.any_sport == b.any_sport and overlap(a, b)


cdef inline bint same(const Expectation *a, const Expectation *b) noexcept nogil:
    """And were they announced by the same connection?"""
    return a.master == b.master and alike(a, b)


cdef inline bint fits(const Expectation *row, const Key *key) noexcept nogil:
    cdef const Key *k = &row.key
    return (
        same_target(k, key) and (row.any_src or (k.src[0] == key.src[0] and k.src[1] == key.src[1]))
        and (row.any_sport or k.sport == key.sport)
    )


cdef uint32_t expect_find(Expectations *all, const Key *key, uint64_t tick) noexcept nogil:
    """The youngest expectation that fits a packet and has not expired, or NO_CONN. There must be expectations."""
    cdef uint32_t row = all.head[chain_of(all, key)]
    while row != NO_CONN:
        if fits(&all.row[row], key) and not all.row[row].inactive and all.row[row].deadline > tick:
            return row
        row = all.row[row].next
    return NO_CONN


cdef uint32_t expect_match(Expectations *all, const Key *key) noexcept nogil:
    """The youngest expectation that a packet would fit, active or not, or NO_CONN."""
    cdef uint32_t row
    if all.count == 0:
        return NO_CONN
    row = all.head[chain_of(all, key)]
    while row != NO_CONN and not fits(&all.row[row], key):
        row = all.row[row].next
    return row


cdef uint32_t expect_same(Expectations *all, const Expectation *draft) noexcept nogil:
    """The row that its master has announced with the very same contents, or NO_CONN: there is at most one."""
    cdef uint32_t row
    if all.count == 0:
        return NO_CONN
    row = all.head[chain_of(all, &draft.key)]
    while row != NO_CONN and not same(&all.row[row], draft):
        row = all.row[row].next
    return row


cdef void expect_init(Expectations *all) noexcept nogil:
    """row and head are memory for size and n_heads."""
    all.free = NO_CONN
    all.next_due = NEVER


cdef void empty_chains(Expectations *all) noexcept nogil:
    cdef uint32_t chain
    for chain in range(all.n_heads):
        all.head[chain] = NO_CONN


cdef uint32_t expect_add(Expectations *all, const Expectation *draft, uint64_t tick) noexcept nogil:
    """A copy of the draft at the head of its chain, in place of an identical one; NO_CONN if there are too many."""
    cdef uint32_t row
    if tick >= all.next_due:
        expect_expire(all, tick)
    row = expect_same(all, draft)
    if row != NO_CONN:
        expect_remove(all, row)
    if all.count == all.size:
        return NO_CONN
    row = expect_enter(all, draft)
    if draft.owner:
        all.row[row].older = all.extension[draft.owner].youngest
        all.extension[draft.owner].youngest = row
    all.created += 1
    return row


cdef uint32_t expect_enter(Expectations *all, const Expectation *draft) noexcept nogil:
    """A copy of the draft at the head of its chain, in a place that there is; not linked to its owner yet."""
    cdef uint32_t row, chain
    if all.used == 0:
        empty_chains(all)
    if all.free != NO_CONN:
        row = all.free
        all.free = all.row[row].next
    else:
        row = all.used
        all.used += 1
    chain = chain_of(all, &draft.key)
    all.row[row] = draft[0]
    all.row[row].live = 1
    all.row[row].next = all.head[chain]
    all.head[chain] = row
    all.next_due = min(all.next_due, draft.deadline)
    all.count += 1
    if all.strays != NULL:
        strays_add(all.strays, stray_expected(&draft.key))
    return row


cdef void make_room(Expectations *all, const Expectation *draft, uint32_t most) noexcept nogil:
    """A helper's connection may have `most` expectations of a kind: with as many there, the oldest goes."""
    cdef uint32_t row = all.extension[draft.owner].youngest
    cdef uint32_t n = 0, oldest = NO_CONN
    while row != NO_CONN:
        if all.row[row].kind == draft.kind:
            oldest = row
            n += 1
        row = all.row[row].older
    if n >= most:
        expect_remove(all, oldest)


cdef Announced expect_announce(Expectations *all, const Expectation *draft, uint32_t most, uint64_t tick) noexcept nogil:
    """Add what a helper announces, unless a packet could fit another one, too. most: that its connection may have of this kind."""
    cdef uint32_t row = NO_CONN
    if tick >= all.next_due:
        expect_expire(all, tick)
    if all.count:
        row = all.head[chain_of(all, &draft.key)]
    while row != NO_CONN:
        if same(&all.row[row], draft) or (draft.shared and alike(&all.row[row], draft)):
            if all.row[row].kind != draft.kind or all.row[row].master != draft.master:
                return EXPECT_ALREADY
            expect_remove(all, row)
            break
        if overlap(&all.row[row], draft):
            return EXPECT_BUSY
        row = all.row[row].next
    make_room(all, draft, most)
    return EXPECT_REFUSED if expect_add(all, draft, tick) == NO_CONN else ANNOUNCED


cdef void disown(Expectations *all, uint32_t row) noexcept nogil:
    cdef uint32_t *link = &all.extension[all.row[row].owner].youngest
    while link[0] != row:
        link = &all.row[link[0]].older
    link[0] = all.row[row].older


cdef void expect_remove(Expectations *all, uint32_t row) noexcept nogil:
    cdef uint32_t *link = &all.head[chain_of(all, &all.row[row].key)]
    while link[0] != row:
        link = &all.row[link[0]].next
    link[0] = all.row[row].next
    if all.row[row].owner:
        disown(all, row)
    if all.strays != NULL:
        strays_drop(all.strays, stray_expected(&all.row[row].key))
    all.row[row].live = 0
    all.row[row].next = all.free
    all.free = row
    all.count -= 1
    all.deleted += 1


cdef void expect_remove_of(Expectations *all, int64_t master) noexcept nogil:
    """The master dies: nothing it announced will be its own any more."""
    cdef uint32_t row
    for row in range(all.used):
        if all.row[row].live and all.row[row].master == master:
            expect_remove(all, row)


cdef void expect_remove_owned(Expectations *all, uint32_t owner) noexcept nogil:
    """The same for what its helper announced; owner: its extension."""
    while all.extension[owner].youngest != NO_CONN:
        expect_remove(all, all.extension[owner].youngest)


cdef void expect_expire(Expectations *all, uint64_t tick) noexcept nogil:
    """Remove what has expired, and note when the next one will."""
    cdef uint32_t row
    all.next_due = NEVER
    for row in range(all.used):
        if all.row[row].live and all.row[row].deadline <= tick:
            expect_remove(all, row)
        elif all.row[row].live:
            all.next_due = min(all.next_due, all.row[row].deadline)


cdef str expect_fault(const Expectations *all):
    """What breaks an invariant of the expectations, or an empty string."""
    cdef uint32_t chain, row
    chained, free = set(), set()
    for chain in range(all.n_heads if all.used else 0):
        row = all.head[chain]
        while row != NO_CONN:
            if row in chained or not all.row[row].live or chain_of(all, &all.row[row].key) != chain:
                return f"expectation {row} is dead, in a wrong chain, or in two"
            if all.row[row].deadline < all.next_due:
                return f"expectation {row} will expire unnoticed"
            chained.add(row)
            row = all.row[row].next
    row = all.free
    while row != NO_CONN and row not in free:
        free.add(row)
        row = all.row[row].next
    if len(chained) != all.count or len(chained) + len(free) != all.used or chained & free:
        return f"{len(chained)} expectations are chained and {len(free)} rows free, {all.count} and {all.used} in all are counted"
    return ""

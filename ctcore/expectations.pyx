"""Expectations: connections that a helper announces before they are opened.

An expectation names source and destination address, protocol, destination port and zone exactly; the source port may be left open. The
first packet that fits makes its connection RELATED, with the expecting one as its master. One shot, unless permanent.
The chains' heads are written when the first row is used: a tracker that expects nothing touches none of this memory.
Invariants: every row is in one chain or in the free list; no row outlives its master (tracker calls expect_remove_of).
Not here: helpers, which find out what to expect.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ctcore.lowlevel cimport mul_fold
from ctcore.table cimport same_key
from ctcore.types cimport Key, NO_CONN


cdef uint64_t NEVER = <uint64_t>-1


cdef inline uint32_t chain_of(const Expectations *all, const Key *key) noexcept nogil:
    """By what is never left open: destination, port and protocol. Helpers make these, not strangers, and expect_max bounds a chain."""
    cdef uint64_t port = (<uint64_t>key.dport << 8) | key.proto
    return <uint32_t>mul_fold(key.dst[0] ^ port, key.dst[1] ^ <uint64_t>0x9E3779B97F4A7C15) & (all.n_heads - 1)


cdef inline bint fits(const Expectation *row, const Key *key) noexcept nogil:
    cdef const Key *k = &row.key
    return (
        k.dst[0] == key.dst[0] and k.dst[1] == key.dst[1] and k.src[0] == key.src[0] and k.src[1] == key.src[1] and k.dport == key.dport
        and k.proto == key.proto and k.family == key.family and k.zone == key.zone and (k.sport == 0 or k.sport == key.sport)
    )


cdef uint32_t expect_find(Expectations *all, const Key *key, uint64_t tick) noexcept nogil:
    """The youngest expectation that fits a packet and has not expired, or NO_CONN. There must be expectations."""
    cdef uint32_t row = all.head[chain_of(all, key)]
    while row != NO_CONN:
        if fits(&all.row[row], key) and all.row[row].deadline > tick:
            return row
        row = all.row[row].next
    return NO_CONN


cdef void forget_same(Expectations *all, const Key *key, int64_t master) noexcept nogil:
    """Remove what this master has announced with this very key: there is at most one."""
    cdef uint32_t row = all.head[chain_of(all, key)]
    while row != NO_CONN:
        if all.row[row].master == master and same_key(&all.row[row].key, key):
            expect_remove(all, row)
            return
        row = all.row[row].next


cdef void expect_init(Expectations *all) noexcept nogil:
    """row and head are memory for size and n_heads."""
    all.free = NO_CONN
    all.next_due = NEVER


cdef void empty_chains(Expectations *all) noexcept nogil:
    cdef uint32_t chain
    for chain in range(all.n_heads):
        all.head[chain] = NO_CONN


cdef uint32_t expect_add(Expectations *all, const Key *key, int64_t master, uint64_t tick, uint64_t deadline) noexcept nogil:
    """A row at the head of its chain, in place of an identical one; NO_CONN if there are too many. The caller fills in the rest."""
    cdef uint32_t row, chain
    if all.used == 0:
        empty_chains(all)
    if tick >= all.next_due:
        expect_expire(all, tick)
    forget_same(all, key, master)
    if all.count == all.size:
        return NO_CONN
    if all.free != NO_CONN:
        row = all.free
        all.free = all.row[row].next
    else:
        row = all.used
        all.used += 1
    chain = chain_of(all, key)
    all.row[row].key = key[0]
    all.row[row].master = master
    all.row[row].deadline = deadline
    all.row[row].live = 1
    all.row[row].next = all.head[chain]
    all.head[chain] = row
    all.next_due = min(all.next_due, deadline)
    all.count += 1
    all.created += 1
    return row


cdef void expect_remove(Expectations *all, uint32_t row) noexcept nogil:
    cdef uint32_t *link = &all.head[chain_of(all, &all.row[row].key)]
    while link[0] != row:
        link = &all.row[link[0]].next
    link[0] = all.row[row].next
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

"""A saved state taken up by an empty tracker: all of it, or nothing.

Theory of operation: what can be checked by itself has been checked (state_check). Connections are then read in groups: each is spelled out, checked,
hashed with this tracker's own secret, and its memory asked for, before the first of them is entered. One that cannot be entered takes back all that
were. Helpers' memories and expectations come last and cannot fail any more.
Invariants: as for connections that packets have made (lifetime.confirm); no event tells of it, and no counter but those of what lives counts it.
Not here: the time that has passed since: the clock stands where it stood, and whoever moves it on has expire what is due by then.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

from ctcore.engine cimport Engine
from ctcore.expectations cimport Expectation, expect_enter
from ctcore.extensions cimport Extension, extension_take
from ctcore.hashing cimport hash_of
from ctcore.helpers.helper cimport HELPER_PPTP
from ctcore.helpers.pptp cimport know_tunnel
from ctcore.lowlevel cimport first_bit, prefetch_write
from ctcore.nat_chain cimport chain_of, nat_link, nat_unlink, source_hash
from ctcore.pool cimport pool_give, pool_take
from ctcore.state cimport CONN_WORDS, TRANSLATES, StateConn, StateExpect, StateHelp, differ, mirrored
from ctcore.state_check cimport *
from ctcore.steering cimport owner_of
from ctcore.strays cimport stray_tuple, strays_add, strays_drop
from ctcore.table cimport bucket_of, same_key, table_erase, table_find, table_insert
from ctcore.timers cimport wheel_link, wheel_unlink
from ctcore.types cimport *
from ctcore.zones cimport zone_confirmed, zone_died

cdef enum:
    GROUP = 32                  # connections at a time
    LONGEST_LIFE = 0x7FFFFFFF

# Where the reading of connections stands.
ctypedef struct Reader:
    const uint64_t *at
    const StateHelp *help       # of the next connection that has a helper
    const StateHelp *help_end
    int64_t last                # ordinal
    uint32_t n                  # connections read

# Connections between reading and entering.
ctypedef struct Group:
    StateConn conn[GROUP]
    uint32_t left[GROUP]
    uint32_t hash[GROUP][2]


# --- connections ------------------------------------------------------------------------------------------------------------------------


cdef inline Fault spell_out(Reader *r, const uint64_t *end, StateConn *out, uint32_t *left) noexcept nogil:
    """The next connection's words. Bits beyond its words are none of anything."""
    cdef uint64_t *word = <uint64_t *>out
    cdef uint64_t head
    cdef Key answers
    if r.at >= end:
        return F_SHORT
    head = r.at[0]
    left[0] = <uint32_t>(head >> 32)
    head = <uint32_t>head
    if head >> CONN_WORDS or left[0] > LONGEST_LIFE:
        return F_TIMEOUT
    r.at += 1
    memset(out, 0, sizeof(StateConn))
    while head:
        if r.at >= end:
            return F_SHORT
        word[first_bit(head)] = r.at[0]
        r.at += 1
        head &= head - 1
    mirrored(&out.key[ORIG], &answers)
    differ(&out.key[REPLY], &answers)
    return FINE


cdef Fault read_group(Engine *ct, const Parts *parts, Reader *r, Group *g, int n) noexcept nogil:
    cdef Fault fault
    cdef StateConn *c
    cdef bint helped
    cdef int i, dir
    for i in range(n):
        c = &g.conn[i]
        fault = spell_out(r, parts.end, c, &g.left[i])
        if fault != FINE:
            return fault
        helped = r.help < r.help_end and r.help.conn == r.n
        fault = check_conn(ct, parts.header, c, r.last, helped)
        if fault != FINE:
            return fault
        r.help += helped
        r.last = c.id
        r.n += 1
        for dir in range(2):
            g.hash[i][dir] = hash_of(&ct.hash_key, &c.key[dir])
            prefetch_write(&ct.table.bucket[bucket_of(&ct.table, g.hash[i][dir])])
        if ct.nat.rule != NULL:
            prefetch_write(chain_of(&ct.nat, source_hash(&ct.nat, &c.key[ORIG])))
    return FINE


cdef void fill_entry(const Engine *ct, Entry *entry, const StateConn *c, uint32_t left, const uint32_t *hash) noexcept nogil:
    cdef uint32_t generation = entry.generation
    cdef uint8_t proto = c.key[ORIG].proto
    cdef int dir
    memset(entry, 0, sizeof(Entry))
    entry.generation = generation
    for dir in range(2):
        entry.flow[dir].key, entry.flow[dir].id = c.key[dir], c.id
        entry.flow[dir].packets, entry.flow[dir].bytes = c.packets[dir], c.bytes[dir]
        entry.hash[dir], entry.label[dir] = hash[dir], c.label[dir]
    entry.start, entry.master, entry.mark, entry.status = c.start, c.master - 1, c.mark, c.status
    entry.cold = <uint8_t>c.expects | (COLD_MARK if c.mark else 0)
    entry.deadline = <uint32_t>ct.tick + left
    if proto == PROTO_TCP or proto == PROTO_SCTP or proto == PROTO_UDP:
        entry.l4 = c.l4
    if proto == PROTO_UDP:
        entry.l4.udp.stream_ts += ct.tick


cdef inline bint is_taken(const Engine *ct, const Key *key, uint32_t hash) noexcept nogil:
    return table_find(&ct.table, ct.pool.entry, hash, key) != NO_FLOW


cdef Fault enter_conn(Engine *ct, const StateConn *c, uint32_t left, const uint32_t *hash, const uint16_t *rule, uint32_t *slot) noexcept nogil:
    """As lifetime.confirm does it. rule: what the state's rules are here."""
    cdef bint mirror = same_key(&c.key[ORIG], &c.key[REPLY])
    cdef uint32_t conn
    cdef int manip
    if is_taken(ct, &c.key[REPLY], hash[REPLY]) or (not mirror and is_taken(ct, &c.key[ORIG], hash[ORIG])):
        return F_TWICE
    conn = pool_take(&ct.pool)
    if conn == NO_CONN:
        return F_ROOM
    fill_entry(ct, &ct.pool.entry[conn], c, left, hash)
    if not mirror and not table_insert(&ct.table, hash[ORIG], conn << 1):
        pool_give(&ct.pool, conn)
        return F_ROOM
    if not table_insert(&ct.table, hash[REPLY], conn << 1 | 1):
        table_erase(&ct.table, hash[ORIG], conn << 1)
        pool_give(&ct.pool, conn)
        return F_ROOM
    ct.pool.entry[conn].live = 1 << REPLY if mirror else 1 << ORIG | 1 << REPLY
    ct.live += 1
    if ct.strays != NULL and c.status & EXPECTED:
        strays_add(ct.strays, stray_tuple(&c.key[ORIG]))
        strays_add(ct.strays, stray_tuple(&c.key[REPLY]))
    zone_confirmed(&ct.zones, &ct.pool.entry[conn])
    wheel_link(&ct.wheel, conn)
    if ct.nat.rule != NULL:
        for manip in range(2):
            ct.nat.link[conn].rule[manip] = rule[2 * c.rule[manip] + manip]
        nat_link(ct, conn)
    slot[0] = conn
    return FINE


cdef void take_back(Engine *ct, const uint32_t *slot, uint32_t n) noexcept nogil:
    """The last one first, so that slots are handed out again in their order."""
    cdef uint32_t conn
    while n:
        n -= 1
        conn = slot[n]
        if ct.strays != NULL and ct.pool.entry[conn].status & EXPECTED:
            strays_drop(ct.strays, stray_tuple(&ct.pool.entry[conn].flow[ORIG].key))
            strays_drop(ct.strays, stray_tuple(&ct.pool.entry[conn].flow[REPLY].key))
        if ct.nat.rule != NULL:
            nat_unlink(ct, conn)
        table_erase(&ct.table, ct.pool.entry[conn].hash[ORIG], conn << 1)
        table_erase(&ct.table, ct.pool.entry[conn].hash[REPLY], conn << 1 | 1)
        wheel_unlink(&ct.wheel, conn)
        zone_died(&ct.zones, &ct.pool.entry[conn])
        ct.live -= 1
        pool_give(&ct.pool, conn)


cdef Fault enter_conns(Engine *ct, const Parts *parts, const uint16_t *rule, uint32_t *slot, uint32_t *done, uint32_t *at) noexcept nogil:
    """done: how many were entered; slot: where; at: which one is at fault, the one behind the last if it is all of them."""
    cdef Reader r
    cdef Group g
    cdef Fault fault
    cdef int n, i
    r.at, r.help, r.help_end = parts.conns, parts.helped, parts.helped + parts.header.helped
    r.last, r.n = -1, 0
    while done[0] < parts.header.conns:
        n = <int>min(parts.header.conns - done[0], <uint32_t>GROUP)
        fault = read_group(ct, parts, &r, &g, n)
        at[0] = r.n if fault != FINE else done[0]
        if fault != FINE:
            return fault
        for i in range(n):
            fault = enter_conn(ct, &g.conn[i], g.left[i], g.hash[i], rule, &slot[done[0]])
            if fault != FINE:
                return fault
            done[0] += 1
            at[0] += 1
    if r.at != parts.end:
        return F_SHORT
    return F_RESERVE if ct.zones.shared_used > ct.zones.shared else FINE


# --- helpers and expectations -----------------------------------------------------------------------------------------------------------


cdef void enter_helped(Engine *ct, const StateHelp *h, uint32_t conn) noexcept nogil:
    """All but its tunnels."""
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef uint32_t row = extension_take(&ct.ext)
    cdef Extension *ext = &ct.ext.row[row]
    ext.helper, ext.changes, ext.memory = h.helper, h.changes, h.memory
    ext.adjust[0], ext.adjust[1] = h.adjust[0], h.adjust[1]
    if h.helper == HELPER_PPTP:
        ext.memory.pptp.known[0] = ext.memory.pptp.known[1] = 0
    ext.master = entry.flow[ORIG].id
    ct.ext.confirmed += 1
    entry.extension = row | <uint32_t>h.helper << EXTENSION_BITS
    entry.cold |= COLD_EXTENSION


cdef int enter_tunnels(Engine *ct, const Parts *parts, const uint32_t *slot) except -1:
    """The oldest first, as far as they had a chain in common."""
    cdef uint32_t i, conn
    cdef int dir
    cdef list tunnels = []
    for i in range(parts.header.helped):
        if parts.helped[i].helper == HELPER_PPTP:
            for dir in range(2):
                if parts.helped[i].memory.pptp.known[dir]:
                    tunnels.append((parts.helped[i].memory.pptp.next[dir], i, dir))
    for _, at, direction in sorted(tunnels):
        i, dir = at, direction
        conn = slot[parts.helped[i].conn]
        know_tunnel(ct, ct.pool.entry[conn].extension & EXTENSION_ROW, dir, &parts.helped[i].memory.pptp.tunnel[dir])
    return 0


cdef uint32_t enter_expected(Engine *ct, const StateExpect *e, uint32_t conn) noexcept nogil:
    """Without its place among those of its owner. Its row."""
    cdef Expectation draft
    memset(&draft, 0, sizeof(Expectation))
    memcpy(draft.saved, e.saved, 16)
    draft.key, draft.master_conn, draft.master = e.key, conn, ct.pool.entry[conn].flow[ORIG].id
    draft.deadline = ct.tick + e.left
    draft.saved_port, draft.kind, draft.dir, draft.any_src, draft.any_sport = e.saved_port, e.kind, e.dir, e.any_src, e.any_sport
    draft.follow, draft.helper, draft.permanent, draft.inactive, draft.shared = e.follow, e.helper, e.permanent, e.inactive, e.shared
    draft.owner = ct.pool.entry[conn].extension & EXTENSION_ROW if e.owned else 0
    if not e.owned:
        ct.pool.entry[conn].cold |= COLD_MASTER
    return expect_enter(&ct.expect, &draft)


cdef int order_owned(Engine *ct, const Parts *parts, const uint32_t *row) except -1:
    """Each owner's expectations, the youngest first. row: where each expectation is."""
    cdef uint32_t i, owner
    cdef list owned = sorted([(parts.expected[i].owned, i) for i in range(parts.header.expected) if parts.expected[i].owned])
    for _, at in owned:
        i = at
        owner = ct.expect.row[row[i]].owner
        ct.expect.row[row[i]].older = ct.ext.row[owner].youngest
        ct.ext.row[owner].youngest = row[i]
    return 0


# --- all of it --------------------------------------------------------------------------------------------------------------------------


cdef object rules_here(const Engine *ct, const Parts *parts, list rules):
    """uint16[rules + 1, 2]: what each rule of the state is here, in each role; 0 if there is no such rule any more. The first row is no rule."""
    cdef object here = np.zeros((parts.header.rules + 1, 2), dtype=np.uint16)
    known = {}
    for number, name in enumerate(rules, 1):
        known.setdefault(name, number)
    for i in range(parts.header.rules):
        number = known.get(parts.rules[<uint32_t>i], 0)
        if number:
            here[i + 1, <int>ct.nat.rule[<uint32_t>number - 1].manip] = number
    return here


cdef void set_clock(Engine *ct, int64_t now) noexcept nogil:
    ct.now = now
    ct.tick = <uint64_t>(now // ct.set.tick_ns)
    ct.next_tick_at = <int64_t>((ct.tick + 1) * <uint64_t>ct.set.tick_ns)
    ct.wheel.cursor = ct.tick


cdef inline int64_t own_ordinal(const Engine *ct, int64_t least) noexcept nogil:
    """The first ordinal from `least` on that is this tracker's to give, if several share the work."""
    cdef int64_t count = ct.set.share_count
    return least + (ct.set.share_index + count - least % count) % count


cdef int state_restore(Engine *ct, object memory, object rules, object at) except -1:
    """memory: contiguous bytes, 8-aligned; rules: names of this tracker's; at: the time at which it goes on, or None for that of saving.

    Raises StateError, and then nothing has changed.
    """
    cdef Parts parts
    cdef uint32_t done = 0, at_conn = 0, i
    cdef Fault fault
    state_empty(ct)
    state_open(ct, memory, &parts)
    state_tables(ct, &parts)
    cdef int64_t before = ct.now, now = parts.header.now if at is None else at
    if now < ct.now:
        raise refuse("", f"saved at {now} ns: expected {ct.now} or later, where this tracker's clock stands")
    cdef object here = rules_here(ct, &parts, rules), slots = np.empty(max(1, parts.header.conns), dtype=np.uint32)
    cdef uint16_t *rule = <uint16_t *><size_t>here.ctypes.data
    cdef uint32_t *slot = <uint32_t *><size_t>slots.ctypes.data
    high_water = [ct.nat.rule[i].high_water for i in range(ct.nat.n_rules)]
    with nogil:
        set_clock(ct, now)
        fault = enter_conns(ct, &parts, rule, slot, &done, &at_conn)
        if fault != FINE:
            take_back(ct, slot, done)
            set_clock(ct, before)
    if fault != FINE:
        for i in range(ct.nat.n_rules):
            ct.nat.rule[i].high_water = high_water[i]
        raise refuse("the connections" if at_conn == parts.header.conns else f"connection {at_conn}", fault_text(fault))
    ct.next_id = own_ordinal(ct, parts.header.next_id)
    if parts.header.flags & TRANSLATES and ct.nat.rule != NULL:
        ct.nat.random = parts.header.nat_random
    enter_rest(ct, &parts, slot)
    return 0


# --- of several trackers ------------------------------------------------------------------------------------------------------------------


cdef enum Whose:
    OWN
    ANOTHERS                    # another tracker's share
    ASTRAY                      # its answers would come to another one than what they answer


cdef inline Whose whose(const Engine *ct, const StateConn *c) noexcept nogil:
    cdef uint32_t count = ct.set.share_count
    if owner_of(&c.key[ORIG], count) != ct.set.share_index:
        return ANOTHERS
    return OWN if owner_of(&c.key[REPLY], count) == ct.set.share_index else ASTRAY


cdef Fault enter_share(Engine *ct, const Parts *parts, const uint16_t *rule, uint32_t *entered, uint32_t *astray, uint32_t *crowded) noexcept nogil:
    """Enter what is this tracker's. One that has no place, or no way back, is left out, and counted."""
    cdef Reader r
    cdef Group g
    cdef Fault fault
    cdef Whose owner
    cdef uint32_t slot
    cdef int n, i
    r.at, r.help, r.help_end = parts.conns, parts.helped, parts.helped
    r.last, r.n = -1, 0
    while r.n < parts.header.conns:
        n = <int>min(parts.header.conns - r.n, <uint32_t>GROUP)
        fault = read_group(ct, parts, &r, &g, n)
        if fault != FINE:
            return fault
        for i in range(n):
            owner = whose(ct, &g.conn[i])
            astray[0] += owner == ASTRAY
            if owner != OWN:
                continue
            fault = F_ROOM if ct.live >= ct.set.max else enter_conn(ct, &g.conn[i], g.left[i], g.hash[i], rule, &slot)
            if fault != FINE and fault != F_ROOM:
                return fault
            entered[0] += fault == FINE
            crowded[0] += fault == F_ROOM
    return FINE if r.at == parts.end else F_SHORT


cdef object state_take_share(Engine *ct, object memory, object rules, object at):
    """As state_restore(), but only what is this tracker's share, beside what is there. Returns how many were entered, astray and crowded.

    Raises StateError; then some may have been entered.
    """
    cdef Parts parts
    cdef uint32_t entered = 0, astray = 0, crowded = 0
    cdef Fault fault
    state_open(ct, memory, &parts)
    if parts.header.helped or parts.header.expected:
        raise refuse("", "helpers and expectations: expected none, since they are no share's")
    cdef int64_t now = parts.header.now if at is None else at
    cdef object here = rules_here(ct, &parts, rules)
    cdef uint16_t *rule = <uint16_t *><size_t>here.ctypes.data
    with nogil:
        if ct.live == 0 and now > ct.now:
            set_clock(ct, now)
        fault = enter_share(ct, &parts, rule, &entered, &astray, &crowded)
    if fault != FINE:
        raise refuse("the connections", fault_text(fault))
    ct.next_id = own_ordinal(ct, max(ct.next_id, parts.header.next_id))
    if parts.header.flags & TRANSLATES and ct.nat.rule != NULL:
        ct.nat.random = parts.header.nat_random
    return entered, astray, crowded


cdef int enter_rest(Engine *ct, const Parts *parts, const uint32_t *slot) except -1:
    """What belongs to connections that are entered."""
    cdef object rows = np.empty(max(1, parts.header.expected), dtype=np.uint32)
    cdef uint32_t *row = <uint32_t *><size_t>rows.ctypes.data
    cdef uint32_t i
    for i in range(parts.header.helped):
        enter_helped(ct, &parts.helped[i], slot[parts.helped[i].conn])
    enter_tunnels(ct, parts, slot)
    for i in range(parts.header.expected):
        row[i] = enter_expected(ct, &parts.expected[i], slot[parts.expected[i].master])
    return order_owned(ct, parts, row)

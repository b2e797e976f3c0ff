"""The life of a connection: created with its first packet, confirmed when that is accepted, killed when its time has come.

Theory of operation: what create() makes is known to nobody until confirm() has entered both of its tuples into the table; until then discard()
takes it back as if it had never been. kill() is the only way out of the table, and the only place that says so. Time goes by packets: with the
first packet of a new tick everything goes that is due by then.
One life: create (a slot, two tuples) -> the trackers' and helpers' say -> confirm (table, wheel, event) -> ... -> kill (event, slot given back).
Invariants: a confirmed connection is in the table, the wheel, its zone's count and, with address translation, in its source's chain; others in none.
Not here: whether there is room for it (room), what its packets change (tracker and the protocols').
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from ctcore.engine cimport Engine, ticks_left
from ctcore.events cimport buffer_last, buffer_put
from ctcore.expectations cimport FOLLOW_PPTP, Expectation, expect_expire, expect_find, expect_remove, expect_remove_of
from ctcore.extensions cimport Extension
from ctcore.hashing cimport hash_of
from ctcore.helpers.helper cimport HELPER_PPTP
from ctcore.helpers.payload_nat cimport follow
from ctcore.helpers.pptp cimport follow_pptp, forget_tunnels, take_tunnel, tunnel_ended
from ctcore.helpers.registry cimport drop_helper, give_helper, helper_confirmed
from ctcore.lowlevel cimport unlikely
from ctcore.nat cimport BOUND, nat_exhausted
from ctcore.nat_chain cimport nat_link, nat_unlink
from ctcore.pool cimport pool_give, pool_take
from ctcore.steering cimport owner_of
from ctcore.strays cimport stray_tuple, strays_add, strays_drop
from ctcore.table cimport same_key, table_erase, table_insert
from ctcore.timers cimport tick_reached, wheel_due, wheel_link, wheel_unlink
from ctcore.types cimport *
from ctcore.zones cimport zone_confirmed, zone_died, zone_id, zone_of

# --- creation ---------------------------------------------------------------------------------------------------------------------------


cdef uint32_t create(Engine *ct, const Packet *p, const Key *reply, bint take) noexcept nogil:
    """An unconfirmed entry, in a place that there is, for a packet without one. reply: the tuple of its answers, but for the zone.

    take: what was expected of it is expected no more.
    """
    cdef uint32_t conn = pool_take(&ct.pool)
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef uint32_t generation = entry.generation
    memset(entry, 0, sizeof(Entry))
    entry.generation = generation
    entry.flow[ORIG].key = p.key
    entry.flow[REPLY].key = reply[0]
    if unlikely(ct.zones.split):
        entry.flow[ORIG].key.zone = zone_id(&ct.zones, p.key.zone, ORIG)
        entry.flow[REPLY].key.zone = zone_id(&ct.zones, p.key.zone, REPLY)
    entry.hash[ORIG] = p.hash
    entry.hash[REPLY] = hash_of(&ct.hash_key, &entry.flow[REPLY].key)
    entry.start = ct.now
    entry.master = -1
    if unlikely(ct.expect.count):
        meet_expectation(ct, conn, take)
    return conn


cdef void discard(Engine *ct, uint32_t conn) noexcept nogil:
    """An entry that is not confirmed never was."""
    if ct.pool.entry[conn].cold & COLD_EXTENSION:
        drop_helper(ct, conn)
    if ct.rewrite != NULL:
        ct.rewrite.flags = 0
    pool_give(&ct.pool, conn)


cdef void meet_expectation(Engine *ct, uint32_t conn, bint take) noexcept nogil:
    """If this connection was announced: it is related to its master and takes over its mark, and the helper it was announced with.

    take: with it the expectation has come true, unless that is permanent. Otherwise it waits for a connection that may be more than tried.
    """
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef Key key = entry.flow[ORIG].key
    cdef uint32_t row
    cdef Expectation expected
    key.zone = zone_of(entry)           # whatever direction it is of
    row = expect_find(&ct.expect, &key, ct.tick)
    if row == NO_CONN:
        return
    expected = ct.expect.row[row]
    if take and not expected.permanent:
        expect_remove(&ct.expect, row)
        row = NO_CONN
    entry.status |= EXPECTED
    entry.master = expected.master
    entry.mark = ct.pool.entry[expected.master_conn].mark
    if entry.mark:
        entry.cold |= COLD_MARK
    if expected.helper:
        give_helper(ct, conn, expected.helper)
    if expected.follow == FOLLOW_PPTP:
        follow_pptp(ct, entry, &expected, take)
    elif expected.follow and ct.nat.rule != NULL:
        follow(ct, entry, &expected, row)
    ct.expect.matched += take


cdef inline bint is_strange(const Engine *ct, const Entry *entry) noexcept nogil:
    """Answers to a translated connection would come to another one of the trackers that share the work; what was expected is known to all."""
    return entry.status & (SRC_NAT | DST_NAT) and not entry.status & EXPECTED and owner_of(&entry.flow[REPLY].key, ct.set.share_count) != ct.set.share_index


cdef uint8_t clash(Engine *ct, uint32_t conn) noexcept nogil:
    """One of a new connection's tuples is another one's: if address translation was to find one of its own, it has found none. The reason."""
    ct.count.insert_failed += 1
    if not ct.pool.entry[conn].status & BOUND:
        return R_CLASH
    nat_exhausted(ct, conn)
    return R_NAT_EXHAUSTED


cdef bint confirm(Engine *ct, uint32_t conn, Packet *p) noexcept nogil:
    """Enter a new connection into the table. False if that cannot be: the packet is dropped, the connection never was."""
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef uint8_t said = p.reason
    cdef bint mirrored
    if taken(ct, entry, REPLY) or (unlikely(ct.set.share_count > 1) and is_strange(ct, entry)) or (
        # Where zones are of one direction, what the packet was not to find may still be there: answers of another zone.
        unlikely(ct.zones.split) and taken(ct, entry, ORIG)
    ):
        p.reason = clash(ct, conn)
        return False
    # Both tuples the same (a host that speaks to itself): lookups must find the reply, as in the kernel's hash chains.
    mirrored = same_key(&entry.flow[ORIG].key, &entry.flow[REPLY].key)
    p.reason = R_TABLE_FULL
    if not mirrored and not table_insert(&ct.table, entry.hash[ORIG], conn << 1):
        ct.count.drop += 1
        return False
    if not table_insert(&ct.table, entry.hash[REPLY], conn << 1 | 1):
        table_erase(&ct.table, entry.hash[ORIG], conn << 1)
        ct.count.drop += 1
        return False
    p.reason = said
    entry.status |= CONFIRMED
    entry.live = 1 << REPLY if mirrored else 1 << ORIG | 1 << REPLY
    entry.flow[ORIG].id = ct.next_id
    entry.flow[REPLY].id = ct.next_id
    ct.next_id += ct.set.share_count
    ct.live += 1
    zone_confirmed(&ct.zones, entry)
    ct.count.new += 1
    wheel_link(&ct.wheel, conn)
    if ct.nat.rule != NULL:
        nat_link(ct, conn)
    if unlikely(entry.cold & COLD_EXTENSION):
        helper_confirmed(ct, entry)
    if unlikely(ct.strays != NULL) and entry.status & EXPECTED:
        strays_add(ct.strays, stray_tuple(&entry.flow[ORIG].key))
        strays_add(ct.strays, stray_tuple(&entry.flow[REPLY].key))
    if ct.set.events & EVENT_NEW:
        buffer_put(&ct.buffer, EVENT_NEW, entry, ticks_left(ct, entry), ct.now)
    return True


# --- deletion ---------------------------------------------------------------------------------------------------------------------------


cdef void kill(Engine *ct, uint32_t conn, uint8_t end, int64_t time) noexcept nogil:
    """Delete a confirmed connection and say so. What the slot holds stays readable until it is taken again."""
    end_life(ct, conn, end, time)
    pool_give(&ct.pool, conn)


cdef void end_life(Engine *ct, uint32_t conn, uint8_t end, int64_t time) noexcept nogil:
    """The same, but nobody else gets the slot: whoever calls this gives it back, or carries it on."""
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef uint64_t lost = ct.buffer.lost
    entry.status |= DYING
    if ct.set.events & EVENT_DESTROY:
        buffer_put(&ct.buffer, EVENT_DESTROY, entry, 0 if end == END_TIMEOUT else ticks_left(ct, entry), time)
        if ct.buffer.lost == lost:
            buffer_last(&ct.buffer).end = end
    if unlikely(entry.status & OFFLOAD) and ct.offloaded_gone != NULL:
        ct.offloaded_gone(ct.offloaded_who, conn)
    if entry.cold & COLD_MASTER:
        expect_remove_of(&ct.expect, entry.flow[0].id)
    if entry.cold & COLD_EXTENSION:
        hang_up(ct, entry)
        drop_helper(ct, conn)
    if unlikely(ct.ext.tunnels) and entry.master >= 0 and entry.flow[ORIG].key.proto == PROTO_GRE:
        tunnel_ended(ct, entry)
    if unlikely(ct.strays != NULL) and entry.status & EXPECTED:
        strays_drop(ct.strays, stray_tuple(&entry.flow[ORIG].key))
        strays_drop(ct.strays, stray_tuple(&entry.flow[REPLY].key))
    if ct.nat.rule != NULL:
        nat_unlink(ct, conn)
    table_erase(&ct.table, entry.hash[ORIG], conn << 1)
    table_erase(&ct.table, entry.hash[REPLY], conn << 1 | 1)
    wheel_unlink(&ct.wheel, conn)
    zone_died(&ct.zones, entry)
    ct.live -= 1


cdef void hang_up(Engine *ct, const Entry *entry) noexcept nogil:
    """A PPTP call ends, and its tunnel with it. Of a connection with another helper there is none."""
    cdef Extension *ext = &ct.ext.row[entry.extension & EXTENSION_ROW]
    cdef const Key *key = &entry.flow[ORIG].key
    cdef uint32_t flow
    cdef int dir
    # A `ct` action may have given the helper to what is no control connection, such as a tunnel.
    if ext.helper != HELPER_PPTP or key.proto != PROTO_TCP or key.family != 4:
        return
    ext.memory.pptp.hang_up = 0
    forget_tunnels(ct, ext)
    for dir in range(2):
        flow = take_tunnel(ct, entry, ext, dir)
        if flow != NO_FLOW and tick_reached(ct.pool.entry[flow >> 1].deadline, ct.tick):
            # It was over already, whoever of the two is noticed first.
            kill(ct, flow >> 1, END_TIMEOUT, deadline_time(ct, &ct.pool.entry[flow >> 1], ct.tick))
            ct.count.expired += 1
        elif flow != NO_FLOW:
            kill(ct, flow >> 1, END_FLUSHED, ct.now)


cdef void expire_due(Engine *ct) noexcept nogil:
    """Delete whatever has expired by now."""
    cdef uint32_t conn = wheel_due(&ct.wheel, ct.tick)
    while conn != NO_CONN:
        kill(ct, conn, END_TIMEOUT, deadline_time(ct, &ct.pool.entry[conn], ct.wheel.cursor))
        ct.count.expired += 1
        conn = wheel_due(&ct.wheel, ct.tick)
    if ct.tick >= ct.expect.next_due:
        expect_expire(&ct.expect, ct.tick)

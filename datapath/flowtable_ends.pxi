"""How rows of the flow table end: torn down by a packet or a round, their connections given back to the tracker. Part of flowtable.pyx.

Theory of operation: a connection that leaves gets back what it would have left by now, so that it expires when it should (A7.56). Rounds are one a
second of the packets' time; where time has leapt, what is due on the way happens on the way.
Source: net/netfilter/nf_flow_table_core.c.
Not here: what hardware is asked for then (flowtable_mirrored.pxi).
"""


cdef void flow_teardown(FlowTable *all, Engine *ct, uint32_t number, uint8_t cause, uint64_t tick) noexcept nogil:
    """The connection goes back to the tracker, which knows nothing of what passed meanwhile. tick: when, which may lie a little ahead."""
    cdef FlowRow *row = &all.row[number]
    cdef Entry *entry = &ct.pool.entry[row.conn]
    if row.flags & ROW_TEARDOWN:
        return
    row.flags |= ROW_TEARDOWN
    row.cause = cause
    all.torn_down[cause] += 1
    entry.status &= ~<uint16_t>OFFLOAD
    give_back(all, ct, entry, tick_reached(row.timeout, tick), tick)


cdef void give_back(const FlowTable *all, Engine *ct, Entry *entry, bint expired, uint64_t tick) noexcept nogil:
    """Windows are learnt anew, and the timeout is what the tracker would have given, less the time that nothing came."""
    cdef uint8_t proto = entry.flow[ORIG].key.proto
    cdef uint32_t base, ahead = <uint32_t>tick - <uint32_t>ct.tick
    cdef int64_t most = handed_back(&ct.set, proto, entry.status, &entry.l4)
    if most < 0:
        return
    base = <uint32_t>most
    if expired:
        base -= min(base, idle_ticks(all, proto))
    if ticks_left(ct, entry) > <int32_t>(base + ahead):
        set_deadline(ct, entry, base + ahead)


cdef void connection_gone(void *who, uint32_t conn) noexcept nogil:
    """The tracker has killed a connection in the table."""
    cdef FlowTable *all = <FlowTable *>who
    cdef FlowRow *row = &all.row[all.of[conn]]
    row.flags |= ROW_TEARDOWN
    row.cause = NOT_TEARDOWN_DYING
    all.torn_down[<int>NOT_TEARDOWN_DYING] += 1


cdef void extend(Engine *ct, Entry *entry, uint64_t tick) noexcept nogil:
    """Keep what is in the table from expiring (nf_flow_table_extend_ct_timeout). tick: when, which may lie a little ahead."""
    cdef uint32_t second = <uint32_t>(SECOND // ct.set.tick_ns)
    cdef uint32_t ahead = <uint32_t>tick - <uint32_t>ct.tick
    cdef uint8_t proto = entry.flow[ORIG].key.proto
    if ticks_left(ct, entry) >= <int32_t>(FIVE_MINUTES * second + ahead):
        return
    if proto == PROTO_UDP or (proto == PROTO_TCP and entry.l4.tcp.state == TCP_ESTABLISHED):
        set_deadline(ct, entry, DAY * second + ahead)
    elif proto == PROTO_TCP and FIN_WAIT <= entry.l4.tcp.state <= TIME_WAIT:
        set_deadline(ct, entry, FIVE_MINUTES * second + ahead)


cdef void flow_round(FlowTable *all, Engine *ct, int64_t now) noexcept nogil:
    """What is to be done once a second, up to `now`, which may lie many seconds after the last call: each row is torn down as of its own second.

    Many rows are looked at in slices, one after the other within the second, so that no packet waits for all of them. Where a second was missed all
    are looked at together. Captures jump by years, but a deadline is the sign of a 32-bit difference: so time goes by leaps that it can tell, as long
    as there are rows.
    """
    while all.count and all.next_round and now - all.next_round > LEAP:
        whole_round(all, ct, all.next_round + LEAP)
    if now - all.round_began >= 2 * SECOND:
        whole_round(all, ct, now)
    while now >= all.next_round and all.next_round != NEVER:
        next_slice(all, ct)


cdef inline int64_t later(int64_t moment, int64_t by) noexcept nogil:
    """Captures have any time: behind the last second there is none."""
    return moment + by if moment < NEVER - by else NEVER


cdef void whole_round(FlowTable *all, Engine *ct, int64_t now) noexcept nogil:
    """All rows as of the last whole second."""
    all.round_began = now // SECOND * SECOND
    all.next_round = later(all.round_began, SECOND)
    all.slices = all.slice = 1
    look_at(all, ct, 0, all.size, <uint64_t>(all.round_began // ct.set.tick_ns))


cdef void next_slice(FlowTable *all, Engine *ct) noexcept nogil:
    """Some rows, as of its own moment. The first one of a round, at a whole second, says how many slices there are; the last one takes what is left."""
    cdef uint64_t tick = <uint64_t>(all.next_round // ct.set.tick_ns)
    if all.slice >= all.slices:
        all.round_began, all.slice, all.slices, all.reached = all.next_round, 0, all.count // SLICE + 1, 0
    all.slice += 1
    all.next_round = later(all.round_began, <int64_t>SECOND * all.slice // all.slices)
    all.reached = look_at(all, ct, all.reached, SLICE if all.slice < all.slices else all.size, tick)


cdef uint32_t look_at(FlowTable *all, Engine *ct, uint32_t first, uint32_t most, uint64_t tick) noexcept nogil:
    """So many rows from `first` on, which are looked at at this moment of each second. Where the next ones begin."""
    cdef uint64_t second = <uint64_t>(SECOND // ct.set.tick_ns), phase = tick % second, at
    cdef FlowRow *row
    cdef uint32_t i = next_living(all, first)
    while i != NO_ROW and most:
        most -= 1
        row = &all.row[i]
        if not row.flags & ROW_TEARDOWN and tick_reached(row.timeout, tick):
            at = tick - <uint64_t><int64_t><int32_t>(<uint32_t>tick - row.timeout)
            at = (at + 2 * second - 1 - phase) // second * second + phase - second      # the first look that finds it expired
            flow_teardown(all, ct, i, NOT_TEARDOWN_IDLE, max(at, ct.tick))
        elif not row.flags & ROW_TEARDOWN and outdated(all, ct, row):
            flow_teardown(all, ct, i, NOT_TEARDOWN_OUTDATED, tick)
        if row.flags & ROW_TEARDOWN:
            leave(all, ct, i)
        else:
            if all.extends:
                extend(ct, &ct.pool.entry[row.conn], tick)
            ask_counters(all, ct, i, <uint32_t>tick)
            if tick_reached(row.quiet, tick):
                row.quiet = <uint32_t>tick      # it shall not come near again from the other side
        i = next_living(all, i + 1)
    return i

"""The flow table beside hardware: what it asks of whoever mirrors it, and what it makes of the answers. Part of flowtable.pyx.

Theory of operation: an ask is a token in a ring, one of a kind for a row at most, and becomes a row of FlowAsk when it is taken, with what its
connection is like then: between batches, as a work queue of Linux gets to its jobs behind the packets. A row that was told of stays, torn down, until
the answer that its rules are gone; its connection may be long dead by then, and is looked at only if it is still the same.
Where the ring is full, everything is asked for again, row by row.
Invariant (check): a token that waits is marked in its row.
Source: net/netfilter/nf_flow_table_offload.c.
Not here: rules, commands, back-off (offload.mirror).
"""

cdef enum:
    HW_DYING = 128              # of a row, beside flowtable.pxd's: its removal was asked for, and the mirror has not said since that it stays


cdef void flow_ask(FlowTable *all, uint32_t number, uint8_t asked) noexcept nogil:
    cdef Asks *asks = all.asks
    cdef FlowRow *row = &all.row[number]
    cdef Token *token
    if asks == NULL or row.hw & HW_WAITS << asked or (asked == ASK_INSTALL and not tick_reached(row.quiet, all.engine.tick)):
        return
    if asks.count == asks.size:
        asks.lost += 1
        asks.missed = True
        return
    token = &asks.token[(asks.first + asks.count) % asks.size]
    token.row, token.serial, token.ask = number, row.serial, asked
    asks.count += 1
    row.hw |= HW_WAITS << asked


cdef inline Entry *connection_of(const FlowTable *all, const FlowRow *row) noexcept nogil:
    """A row's connection; NULL: it is dead, and its slot may be another's."""
    cdef Entry *entry = &all.engine.pool.entry[row.conn]
    return entry if entry.live and entry.flow[ORIG].id == row.conn_id else NULL


cdef bint ask_fill(const FlowTable *all, uint32_t number, uint8_t asked, FlowAsk *out) noexcept nogil:
    """What is asked, as it is now. False: that has become pointless."""
    cdef FlowRow *row = &all.row[number]
    cdef const Engine *ct = all.engine
    cdef const Entry *entry = NULL if row.flags & ROW_TEARDOWN else connection_of(all, row)
    if (entry == NULL) != (asked == ASK_REMOVE) or (asked != ASK_INSTALL and not row.hw & HW_TOLD):
        return False
    memset(out, 0, sizeof(FlowAsk))
    out.key[ORIG], out.key[REPLY] = row.key[ORIG], row.key[REPLY]
    out.now, out.conn, out.row, out.serial, out.ask, out.cause = ct.now, row.conn_id, number, row.serial, asked, row.cause
    row.hw |= HW_TOLD | HW_PENDING | (HW_DYING if asked == ASK_REMOVE else 0)
    if entry == NULL:
        return True
    out.label[0], out.label[1], out.mark, out.status = entry.label[0], entry.label[1], entry.mark, entry.status
    out.bytes = entry.flow[ORIG].bytes + entry.flow[REPLY].bytes
    out.flags = FLOW_BIDIRECTIONAL if row.flags & ROW_BIDIRECTIONAL else 0
    if entry.status & ASSURED:
        out.flags |= <uint8_t>FLOW_ASSURED
    if entry.status & SEEN_REPLY:
        out.flags |= <uint8_t>FLOW_SEEN_REPLY
    return True


cdef inline void fetch_ask(const FlowTable *all, const Asks *asks) noexcept nogil:
    """Rows that come soon, and of those that come sooner, the connections: their memory arrives while others are filled in."""
    cdef const FlowRow *row = &all.row[asks.token[(asks.first + AHEAD) % asks.size].row]
    cdef const Entry *entry = &all.engine.pool.entry[all.row[asks.token[(asks.first + AHEAD // 2) % asks.size].row].conn]
    prefetch_write(row)
    prefetch_write(&row.key[1])
    prefetch_write(&entry.flow[ORIG].packets)
    prefetch_write(&entry.flow[REPLY].packets)
    prefetch_write(&entry.l4)
    prefetch_write(&entry.label)


cdef uint32_t asks_take(FlowTable *all, FlowAsk *out, uint32_t most) noexcept nogil:
    """The asks that wait, in their order, then what is asked for again. How many."""
    cdef Asks *asks = all.asks
    cdef Token token
    cdef uint32_t n = 0
    while n < most and asks.count:
        if asks.count > AHEAD:
            fetch_ask(all, asks)
        token = asks.token[asks.first]
        asks.first = (asks.first + 1) % asks.size
        asks.count -= 1
        if all.row[token.row].serial != token.serial:
            continue
        all.row[token.row].hw &= ~<uint8_t>(HW_WAITS << token.ask)
        n += ask_fill(all, token.row, <uint8_t>token.ask, out + n)
    if asks.missed and not asks.count and asks.sweep == NO_ROW:
        asks.missed, asks.sweep = False, 0
    while n < most and asks.sweep != NO_ROW:
        asks.sweep = next_living(all, asks.sweep)
        if asks.sweep == NO_ROW:
            break
        n += ask_fill(all, asks.sweep, ASK_REMOVE if all.row[asks.sweep].flags & ROW_TEARDOWN else ASK_INSTALL, out + n)
        asks.sweep += 1
    asks.taken += n
    return n


# --- answers ----------------------------------------------------------------------------------------------------------------------------


cdef void count_hardware(FlowTable *all, Entry *entry, uint32_t conn, const FlowAnswer *a) noexcept nogil:
    """A6.49, A6.50: to each direction what is its own; what nobody can tell apart is kept apart."""
    cdef Asks *asks = all.asks
    cdef Unsplit *unsplit
    cdef uint64_t packets = a.packets[ORIG] + a.packets[REPLY]
    cdef int dir
    asks.packets += packets
    asks.bytes += a.bytes[ORIG] + a.bytes[REPLY]
    if entry == NULL:
        asks.late_packets += packets
    elif a.flags & FLOW_SPLIT:
        for dir in range(2):
            if all.engine.set.acct:
                entry.flow[dir].packets += a.packets[dir]
                entry.flow[dir].bytes += a.bytes[dir]
    elif packets:
        asks.unsplit_packets += packets
        unsplit = &asks.unsplit[conn]
        if unsplit.conn_id != entry.flow[ORIG].id or not unsplit.packets:
            unsplit.conn_id, unsplit.packets, unsplit.bytes = entry.flow[ORIG].id, 0, 0
        unsplit.packets += packets
        unsplit.bytes += a.bytes[ORIG] + a.bytes[REPLY]


cdef void seen_by_hardware(const FlowTable *all, FlowRow *row, int64_t used) noexcept nogil:
    """A6.49: as if the packet that hardware saw last had come by. Nobody saw one in the future."""
    cdef uint32_t timeout = <uint32_t>(min(used, all.engine.now) // all.engine.set.tick_ns) + idle_ticks(all, row.key[ORIG].proto)
    if used > 0 and <int32_t>(timeout - row.timeout) > 0:
        row.timeout = timeout


cdef void flow_answer(FlowTable *all, const FlowAnswer *a) noexcept nogil:
    cdef FlowRow *row
    cdef Entry *entry
    if a.row >= all.used or not all.living[a.row >> 6] >> (a.row & 63) & 1 or all.row[a.row].serial != a.serial or not all.row[a.row].hw & HW_TOLD:
        all.asks.stale += 1
        return
    row = &all.row[a.row]
    entry = connection_of(all, row)
    if a.answer == ANSWER_PENDING:
        row.hw |= HW_PENDING
        return
    row.hw &= ~<uint8_t>HW_PENDING
    if a.answer == ANSWER_COUNTED:
        count_hardware(all, entry, row.conn, a)
        seen_by_hardware(all, row, a.used)
        return
    row.quiet = <uint32_t>((min(max(a.used, all.engine.now), all.engine.now + LEAP) + all.engine.set.tick_ns - 1) // all.engine.set.tick_ns)
    row.hw &= ~<uint8_t>HW_DYING
    row.hw = row.hw | HW_ESTABLISHED if a.flags & FLOW_ESTABLISHED else row.hw & ~<uint8_t>HW_ESTABLISHED
    if entry != NULL:
        entry.status = entry.status | HW_OFFLOAD if a.answer == ANSWER_INSTALLED else entry.status & ~<uint16_t>HW_OFFLOAD
    if a.answer == ANSWER_REMOVED and row.flags & ROW_TEARDOWN:
        row_remove(all, all.engine, a.row)


# --- once a second ----------------------------------------------------------------------------------------------------------------------


cdef bint outdated(const FlowTable *all, const Engine *ct, const FlowRow *row) noexcept nogil:
    """A6.44: hardware goes on calling a connection new that has been answered, and nobody is about to tell it."""
    cdef uint16_t status = ct.pool.entry[row.conn].status
    return all.asks != NULL and status & SEEN_REPLY and status & HW_OFFLOAD and not row.hw & (HW_PENDING | HW_ESTABLISHED)


cdef void ask_counters(FlowTable *all, const Engine *ct, uint32_t number, uint32_t tick) noexcept nogil:
    """A6.48."""
    cdef const FlowRow *row = &all.row[number]
    cdef uint32_t idle = idle_ticks(all, row.key[ORIG].proto)
    if ct.pool.entry[row.conn].status & HW_OFFLOAD and <int64_t><int32_t>(row.timeout - tick) * 10 < <int64_t>idle * 9:
        flow_ask(all, number, ASK_COUNTERS)


cdef void leave(FlowTable *all, const Engine *ct, uint32_t number) noexcept nogil:
    """A6.46: a row that is torn down goes; if it may be in hardware, not before its rules, whose removal is asked for once, unless it is refused."""
    if all.row[number].hw & HW_DYING:
        return
    if all.row[number].hw & HW_TOLD:
        flow_ask(all, number, ASK_REMOVE)
    else:
        row_remove(all, ct, number)

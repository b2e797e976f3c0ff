"""Which connections the flow table takes in, at the end of each `ct` action that it has not served (contract A2). Part of flowtable.pyx.

Invariant: OFFLOAD is set with the row, and on nobody who was refused. In plain Python: offload.contract.admission. Not here: what becomes of rows.
"""


cdef uint8_t tcp_refusal(const Entry *entry, uint8_t state) noexcept nogil:
    if state != ESTABLISHED or entry.l4.tcp.state != TCP_ESTABLISHED:
        return NOT_TCP_STATE
    return OFFLOAD_NONE if entry.status & ASSURED else NOT_ASSURED


cdef uint8_t gre_refusal(const Entry *entry, uint8_t state) noexcept nogil:
    cdef const Key *key = &entry.flow[ORIG].key
    if entry.status & (SRC_NAT | DST_NAT):
        return NOT_GRE_NAT
    if key.sport | key.dport | entry.flow[REPLY].key.sport | entry.flow[REPLY].key.dport:
        return NOT_GRE_KEY
    return OFFLOAD_NONE if state == ESTABLISHED and entry.status & ASSURED else NOT_ASSURED


cdef uint8_t refusal(const Entry *entry, uint8_t state) noexcept nogil:
    """Why a connection is not for the table, or OFFLOAD_NONE. state: that of the packet."""
    cdef uint8_t proto = entry.flow[ORIG].key.proto, why
    if proto == PROTO_TCP:
        why = tcp_refusal(entry, state)
    elif proto == PROTO_GRE:
        why = gre_refusal(entry, state)
    elif proto == PROTO_UDP:
        why = OFFLOAD_NONE if entry.status & CONFIRMED else NOT_UNCONFIRMED
    else:
        why = NOT_PROTO
    if why != OFFLOAD_NONE:
        return why
    if entry.cold & COLD_EXTENSION:
        return NOT_HELPER if not entry.status & SEQ_ADJUST else NOT_SEQADJ
    return NOT_SEQADJ if entry.status & SEQ_ADJUST else OFFLOAD_NONE


cdef inline uint8_t refused(FlowTable *all, uint8_t why) noexcept nogil:
    all.refused[why] += 1
    return why


cdef uint8_t flow_admit(FlowTable *all, Engine *ct, const Packet *p, uint32_t flow, uint8_t state) noexcept nogil:
    """Take a packet's connection in, at the end of a `ct` action. Returns OFFLOAD_SOFTWARE if it is in the table now, or why not."""
    cdef Entry *entry = &ct.pool.entry[flow >> 1]
    cdef uint8_t why
    if entry.status & OFFLOAD:
        return OFFLOAD_SOFTWARE
    why = refusal(entry, state)
    if why != OFFLOAD_NONE:
        return refused(all, why)
    if entry.status & DYING:
        return refused(all, NOT_DYING)
    if entry.flow[ORIG].key.proto == PROTO_TCP:
        # Windows are no longer followed from here on, so that they must not be believed later either.
        entry.l4.tcp.flags[ORIG] |= TF_BE_LIBERAL
        entry.l4.tcp.flags[REPLY] |= TF_BE_LIBERAL
    if not row_enter(all, ct, flow >> 1, p.key.zone):
        return refused(all, NOT_TUPLE_BUSY)
    entry.status |= OFFLOAD
    set_deadline(ct, entry, DAY * <uint32_t>(SECOND // ct.set.tick_ns))
    all.admitted += 1
    flow_ask(all, all.of[flow >> 1], ASK_INSTALL)
    return OFFLOAD_SOFTWARE


cdef bint row_enter(FlowTable *all, Engine *ct, uint32_t conn, uint16_t zone) noexcept nogil:
    """A row for a connection. False if one of its tuples is there: an older connection's, which no round has removed yet."""
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef Key key[2]
    cdef FlowRow *row
    cdef uint32_t number
    cdef int dir
    for dir in range(2):
        key[dir] = entry.flow[dir].key
        key[dir].zone = zone
        prefetch_write(chain_of(all, ct, &key[dir]))
    if same_key(&key[ORIG], &key[REPLY]) or flow_find(all, ct, &key[ORIG]) != NO_ROW or flow_find(all, ct, &key[REPLY]) != NO_ROW:
        return False
    number = row_take(all)
    if number == NO_ROW:
        return False
    row = &all.row[number]
    row.conn_id, row.conn, row.zone = entry.flow[ORIG].id, conn, zone
    row.timeout = <uint32_t>ct.tick + idle_ticks(all, key[ORIG].proto)
    row.flags = ROW_BIDIRECTIONAL | ROW_ASSURED if entry.status & ASSURED else 0
    row.cause, row.hw, row.quiet = OFFLOAD_NONE, 0, <uint32_t>ct.tick
    all.living[number >> 6] |= <uint64_t>1 << (number & 63)
    for dir in range(2):
        row.key[dir] = key[dir]
        row.next[dir] = chain_of(all, ct, &key[dir])[0]
        chain_of(all, ct, &key[dir])[0] = number << 1 | dir
    all.of[conn] = number
    all.count += 1
    return True

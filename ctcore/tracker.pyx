"""The engine: what Linux connection tracking makes of each packet.

Theory of operation: a batch goes through three stages. hash_rows() hashes every tuple and asks for its bucket; find_rows() reads the buckets
and asks for the two cache lines of the entry; track_rows() takes the packets one after the other, by now out of the cache: compare the key,
run the protocol's tracker, decide. Order matters only in the last stage, which looks again where an earlier row of the batch has changed
something: a candidate is believed only if it still lies in the table and its key is the packet's.
One packet: clock -> (ICMP: error, untracked?) -> lookup -> new entry if none -> protocol tracker -> confirm -> decision.
Invariants (check): the table holds exactly the flows that `live` of their entries names; each live entry is in one slot of the wheel, and counted.
Not here: parsing (datapath.wire), I/O, the clock (packets bring it).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from ctcore.datagram cimport datagram_packet
from ctcore.edits cimport edits_reset
from ctcore.engine cimport REJECTED, REPEAT, Counters, Engine, Outcome, set_deadline, ticks_left
from ctcore.events cimport copy_out, buffer_last, buffer_put, buffer_take
from ctcore.evictions cimport evictions_take, note_eviction
from ctcore.expectations cimport Expectation
from ctcore.extensions cimport Extension
from ctcore.hashing cimport hash_of
from ctcore.helpers.helper cimport HELPER_PPTP
from ctcore.helpers.pptp cimport name_tunnel
from ctcore.helpers.registry cimport assign_helper, help_error, run_helper
from ctcore.helpers.sip_nat cimport redirect
from ctcore.icmp_error cimport ICMP_DECIDED, ICMP_RELATED, Errand, icmp_errand, is_redirect
from ctcore.lifetime cimport advance_clock, confirm, create, deadline_time, discard, find_current, hang_up, kill
from ctcore.lowlevel cimport likely, prefetch, prefetch_write, unlikely
from ctcore.nat cimport REFUSED, changed_by, nat_decide, nat_foresee, plan_error_rewrite, plan_rewrite
from ctcore.nat_headers cimport header_fits, quote_fits
from ctcore.room cimport find_place
from ctcore.sctp cimport sctp_packet
from ctcore.table cimport Bucket, bucket_of, key_of, same_key, table_candidate, table_find
from ctcore.tcp cimport tcp_packet
from ctcore.tuples cimport invert
from ctcore.types cimport *
from ctcore.zones cimport zone_id, zone_try

cdef enum:
    NEAR_BUCKETS = 1 << 14      # a megabyte: a table as small stays in the second-level cache, and nothing has to be foreseen

# --- stages -----------------------------------------------------------------------------------------------------------------------------


cdef void hash_rows(Engine *ct, Packet *row, int n) noexcept nogil:
    """Hash every tuple.   Reads: key.   Writes: hash. Asks for the home bucket."""
    cdef int i
    if unlikely(ct.zones.split):
        hash_rows_split(ct, row, n)
        return
    for i in range(n):
        row[i].hash = hash_of(&ct.hash_key, &row[i].key)
        prefetch(&ct.table.bucket[bucket_of(&ct.table, row[i].hash)])


cdef void hash_rows_split(Engine *ct, Packet *row, int n) noexcept nogil:
    """The same where zones are of one direction: by the id in the original one, which is looked up first."""
    cdef int i
    cdef Key key
    for i in range(n):
        key = row[i].key
        key.zone = zone_id(&ct.zones, key.zone, ORIG)
        row[i].hash = hash_of(&ct.hash_key, &key)
        prefetch(&ct.table.bucket[bucket_of(&ct.table, row[i].hash)])


cdef void find_rows(Engine *ct, Packet *row, int n) noexcept nogil:
    """Find a likely flow for every row.   Reads: hash.   Writes: flow (or NO_FLOW). Asks for the flow's line and the L4 line."""
    cdef int i
    cdef uint32_t flow
    cdef Entry *entry
    for i in range(n):
        flow = table_candidate(&ct.table, row[i].hash)
        row[i].flow = flow
        if likely(flow != NO_FLOW):
            entry = &ct.pool.entry[flow >> 1]
            prefetch_write(&entry.flow[flow & 1])
            prefetch_write(&entry.l4)
            if ct.nat.rule != NULL:
                prefetch(&entry.flow[1 - (flow & 1)])       # what the packet leaves as
        elif ct.table.n_buckets > NEAR_BUCKETS and row[i].verdict == PENDING:
            foresee(ct, &row[i].key)


cdef void foresee(Engine *ct, const Key *key) noexcept nogil:
    """A connection will probably be opened: ask for the bucket of its answers. A guess, which nothing else rests on."""
    cdef Key leaving = key[0], answer
    if ct.nat.rule != NULL:
        nat_foresee(ct, &leaving)
    if invert(&leaving, &answer):
        prefetch_write(&ct.table.bucket[bucket_of(&ct.table, hash_of(&ct.hash_key, &answer))])


cdef void track_rows(Engine *ct, Packet *row, int n, Decision *out, Rewrite *rewrites) noexcept nogil:
    """Decide every packet, in order.   Reads: all of the row.   Writes: state, verdict, reason; out and rewrites (if not NULL); the engine."""
    cdef int i
    cdef Decision scratch
    for i in range(n):
        if rewrites != NULL:
            ct.rewrite = &rewrites[i]
            ct.rewrite.flags = 0
        track(ct, &row[i], &scratch if out == NULL else &out[i])
    ct.rewrite = NULL


# --- lookup and creation ----------------------------------------------------------------------------------------------------------------


cdef inline uint32_t find_live(Engine *ct, Packet *p) noexcept nogil:
    """The packet's flow: the candidate if it is still right, else a search."""
    cdef uint32_t flow = p.flow
    cdef Entry *entry
    if likely(flow != NO_FLOW):
        entry = &ct.pool.entry[flow >> 1]
        if likely(entry.live >> (flow & 1) & 1 and same_key(&entry.flow[flow & 1].key, &p.key)):
            return flow
    return table_find(&ct.table, ct.pool.entry, p.hash, &p.key) if likely(not ct.zones.split) else <uint32_t>NO_FLOW


cdef uint32_t find_split(Engine *ct, const Key *key) noexcept nogil:
    """The flow of a packet's tuple where zones are of one direction. What has expired does not hide what the second lookup finds."""
    cdef uint32_t flow = NO_FLOW
    cdef int dir
    for dir in range(2):
        if flow == NO_FLOW:
            flow = find_current(ct, zone_try(&ct.zones, &ct.table, ct.pool.entry, &ct.hash_key, key, dir))
    return flow


cdef inline uint32_t lookup(Engine *ct, Packet *p) noexcept nogil:
    cdef uint32_t flow = find_current(ct, find_live(ct, p))
    if unlikely(flow == NO_FLOW) and unlikely(ct.zones.split):
        return find_split(ct, &p.key)
    return flow


# --- one packet -------------------------------------------------------------------------------------------------------------------------


cdef inline uint8_t l4state_of(const Entry *entry, int dir) noexcept nogil:
    """dir: that of the packet at hand, whose line of the entry is in the cache; the protocol stands in the other one's, too."""
    cdef uint8_t proto = entry.flow[dir].key.proto
    if likely(proto == PROTO_TCP):
        return entry.l4.tcp.state
    return entry.l4.sctp.state if proto == PROTO_SCTP else NO_L4STATE


cdef inline void without_conn(const Packet *p, uint8_t l4state, Decision *d) noexcept nogil:
    """The decision on a packet that has no connection, or has lost it."""
    memset(d, 0, sizeof(Decision))
    d.conn = -1
    d.timeout = -1
    d.zone = p.key.zone
    d.state = p.state
    d.dir = NO_DIR
    d.verdict = p.verdict
    d.reason = p.reason
    d.l4state = l4state
    d.proto = p.key.proto
    d.family = p.key.family


cdef inline void with_conn(const Engine *ct, const Entry *entry, const Packet *p, int dir, Decision *d) noexcept nogil:
    d.conn = entry.flow[dir].id
    d.timeout = ticks_left(ct, entry)
    d.mark = entry.mark if unlikely(entry.cold & COLD_MARK) else 0
    d.zone = p.key.zone
    d.status = entry.status
    d.state = p.state
    d.dir = <uint8_t>dir
    d.verdict = p.verdict
    d.reason = p.reason
    d.l4state = l4state_of(entry, dir)
    d.proto = p.key.proto
    d.family = p.key.family
    d.offload = OFFLOAD_NONE
    memset(d.pad, 0, sizeof(d.pad))


cdef inline uint8_t state_of(const Entry *entry, int dir) noexcept nogil:
    """ctinfo, as it is before the packet has changed anything."""
    if dir == REPLY or entry.status & SEEN_REPLY:
        return ESTABLISHED
    return RELATED if entry.status & EXPECTED else NEW


cdef inline Outcome run_l4(Engine *ct, Entry *entry, Packet *p, int dir, bint fresh) noexcept nogil:
    """The protocol's tracker. A fault that parse() found is the tracker's to report: the lookup has happened by now, as in the kernel."""
    if unlikely(p.l4_reason != R_OK):
        p.reason = p.l4_reason
        return REJECTED
    if likely(p.key.proto == PROTO_TCP):
        return tcp_packet(ct, entry, p, dir, fresh)
    if p.key.proto == PROTO_SCTP:
        return sctp_packet(ct, entry, p, dir, fresh)
    return datagram_packet(ct, entry, p, dir, fresh)


cdef inline void say_changes(Engine *ct, Entry *entry) noexcept nogil:
    """At most one update a packet, at its end."""
    cdef uint64_t lost = ct.buffer.lost
    if ct.changes and ct.set.events & EVENT_UPDATE:
        buffer_put(&ct.buffer, EVENT_UPDATE, entry, ticks_left(ct, entry), ct.now)
        if ct.buffer.lost == lost:
            buffer_last(&ct.buffer).changes = ct.changes


cdef void reject(Engine *ct, Packet *p, uint8_t state, uint8_t verdict, uint8_t l4state, Decision *d) noexcept nogil:
    p.state = state
    p.verdict = verdict
    if state == INVALID:
        ct.count.invalid += 1
    without_conn(p, l4state, d)


cdef bint help_first(Engine *ct, uint32_t conn, Packet *p) noexcept nogil:
    """A new connection gets its helper, which looks at its first packet. False if that is to be dropped."""
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef uint8_t refusal = R_OK
    if unlikely(ct.helper_of[0] != NULL):
        assign_helper(ct, conn)
    if unlikely(entry.cold & COLD_EXTENSION):
        refusal = run_helper(ct, conn, p, ORIG, state_of(entry, ORIG))
    if unlikely(refusal != R_OK):
        p.reason = refusal
    return refusal == R_OK


cdef bint translate(Engine *ct, uint32_t conn, Packet *p) noexcept nogil:
    """Decide what a new connection is on the other side. A closed one may have to give way. False with a reason if it cannot be translated."""
    cdef uint32_t victim
    cdef int manip
    for manip in range(MANIP_DST, MANIP_SRC - 1, -1):
        victim = nat_decide(ct, conn, manip)
        if unlikely(victim == REFUSED):
            p.reason = R_NAT_SCOPE
            return False
        if victim != NO_CONN:
            note_eviction(&ct.evictions, &ct.pool.entry[victim], &ct.pool.entry[conn].flow[ORIG].key, FOR_TUPLE, ct.now)
            kill(ct, victim, END_REPLACED, ct.now)
    return True


cdef inline bint translatable(const Entry *entry, Packet *p, int dir) noexcept nogil:
    """False with a reason: the packet would have to be changed, and cannot be."""
    if likely(not entry.status & (SRC_NAT | DST_NAT) or header_fits(p, changed_by(entry, dir))):
        return True
    p.reason = R_NAT_GRE
    return False


cdef inline uint32_t open_entry(Engine *ct, Packet *p) noexcept nogil:
    """An unconfirmed entry for a packet without one; NO_CONN with a reason if its tuple has no answer or there is no place."""
    cdef Key reply
    if not invert(&p.key, &reply):
        p.reason = R_ICMP_TYPE if (p.key.family == 4) == (p.key.proto == PROTO_ICMP) else R_ICMP_FAMILY
        return NO_CONN
    return create(ct, p, &reply) if find_place(ct, p) else <uint32_t>NO_CONN


cdef void track_first(Engine *ct, Packet *p, uint8_t note, Decision *d) noexcept nogil:
    """A packet without a connection.   note: reason to give if it opens one."""
    cdef uint32_t conn = open_entry(ct, p)
    cdef Entry *entry
    if conn == NO_CONN:
        if p.reason == R_TABLE_FULL or p.reason == R_ZONE_LIMIT:
            reject(ct, p, NOT_SEEN, DROP, NO_L4STATE, d)
        else:
            reject(ct, p, INVALID, ACCEPT, NO_L4STATE, d)
        return
    entry = &ct.pool.entry[conn]
    if run_l4(ct, entry, p, ORIG, True) == REJECTED:
        discard(ct, conn)
        reject(ct, p, INVALID, ACCEPT, NO_L4STATE, d)
        return
    if ct.nat.rule != NULL and not translate(ct, conn, p) or unlikely(not translatable(entry, p, ORIG)) or not help_first(ct, conn, p) or not confirm(ct, conn, p):
        discard(ct, conn)
        reject(ct, p, NOT_SEEN, DROP, NO_L4STATE, d)
        return
    p.state = state_of(entry, ORIG)
    p.verdict = ACCEPT
    if unlikely(entry.status & (SRC_NAT | DST_NAT)):
        plan_rewrite(ct, entry, ORIG)
    if note != R_OK:
        p.reason = note
    with_conn(ct, entry, p, ORIG, d)


cdef void track_related(Engine *ct, Packet *p, uint32_t flow, Decision *d) noexcept nogil:
    """An ICMP error about a known flow: it changes nothing there (but a helper may), and is translated as the flow is."""
    cdef Entry *entry = &ct.pool.entry[flow >> 1]
    p.state = RELATED
    p.verdict = ACCEPT
    if ct.nat.rule != NULL:
        # A redirect names a router that is none where the packet goes; a sum that is bad would be made good.
        # What it quotes may be too little to be changed.
        if p.flaw & FLAW_SUM or (entry.status & (SRC_NAT | DST_NAT) and (
            is_redirect(p) or not quote_fits(p, entry.flow[0].key.proto, changed_by(entry, flow & 1))
        )):
            p.verdict = DROP
            p.reason = R_NAT_ICMP
        else:
            plan_error_rewrite(ct, entry, flow & 1)
    if unlikely(entry.cold & COLD_EXTENSION) and flow & 1 == ORIG and p.verdict == ACCEPT and not help_error(ct, entry, p):
        p.verdict = DROP
        p.reason = R_HELPER_REFUSED
        if ct.rewrite != NULL:
            ct.rewrite.flags = 0
    with_conn(ct, entry, p, flow & 1, d)


cdef inline bint track_icmp(Engine *ct, Packet *p, Decision *d) noexcept nogil:
    """True if an ICMP packet of the matching family needs no lookup of its own tuple."""
    cdef uint32_t flow = NO_FLOW
    cdef Errand errand
    if p.key.proto != (PROTO_ICMP if p.key.family == 4 else PROTO_ICMPV6):
        return False
    errand = icmp_errand(ct, p, &flow)
    if errand == ICMP_DECIDED:
        reject(ct, p, p.state, ACCEPT, NO_L4STATE, d)
    elif errand == ICMP_RELATED:
        track_related(ct, p, flow, d)
    return errand == ICMP_DECIDED or errand == ICMP_RELATED


cdef void help_packet(Engine *ct, uint32_t conn, Packet *p, int dir) noexcept nogil:
    """A packet of a connection with a helper: it may be dropped, and yet has been tracked."""
    cdef uint8_t refusal = run_helper(ct, conn, p, dir, p.state)
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef Extension *ext = &ct.ext.row[entry.extension & EXTENSION_ROW]
    if ext.helper == HELPER_PPTP and ext.memory.pptp.hang_up:
        hang_up(ct, entry)
    if refusal != R_OK:
        p.reason = refusal
        p.verdict = DROP
        if ct.rewrite != NULL:
            ct.rewrite.flags = 0


cdef void track(Engine *ct, Packet *p, Decision *d) noexcept nogil:
    """One packet, from its row to its decision."""
    cdef uint32_t flow
    cdef Entry *entry
    cdef int dir
    cdef Outcome outcome
    advance_clock(ct, p.now)
    if unlikely(p.verdict != PENDING):
        reject(ct, p, p.state, p.verdict, NO_L4STATE, d)
        return
    if unlikely(p.key.proto != PROTO_TCP and p.key.proto != PROTO_UDP) and track_icmp(ct, p, d):
        return
    if unlikely(ct.ext.tunnels) and p.key.proto == PROTO_GRE:
        name_tunnel(ct, p)
    flow = lookup(ct, p)
    if unlikely(flow == NO_FLOW):
        track_first(ct, p, R_OK, d)
        return
    ct.count.found += 1
    entry = &ct.pool.entry[flow >> 1]
    dir = flow & 1
    ct.changes = 0
    p.state = state_of(entry, dir)
    outcome = run_l4(ct, entry, p, dir, False)
    if unlikely(outcome == REPEAT):
        kill(ct, flow >> 1, END_REPLACED, ct.now)
        track_first(ct, p, R_TCP_REOPENED, d)
        return
    if unlikely(outcome == REJECTED):
        reject(ct, p, INVALID, ACCEPT, l4state_of(entry, dir), d)
        if ct.changes:
            say_changes(ct, entry)
        return
    p.verdict = ACCEPT
    if unlikely(entry.status & DYING):
        kill(ct, flow >> 1, END_RESET, ct.now)
    if unlikely(dir == REPLY and not entry.status & SEEN_REPLY):
        entry.status |= SEEN_REPLY
        ct.changes |= CHANGE_REPLY
    if unlikely(entry.cold & COLD_EXTENSION):
        help_packet(ct, flow >> 1, p, dir)
    if unlikely(ct.changes) and not entry.status & DYING:
        say_changes(ct, entry)
    if entry.status & (SRC_NAT | DST_NAT) and p.verdict == ACCEPT:
        if likely(translatable(entry, p, dir)):
            plan_rewrite(ct, entry, dir)
            if unlikely(entry.cold & COLD_EXTENSION):
                redirect(ct, entry, dir)
        else:
            p.verdict = DROP
    with_conn(ct, entry, p, dir, d)


include "admin_api.pxi"
include "tracker_api.pxi"

"""A packet's way through the engine: what Linux connection tracking makes of each packet.

Theory of operation: a batch goes through three stages. hash_rows() hashes every tuple and asks for its bucket; find_rows() reads the buckets
and asks for the two cache lines of the entry; track_rows() takes the packets one after the other, by now out of the cache: compare the key,
run the protocol's tracker, decide. Order matters only in the last stage, which looks again where an earlier row of the batch has changed
something: a candidate is believed only if it still lies in the table and its key is the packet's.
One packet: clock -> (ICMP: error, untracked?) -> lookup -> new entry if none -> protocol tracker | translation, helper -> confirm -> decision.
The first half, up to the bar, is what a `ct` action does as well (act); the second one is what hooks and rules make of it.
Not here: parsing (datapath.wire), I/O, the clock (packets bring it), class Tracker (tracker).
"""

from libc.stdint cimport uint8_t, uint32_t

from ctcore.changes cimport say_changes
from ctcore.datagram cimport datagram_packet
from ctcore.decision cimport l4state_of, state_of, with_conn, without_conn
from ctcore.engine cimport REJECTED, REPEAT, Engine, Outcome
from ctcore.evictions cimport note_eviction
from ctcore.extensions cimport Extension
from ctcore.hashing cimport hash_of
from ctcore.helpers.helper cimport HELPER_PPTP
from ctcore.helpers.pptp cimport name_tunnel
from ctcore.helpers.registry cimport assign_helper, help_error, run_helper
from ctcore.helpers.sip_nat cimport redirect
from ctcore.icmp_error cimport ICMP_DECIDED, ICMP_RELATED, Errand, icmp_errand
from ctcore.lifetime cimport advance_clock, confirm, create, discard, find_current, hang_up, kill
from ctcore.lowlevel cimport likely, prefetch, prefetch_write, unlikely
from ctcore.nat cimport REFUSED, changed_by, error_fits, nat_decide, nat_foresee, plan_error_rewrite, plan_rewrite
from ctcore.nat_headers cimport header_fits
from ctcore.room cimport find_place
from ctcore.sctp cimport sctp_packet
from ctcore.table cimport bucket_of, same_key, table_candidate, table_find
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
        # Where zones are of one direction only what the first lookup would find: a place may be another connection's by now, and its answers'.
        if likely(entry.live >> (flow & 1) & 1 and same_key(&entry.flow[flow & 1].key, &p.key)) and (
            likely(not ct.zones.split) or p.key.zone == zone_id(&ct.zones, p.key.zone, ORIG)
        ):
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


cdef void reject(Engine *ct, Packet *p, uint8_t state, uint8_t verdict, uint8_t l4state, Decision *d) noexcept nogil:
    p.state = state
    p.verdict = verdict
    if state == INVALID:
        ct.count.invalid += 1
    without_conn(p, l4state, d)


# --- the first half of a packet's way: its connection, and what the protocol says ---------------------------------------------------------


cdef inline Finding quoted_flow(Engine *ct, Packet *p, uint32_t *flow, Decision *d) noexcept nogil:
    """What an ICMP packet of the matching family is. FOUND_LATER: it is to be looked up by its own tuple, as others are."""
    cdef Errand errand
    if p.key.proto != (PROTO_ICMP if p.key.family == 4 else PROTO_ICMPV6):
        return FOUND_LATER
    errand = icmp_errand(ct, p, flow)
    if errand == ICMP_DECIDED:
        reject(ct, p, p.state, ACCEPT, NO_L4STATE, d)
        return FOUND_NOTHING
    return FOUND_QUOTED if errand == ICMP_RELATED else FOUND_LATER


cdef inline uint32_t open_entry(Engine *ct, Packet *p, bint commit) noexcept nogil:
    """An unconfirmed entry for a packet without one; NO_CONN with a reason if its tuple has no answer or there is no place."""
    cdef Key reply
    if not invert(&p.key, &reply):
        p.reason = R_ICMP_TYPE if (p.key.family == 4) == (p.key.proto == PROTO_ICMP) else R_ICMP_FAMILY
        return NO_CONN
    return create(ct, p, &reply, commit) if find_place(ct, p) else <uint32_t>NO_CONN


cdef Finding open_first(Engine *ct, Packet *p, uint8_t note, bint commit, uint32_t *flow, Decision *d) noexcept nogil:
    """A packet without a connection opens one, which is not confirmed yet.   note: reason to give then."""
    cdef uint32_t conn = open_entry(ct, p, commit)
    if conn == NO_CONN:
        if p.reason == R_TABLE_FULL or p.reason == R_ZONE_LIMIT:
            reject(ct, p, NOT_SEEN, DROP, NO_L4STATE, d)
        else:
            reject(ct, p, INVALID, ACCEPT, NO_L4STATE, d)
        return FOUND_NOTHING
    if run_l4(ct, &ct.pool.entry[conn], p, ORIG, True) == REJECTED:
        discard(ct, conn)
        reject(ct, p, INVALID, ACCEPT, NO_L4STATE, d)
        return FOUND_NOTHING
    if note != R_OK:
        p.reason = note
    flow[0] = conn << 1
    return FOUND_NEW


cdef inline Finding first_half(Engine *ct, Packet *p, bint commit, uint32_t *flow, Decision *d) noexcept nogil:
    """Find a packet's connection, or open one, and let its protocol look.   Writes: flow; d if nothing is found; ct.changes if something is.

    commit: whether a connection that is opened may become more than that, and takes what was expected of it.
    """
    cdef Entry *entry
    cdef int dir
    cdef Finding found
    cdef Outcome outcome
    if unlikely(p.verdict != PENDING):
        reject(ct, p, p.state, p.verdict, NO_L4STATE, d)
        return FOUND_NOTHING
    if unlikely(p.key.proto != PROTO_TCP and p.key.proto != PROTO_UDP):
        found = quoted_flow(ct, p, flow, d)
        if found != FOUND_LATER:
            return found
    if unlikely(ct.ext.tunnels) and p.key.proto == PROTO_GRE:
        name_tunnel(ct, p)
    flow[0] = lookup(ct, p)
    if unlikely(flow[0] == NO_FLOW):
        return open_first(ct, p, R_OK, commit, flow, d)
    ct.count.found += 1
    entry = &ct.pool.entry[flow[0] >> 1]
    dir = flow[0] & 1
    ct.changes = 0
    p.state = state_of(entry, dir)
    outcome = run_l4(ct, entry, p, dir, False)
    if unlikely(outcome == REPEAT):
        kill(ct, flow[0] >> 1, END_REPLACED, ct.now)
        return open_first(ct, p, R_TCP_REOPENED, commit, flow, d)
    if unlikely(outcome == REJECTED):
        reject(ct, p, INVALID, ACCEPT, l4state_of(entry, dir), d)
        if ct.changes:
            say_changes(ct, entry)
        return FOUND_NOTHING
    p.verdict = ACCEPT
    return FOUND_KNOWN


cdef Finding find_connection(Engine *ct, Packet *p, bint commit, uint32_t *flow, Decision *d) noexcept nogil:
    """The same for other modules."""
    return first_half(ct, p, commit, flow, d)


# --- the second half: what is made of a connection ----------------------------------------------------------------------------------------


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


cdef void replace(Engine *ct, uint32_t victim, uint32_t conn) noexcept nogil:
    """A closed connection gives way to a new one that gets its translated tuple."""
    note_eviction(&ct.evictions, &ct.pool.entry[victim], &ct.pool.entry[conn].flow[ORIG].key, FOR_TUPLE, ct.now)
    kill(ct, victim, END_REPLACED, ct.now)


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
            replace(ct, victim, conn)
    return True


cdef inline bint translatable(const Entry *entry, Packet *p, int dir) noexcept nogil:
    """False with a reason: the packet would have to be changed, and cannot be."""
    if likely(not entry.status & (SRC_NAT | DST_NAT) or header_fits(p, changed_by(entry, dir))):
        return True
    p.reason = R_NAT_GRE
    return False


cdef void track_related(Engine *ct, Packet *p, uint32_t flow, Decision *d) noexcept nogil:
    """An ICMP error about a known flow: it changes nothing there (but a helper may), and is translated as the flow is."""
    cdef Entry *entry = &ct.pool.entry[flow >> 1]
    p.state = RELATED
    p.verdict = ACCEPT
    if ct.nat.rule != NULL:
        if error_fits(entry, p, changed_by(entry, flow & 1)):
            plan_error_rewrite(ct, entry, flow & 1, changed_by(entry, flow & 1))
        else:
            p.verdict = DROP
            p.reason = R_NAT_ICMP
    if unlikely(entry.cold & COLD_EXTENSION) and flow & 1 == ORIG and p.verdict == ACCEPT and not help_error(ct, entry, p):
        p.verdict = DROP
        p.reason = R_HELPER_REFUSED
        if ct.rewrite != NULL:
            ct.rewrite.flags = 0
    with_conn(ct, entry, p, flow & 1, d)


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


cdef void settle(Engine *ct, uint32_t conn, Packet *p, Decision *d) noexcept nogil:
    """A packet has opened a connection: translate, help and confirm it, or nothing comes of either."""
    cdef Entry *entry = &ct.pool.entry[conn]
    if ct.nat.rule != NULL and not translate(ct, conn, p) or unlikely(not translatable(entry, p, ORIG)) or not help_first(ct, conn, p) or not confirm(ct, conn, p):
        discard(ct, conn)
        reject(ct, p, NOT_SEEN, DROP, NO_L4STATE, d)
        return
    p.state = state_of(entry, ORIG)
    p.verdict = ACCEPT
    if unlikely(entry.status & (SRC_NAT | DST_NAT)):
        plan_rewrite(ct, entry, ORIG)
    with_conn(ct, entry, p, ORIG, d)


cdef inline void go_on(Engine *ct, uint32_t flow, Packet *p, Decision *d) noexcept nogil:
    """A packet of a known connection: note that it was answered, help, translate."""
    cdef Entry *entry = &ct.pool.entry[flow >> 1]
    cdef int dir = flow & 1
    if unlikely(entry.status & DYING):
        kill(ct, flow >> 1, END_RESET, ct.now)
    note_reply(ct, entry, dir)
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


cdef void track(Engine *ct, Packet *p, Decision *d) noexcept nogil:
    """One packet, from its row to its decision."""
    cdef uint32_t flow = NO_FLOW
    cdef Finding found
    advance_clock(ct, p.now)
    found = first_half(ct, p, True, &flow, d)
    if likely(found == FOUND_KNOWN):
        go_on(ct, flow, p, d)
    elif found == FOUND_NEW:
        settle(ct, flow >> 1, p, d)
    elif found == FOUND_QUOTED:
        track_related(ct, p, flow, d)

"""A `ct` action on its walk: what Linux does around connection tracking (tcf_ct_act), to the draft.

The twin of reference.RuleTracker, which says in plain Python what is right; to the byte the same.
Theory of operation: fragments are put together in the action's zone, the tracker has its say (ctcore.act), what lies behind the IP packet is cut off,
and what the tracker wants changed is changed at once, so that later rules see it.
One packet: the second fragment of two comes to `ct nat`: the draft is the datagram from now on, translated; its origin says how to cut it up again.
Invariants: what a level carries is given back to the tracker before the level ends (walk); a packet that does not go on carries nothing.
Not here: which packets come here (walk), what an action asks (program), tracking (ctcore).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from ctcore.act cimport CT_CLEAR, CT_FORCE, CtRequest, ct_act, ct_leave
from ctcore.decision cimport with_conn
from ctcore.edits cimport edits_reset
from ctcore.engine cimport Engine, ticks_left
from ctcore.fragment_store cimport LARGEST
from ctcore.fragment_whole cimport Whole, fragments_room
from ctcore.fragments cimport FRAGMENT_HELD, FRAGMENT_WHOLE, fragments_reserve
from ctcore.hashing cimport hash_of
from ctcore.lowlevel cimport likely, unlikely
from ctcore.table cimport table_find
from ctcore.tuples cimport invert
from ctcore.types cimport (
    ASSURED, ESTABLISHED, NEW, NO_FLOW, NOT_FRAGMENT, NOT_TEARDOWN_FIN, NOT_UNCONFIRMED, OFFLOAD_HARDWARE, OFFLOAD_NONE,
    OFFLOAD_SOFTWARE, ORIG, R_FRAGMENT, R_HELPER_REFUSED, R_NOT_IP,
    R_OK, R_RULE_DROP, R_RULE_FIELD, R_RULE_ROOM, REWRITE_DST, REWRITE_EDIT, REWRITE_INNER_DST, REWRITE_INNER_SRC, REWRITE_SEQ, REWRITE_SRC,
    Decision, Entry, Key, Packet, Rewrite,
)
from datapath.defragment cimport Gathering, gather_one
from datapath.flowtable cimport NO_ROW, FlowTable, flow_admit, flow_find, flow_passes, flow_serve
from datapath.frame cimport Frame
from datapath.link cimport ETHER_IPV4, ETHER_IPV6
from datapath.pipeline.cut cimport origin_joined, origin_of
from datapath.pipeline.draft cimport draft_own, layers_of
from datapath.pipeline.draft_ct cimport draft_edit, draft_rewrite, draft_trim
from datapath.pipeline.level cimport MOST_SENT, put_said, read_draft
from datapath.pipeline.program cimport Resume
from datapath.pipeline.trail cimport MOST_CTS, Trail
from datapath.wire cimport FRAGMENTS_PASSED

cdef enum:
    CHANGES = REWRITE_SRC | REWRITE_DST | REWRITE_INNER_SRC | REWRITE_INNER_DST | REWRITE_SEQ | REWRITE_EDIT
    # As flower numbers them (rules.CT_STATES).
    SAID_NEW = 0x01
    SAID_EST = 0x02
    SAID_REL = 0x04
    SAID_TRK = 0x08
    SAID_INV = 0x10
    SAID_RPL = 0x20


cdef void tell(Walking *w, Level *v) noexcept nogil:
    """What later rules match, from what the packet carries now. Of a packet without a connection, which was tracked, that it is invalid."""
    cdef const Entry *entry
    memset(&v.said, 0, sizeof(v.said))
    if v.carried.tracked:
        v.said.zone = v.carried.zone
        v.said.state = SAID_TRK | SAID_INV
    if v.carried.flow != NO_FLOW:
        entry = &w.ct.pool.entry[v.carried.flow >> 1]
        v.said.state = SAID_TRK | (SAID_NEW if v.carried.state == NEW else SAID_EST if v.carried.state == ESTABLISHED else SAID_REL)
        if v.carried.flow & 1:
            v.said.state |= SAID_RPL
        v.said.mark = entry.mark
        v.said.label[0], v.said.label[1] = entry.label[0], entry.label[1]
    if v.keyed:
        put_said(v)


cdef inline Packet *writable_packet(Walking *w, Level *v) noexcept nogil:
    """The draft, parsed, in a row of the level's own."""
    if not v.parsed:
        read_draft(w, v)
    elif v.packet != &v.own:
        v.own = v.packet[0]
        v.packet = &v.own
    return &v.own


cdef inline bint is_ip(const Level *v) noexcept nogil:
    """To Linux nothing but IP behind Ethernet and tags is; our parser looks into more."""
    cdef uint32_t kind
    if not v.draft.ethernet:
        return v.draft.family != 0
    kind = layers_of(&v.draft).kind
    return kind == ETHER_IPV4 or kind == ETHER_IPV6


cdef inline uint8_t give_up(Walking *w, Level *v, uint8_t reason) noexcept nogil:
    ct_leave(w.ct, &v.carried)
    return reason


# --- fragments --------------------------------------------------------------------------------------------------------------------------


cdef bint gather(Walking *w, Level *v, Packet *p) noexcept nogil:
    """A fragment: False if it is held. Else p is the datagram that it completes, which is the draft then; or says why it is dropped."""
    cdef Gathering g
    cdef Whole whole
    cdef Frame frame = w.frame[0]
    cdef uint8_t outcome
    memset(&g, 0, sizeof(Gathering))
    g.all, g.now, g.memory, g.first_link = w.fragments, w.gathered, v.draft.data, True
    g.settings = w.settings
    g.settings.zone = p.key.zone
    g.settings.fragments = FRAGMENTS_PASSED
    frame.offset, frame.caplen, frame.len = 0, v.draft.have, v.draft.have + v.draft.missing
    if not w.fragments.finished.reserved:       # for this packet and its copies; lent by the page
        fragments_reserve(w.fragments, (MOST_SENT + 1) * fragments_room(LARGEST))
    outcome = gather_one(&g, &frame, p, w.row, &whole)
    if outcome == FRAGMENT_HELD:
        return False
    v.parsed = False                            # but as what came out of reassembly; the next action asks for fragments again
    if outcome == FRAGMENT_WHOLE:
        v.draft.data = w.fragments.finished.memory + whole.frame
        v.draft.have, v.draft.missing = whole.link_length + whole.have, whole.length - whole.have
        v.draft.own = v.in_place = v.keyed = False
        v.billed = 0
        p.l3_off = v.draft.l3 = <uint16_t>whole.link_length
        origin_of(&v.origin, w.fragments.finished.memory, &whole, w.settings.checksum)
        if not w.gathers:                       # a copy's fragments may be of a datagram that was changed
            w.gathers, w.datagram = True, p.key
    return True


# --- what the tracker wants -------------------------------------------------------------------------------------------------------------


cdef uint8_t change(Walking *w, Level *v, uint32_t l4_at, const Rewrite *rewrite) noexcept nogil:
    """The draft as the tracker wants it. l4_at: where the transport header is in it. R_OK, or why Linux drops it."""
    if not draft_own(&v.draft):
        return R_RULE_ROOM
    if not draft_rewrite(&v.draft, &v.own, l4_at, rewrite):
        return R_RULE_FIELD
    if rewrite.flags & REWRITE_EDIT and not draft_edit(&v.draft, &v.own, l4_at, w.ct.edits.row + rewrite.first_edit, rewrite.n_edits):
        return R_HELPER_REFUSED
    v.in_place = v.parsed = v.keyed = False
    return R_OK


cdef uint8_t settle(Walking *w, Level *v, Packet *p, const Rewrite *rewrite) noexcept nogil:
    """After an action that lets the packet go on."""
    cdef uint32_t l4_at = <uint32_t>(p.l4 - v.draft.data)
    cdef uint8_t reason = R_OK
    draft_trim(&v.draft, p)
    if unlikely(v.origin.whole != NULL):
        origin_joined(&v.origin, p, &v.decision, rewrite)
    if rewrite.flags & CHANGES:
        reason = change(w, v, l4_at, rewrite)
    if unlikely(reason != R_OK):
        return give_up(w, v, reason)
    tell(w, v)
    return R_OK


# --- the flow table ---------------------------------------------------------------------------------------------------------------------


cdef uint8_t serve(Walking *w, Level *v, Packet *p, CtRequest *request) noexcept nogil:
    """Ask the flow table for the packet's connection, which it carries then, and is not tracked. OFFLOAD_SOFTWARE, or why not.

    As in Linux it is asked before anything is forced.
    """
    cdef FlowTable *all = w.trail.flows
    cdef uint8_t why
    cdef uint32_t found
    why = NOT_FRAGMENT if v.origin.whole != NULL else flow_passes(p, v.draft.data + p.l3_off)
    if why != OFFLOAD_NONE:
        return why
    found = flow_find(all, w.ct, &p.key)
    if found == NO_ROW:
        return OFFLOAD_NONE
    why = flow_serve(all, w.ct, p, found)
    if why != OFFLOAD_SOFTWARE:
        return why
    ct_leave(w.ct, &v.carried)
    v.carried.flow = all.row[found >> 1].conn << 1 | (found & 1)
    v.carried.generation = w.ct.pool.entry[all.row[found >> 1].conn].generation
    v.carried.zone, v.carried.state, v.carried.tracked = request.zone, ESTABLISHED, 1
    request.flags &= ~<uint8_t>CT_FORCE
    return OFFLOAD_SOFTWARE


cdef void note(Walking *w, Level *v, const Packet *p, const CtRequest *request, uint8_t served, bint carried) noexcept nogil:
    """After an action: admission, what the record says of it, and whether the next packet of the flow finds all as this one did.

    carried: the packet had its connection already, so that the flow table was not asked.
    """
    cdef Trail *t = &w.trail
    cdef Entry *entry
    cdef uint8_t where = OFFLOAD_NONE
    cdef uint32_t conn = v.carried.flow >> 1
    if v.carried.flow == NO_FLOW or v.carried.error:
        t.lasting = False
        return
    where = OFFLOAD_SOFTWARE if served == OFFLOAD_SOFTWARE else flow_admit(t.flows, w.ct, p, v.carried.flow, v.carried.state)
    entry = &w.ct.pool.entry[conn]
    t.whole = t.whole or w.result.n_hits
    if where != OFFLOAD_SOFTWARE or v.carried.state != ESTABLISHED or not entry.status & ASSURED or (t.n_cts == MOST_CTS and not carried):
        t.lasting = False
    elif not carried:
        t.row[t.n_cts] = t.flows.of[conn] << 1 | (v.carried.flow & 1)
        t.n_cts += 1
    if served != OFFLOAD_NONE and served != OFFLOAD_SOFTWARE and (where == OFFLOAD_SOFTWARE or served >= NOT_TEARDOWN_FIN):
        t.lasting = False
        where = served                          # it is in the table, or was until now, and yet this packet was not served
    v.decision.offload = where
    v.decision.status = entry.status            # with or without OFFLOAD
    v.decision.timeout = ticks_left(w.ct, entry)


# --- after hardware ---------------------------------------------------------------------------------------------------------------------


cdef bint carry_again(Walking *w, Level *v, const Resume *resume) noexcept nogil:
    """The connection that hardware says a packet is of, which it carries from here on: found by its tuple, as it came or translated. False: none is."""
    cdef Engine *ct = w.ct
    cdef Packet *p = writable_packet(w, v)
    cdef Key key = p.key, inverse
    cdef uint32_t flow
    key.zone = resume.zone
    flow = table_find(&ct.table, ct.pool.entry, hash_of(&ct.hash_key, &key), &key)
    if flow == NO_FLOW and invert(&key, &inverse):
        flow = table_find(&ct.table, ct.pool.entry, hash_of(&ct.hash_key, &inverse), &inverse)
        flow = flow ^ 1 if flow != NO_FLOW else <uint32_t>NO_FLOW
    if flow == NO_FLOW or ct.pool.entry[flow >> 1].flow[ORIG].id != resume.conn:
        return False
    v.carried.flow, v.carried.generation = flow, ct.pool.entry[flow >> 1].generation
    v.carried.zone, v.carried.state, v.carried.tracked = resume.zone, resume.state, 1
    v.tracked = True
    p.state, p.key.zone = resume.state, resume.zone
    with_conn(ct, &ct.pool.entry[flow >> 1], p, flow & 1, &v.decision)
    v.decision.offload = OFFLOAD_HARDWARE
    tell(w, v)
    return True


# --- the action -------------------------------------------------------------------------------------------------------------------------


cdef uint8_t track(Walking *w, Level *v, const Ask *ask) noexcept nogil:
    """One action. R_OK: the packet goes on; R_FRAGMENT: it is held; others: it is dropped, for that reason.   Writes: all of v but its verdict."""
    cdef CtRequest request = ask.request
    cdef Rewrite rewrite
    cdef Decision unsaid
    cdef uint8_t served = OFFLOAD_NONE
    cdef bint carried = v.carried.flow != NO_FLOW and v.carried.zone == request.zone
    cdef Packet *p = writable_packet(w, v)
    edits_reset(&w.ct.edits)
    if request.flags & CT_CLEAR:
        # Later rules see that nothing was said. What is recorded of the packet is what was decided before, or nothing at all.
        ct_act(w.ct, p, &request, &v.carried, &unsaid, &rewrite)
        tell(w, v)
        return R_OK
    if not is_ip(v):
        return give_up(w, v, R_NOT_IP)
    w.gathered = max(w.gathered, p.now)
    p.key.zone = request.zone
    if unlikely(p.reason == R_FRAGMENT):
        w.trail.lasting = False
        if not gather(w, v, p):
            return give_up(w, v, R_FRAGMENT)
    v.tracked = True                            # from here on there is a decision
    if unlikely(request.helper) and (ask.helper_family != p.key.family or ask.helper_proto != p.key.proto):
        request.helper = 0                      # Linux gives it to the connection as well, and never asks it (nf_ct_helper)
    if carried and v.decision.offload != OFFLOAD_SOFTWARE and v.decision.offload != NOT_UNCONFIRMED:
        served = v.decision.offload             # what the flow table said when it was asked is true of the packet still
    elif w.trail.flows != NULL and not carried:
        served = serve(w, v, p, &request)
    if not ct_act(w.ct, p, &request, &v.carried, &v.decision, &rewrite):
        w.trail.lasting = False
        return v.decision.reason if likely(v.decision.reason != R_OK) else R_RULE_DROP
    if w.trail.flows != NULL:
        note(w, v, p, &request, served, carried)
    return settle(w, v, p, &rewrite)

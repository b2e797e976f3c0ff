"""The `ct` action of a pipeline: one packet, looked up in a zone, translated and committed as far as the action says.

Theory of operation: between two actions a packet carries a connection (Carried), which need not be confirmed. An action keeps what the packet
carries if it is of the same zone; else the packet goes through the first half of a packet's way (track), in the action's zone. What hooks and rules
decide in the second half of that way an action has to ask for: translation, a helper, and being confirmed at all.
One packet: `ct zone 5 nat` finds nothing and opens a connection, which the packet carries. `ct commit zone 5 nat src addr 192.0.2.1` drops that and
tracks the packet anew, in earnest: what was expected of it is expected no more, its source is bound and translated, the connection confirmed.
A connection that ends by the packet at hand (a RST as the only answer) goes on being carried by it, as in Linux; one that somebody else ends does not.
Invariants (check): a slot that is `own` to a packet is in no table, no count and no free list, and counted by pool.carried; the next action or
ct_leave() gives it back. No Python, no memory but the engine's.
Source: Linux net/sched/act_ct.c, nf_nat_ovs.c. Not here: rules (datapath.pipeline), carrying out a rewrite (datapath.rewrite), the Python side (act_api).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from ctcore.changes cimport put_label, put_mark, say_changes
from ctcore.decision cimport state_of, with_conn, without_conn
from ctcore.helpers.registry cimport give_helper
from ctcore.helpers.sip_nat cimport redirect
from ctcore.lifetime cimport advance_clock, clash, confirm, discard, end_life, kill, taken
from ctcore.nat cimport changed_by, error_fits, nat_bind, plan_error_rewrite
from ctcore.nat_headers cimport header_fits
from ctcore.nat_table cimport NatRule
from ctcore.pool cimport pool_carry
from ctcore.track cimport (
    FOUND_KNOWN, FOUND_NEW, FOUND_NOTHING, FOUND_QUOTED, Finding, find_connection, hash_rows, help_packet, note_reply, reject, replace,
)
from ctcore.tuples cimport invert
from ctcore.types cimport *

# By manip.
cdef uint16_t[2] DONE = [<uint16_t>SRC_NAT_DONE, <uint16_t>DST_NAT_DONE]
cdef uint8_t[2] REWRITTEN = [<uint8_t>REWRITE_SRC, <uint8_t>REWRITE_DST]


# --- what a packet carries ------------------------------------------------------------------------------------------------------------------


cdef void carry_nothing(Carried *a) noexcept nogil:
    memset(a, 0, sizeof(Carried))
    a.flow = NO_FLOW


cdef inline bint is_there(const Engine *ct, const Carried *a) noexcept nogil:
    """Is the connection still what it was, and its slot its own? What another packet has ended may be carried by that one, and by no other."""
    cdef const Entry *entry = &ct.pool.entry[a.flow >> 1]
    return entry.generation == a.generation and (a.own or entry.live)


cdef void ct_leave(Engine *ct, Carried *a) noexcept nogil:
    """The packet lets go of its connection, which comes to nothing if nobody else knows it."""
    if a.flow != NO_FLOW and a.own and is_there(ct, a):
        ct.pool.carried -= 1
        discard(ct, a.flow >> 1)
    carry_nothing(a)


cdef inline void carry(Engine *ct, Carried *a, uint32_t flow, uint8_t state) noexcept nogil:
    a.flow = flow
    a.generation = ct.pool.entry[flow >> 1].generation
    a.state = state


cdef inline void carry_alone(Engine *ct, Carried *a) noexcept nogil:
    """The connection that is carried is not in the table: not yet, or not any more."""
    pool_carry(&ct.pool, a.flow >> 1)
    a.own = 1


cdef inline bint is_confirmed(const Engine *ct, const Carried *a) noexcept nogil:
    return (ct.pool.entry[a.flow >> 1].status & CONFIRMED) != 0


cdef bint keeps(Engine *ct, const CtRequest *r, const Carried *a) noexcept nogil:
    """Whether the packet goes on with what it carries. Source: tcf_ct_skb_nfct_cached."""
    cdef uint8_t helper
    if a.flow == NO_FLOW or a.zone != r.zone or not is_there(ct, a):
        return False
    helper = <uint8_t>(ct.pool.entry[a.flow >> 1].extension >> EXTENSION_BITS)
    if r.helper and helper and helper != r.helper:
        return False
    if r.flags & CT_FORCE and a.flow & 1 == REPLY:
        if not a.own:
            kill(ct, a.flow >> 1, END_REPLACED, ct.now)
        return False
    # What was tracked to see what it is, is tracked for good now.
    return is_confirmed(ct, a) or not r.flags & (CT_COMMIT | CT_NAT)


# --- the first half -------------------------------------------------------------------------------------------------------------------------


cdef bint track_anew(Engine *ct, Packet *p, const CtRequest *r, Carried *a, Decision *d) noexcept nogil:
    """Look the packet up in the action's zone.   Writes: a; d if it has no connection: then False."""
    cdef uint32_t flow = NO_FLOW
    cdef Entry *entry
    cdef Finding found
    hash_rows(ct, p, 1)
    p.flow = NO_FLOW
    found = find_connection(ct, p, (r.flags & CT_COMMIT) != 0, &flow, d)
    a.tracked = 1
    a.zone = r.zone
    if found == FOUND_NOTHING:
        return False
    entry = &ct.pool.entry[flow >> 1]
    p.verdict = ACCEPT
    if found == FOUND_QUOTED:
        p.state = RELATED
        a.error = 1
    elif found == FOUND_NEW:
        p.state = state_of(entry, ORIG)
        if ct.nat.rule != NULL:
            ct.nat.link[flow >> 1].rule[MANIP_SRC] = ct.nat.link[flow >> 1].rule[MANIP_DST] = 0
    carry(ct, a, flow, p.state)
    if found == FOUND_NEW:
        carry_alone(ct, a)
    elif found == FOUND_KNOWN:
        if entry.status & DYING:
            end_life(ct, flow >> 1, END_RESET, ct.now)
            carry_alone(ct, a)
        note_reply(ct, entry, flow & 1)
    return True


# --- translation ----------------------------------------------------------------------------------------------------------------------------


cdef int first_manip(const Engine *ct, const CtRequest *r, const Carried *a) noexcept nogil:
    """Which half the action is about: that of the mapping there is, or else the one that its rule names; -1: neither. Source: nf_ct_nat.

    As in Linux, what is related in the original direction is translated like others of its connection only when it is committed.
    """
    cdef const Entry *entry = &ct.pool.entry[a.flow >> 1]
    cdef int dir = a.flow & 1
    cdef bint announced = a.state == RELATED and dir == ORIG
    if a.state != NEW and entry.status & (SRC_NAT | DST_NAT) and (not announced or r.flags & CT_COMMIT):
        return MANIP_SRC if ((entry.status & SRC_NAT) != 0) == (dir == ORIG) else MANIP_DST
    return ct.nat.rule[r.rule - 1].manip if r.rule else -1


cdef void bind(Engine *ct, uint32_t conn, int manip, uint32_t rule) noexcept nogil:
    """A mapping is made once, while nobody has seen any packet of the connection leave. A rule without addresses for it makes a null binding."""
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef const NatRule *chosen = &ct.nat.rule[rule - 1] if rule else NULL
    cdef uint32_t victim
    if entry.status & (CONFIRMED | DONE[manip]):
        return
    if chosen != NULL and (not chosen.range.flags & RANGE_ADDRESSES or chosen.family != entry.flow[ORIG].key.family):
        rule = 0
    victim = nat_bind(ct, conn, manip, rule)
    if victim != NO_CONN:
        replace(ct, victim, conn)


cdef bint translate(Engine *ct, Packet *p, const CtRequest *r, const Carried *a) noexcept nogil:
    """Bind a new connection, and translate the packet as its connection is. False with a reason if it cannot be.   Writes: ct.rewrite."""
    cdef uint32_t conn = a.flow >> 1
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef int dir = a.flow & 1
    cdef int manip = first_manip(ct, r, a)
    cdef uint8_t halves
    if manip < 0:
        return True
    halves = REWRITTEN[manip]
    bind(ct, conn, manip, r.rule)
    if entry.status & DST_NAT:
        if entry.status & SRC_NAT:
            halves = REWRITE_SRC | REWRITE_DST
            bind(ct, conn, 1 - manip, r.rule)
        elif dir == ORIG:       # so that the source's port may change if its tuple is taken
            halves |= REWRITE_SRC
            bind(ct, conn, MANIP_SRC, 0)
    halves &= changed_by(entry, dir)
    if a.error:
        if not error_fits(entry, p, halves):
            p.reason = R_NAT_ICMP
            return False
        plan_error_rewrite(ct, entry, dir, halves)
        return True
    if halves and not header_fits(p, halves):
        p.reason = R_NAT_GRE
        return False
    if not entry.status & CONFIRMED and taken(ct, entry, REPLY):
        p.reason = clash(ct, conn)
        return False
    ct.rewrite.flags |= halves
    return True


# --- the rest of the second half ------------------------------------------------------------------------------------------------------------


cdef void assign(Engine *ct, const CtRequest *r, const Carried *a) noexcept nogil:
    """A connection that is about to be confirmed gets a helper, if it has none from what announced it."""
    cdef Entry *entry = &ct.pool.entry[a.flow >> 1]
    if r.flags & CT_COMMIT and r.helper and not entry.status & CONFIRMED and not entry.cold & COLD_EXTENSION:
        if give_helper(ct, a.flow >> 1, r.helper):
            entry.status |= HELPER


cdef inline bint is_read(const CtRequest *r, const Entry *entry, bint anew) noexcept nogil:
    """Once for each time that a packet is tracked, and only where something may come of it."""
    if not entry.cold & COLD_EXTENSION:
        return False
    return anew if entry.status & CONFIRMED else <bint>(r.flags & CT_COMMIT)


cdef bint help(Engine *ct, Packet *p, const CtRequest *r, const Carried *a, bint anew) noexcept nogil:
    """Let a helper look at the packet; an ICMP error is none that it knows. False with a reason if it refuses it."""
    cdef Entry *entry = &ct.pool.entry[a.flow >> 1]
    cdef Key leaving
    assign(ct, r, a)
    if a.error or not is_read(r, entry, anew):
        return True
    help_packet(ct, a.flow >> 1, p, a.flow & 1)
    # Where a packet goes that a phone wants elsewhere is its helper's say, be it translated or not.
    leaving = ct.rewrite.to
    if not ct.rewrite.flags & (REWRITE_SRC | REWRITE_DST):
        ct.rewrite.to = p.key
    redirect(ct, entry, a.flow & 1)
    if not ct.rewrite.flags & REWRITE_DST:
        ct.rewrite.to = leaving
    return p.verdict != DROP


cdef bint commit(Engine *ct, Packet *p, const CtRequest *r, Carried *a) noexcept nogil:
    """Mark and label, of a connection that is confirmed already, too; then it counts. False with a reason if it cannot."""
    cdef uint32_t conn = a.flow >> 1
    cdef Entry *entry = &ct.pool.entry[conn]
    if r.flags & CT_MARK:
        put_mark(ct, entry, r.mark, r.mark_mask)
    if r.flags & CT_LABEL:
        put_label(ct, entry, r.label, r.label_mask)
    if entry.status & CONFIRMED:
        return True
    if not confirm(ct, conn, p):
        return False
    ct.pool.carried -= 1
    a.own = 0
    ct.changes = 0              # they are in the event that tells of its birth
    return True


cdef inline bint stays(Engine *ct, Packet *p, const Carried *a) noexcept nogil:
    """May the packet carry its connection on, if nobody else knows it? Not if too many are carried already."""
    if not a.own or ct.pool.carried <= MOST_CARRIED:
        return True
    ct.count.drop += 1
    p.reason = R_TABLE_FULL
    return False


cdef bint carry_out(Engine *ct, Packet *p, const CtRequest *r, Carried *a, bint anew) noexcept nogil:
    """All that is asked of a connection. False with a reason if the packet is dropped for it.   anew: it has been tracked by this action."""
    if r.flags & CT_NAT and not translate(ct, p, r, a):
        return False
    invert(&ct.pool.entry[a.flow >> 1].flow[1 - (a.flow & 1)].key, &ct.rewrite.to)
    if not help(ct, p, r, a, anew):
        return False
    if r.flags & CT_COMMIT and not commit(ct, p, r, a):
        return False
    return stays(ct, p, a)


cdef bint decide(Engine *ct, Packet *p, bint passed, Carried *a, Decision *d) noexcept nogil:
    """What is said of a packet with a connection, whose changes are told; and if it is dropped it carries nothing any more."""
    cdef Entry *entry = &ct.pool.entry[a.flow >> 1]
    cdef bint confirmed = is_confirmed(ct, a)
    if not passed:
        ct.rewrite.flags = 0
        p.verdict = DROP
    if ct.changes and entry.live:
        say_changes(ct, entry)
    if passed or confirmed:
        with_conn(ct, entry, p, a.flow & 1, d)
        d.conn = d.conn if confirmed else -1
    else:
        reject(ct, p, NOT_SEEN, DROP, NO_L4STATE, d)
    if not passed:
        ct_leave(ct, a)
    return passed


cdef bint act(Engine *ct, Packet *p, const CtRequest *r, Carried *a, Decision *d) noexcept nogil:
    """ct_act(), with a packet that may be written to, and the engine's notes on it empty."""
    cdef bint anew
    if r.flags & CT_CLEAR:
        ct_leave(ct, a)
        p.state, p.verdict, p.reason = NOT_SEEN, ACCEPT, R_OK
        without_conn(p, NO_L4STATE, d)
        return True
    if p.verdict != PENDING:    # parse() was sure; what conntrack does not see is nothing for `ct`
        ct_leave(ct, a)
        if p.state == NOT_SEEN:
            reject(ct, p, NOT_SEEN, DROP, NO_L4STATE, d)
            return False
    anew = not keeps(ct, r, a)
    if anew:
        ct_leave(ct, a)
        if not track_anew(ct, p, r, a, d):
            if d.verdict == DROP:
                carry_nothing(a)
            return d.verdict != DROP
    else:
        p.state, p.verdict, p.reason = a.state, ACCEPT, R_OK
    return decide(ct, p, carry_out(ct, p, r, a, anew), a, d)


cdef bint ct_act(Engine *ct, Packet *p, const CtRequest *r, Carried *a, Decision *d, Rewrite *rewrite) noexcept nogil:
    """One action.   Reads: the packet as parse() has left it.   Writes: its key's zone, which is the action's then; a, d; the engine.

    rewrite: what of the frame is to be changed because of this action, before anything looks at it again; a helper's edits are added to ct.edits,
    which whoever begins a batch empties. False: the packet is dropped, and carries nothing any more; d says why.
    A caller may come with the same packet again, parsed anew if it was changed. What `a` holds is believed: it is of this packet and this tracker.
    """
    cdef Packet own
    cdef bint passed
    p.key.zone = r.zone
    own = p[0]
    memset(rewrite, 0, sizeof(Rewrite))
    advance_clock(ct, p.now)
    ct.rewrite = rewrite
    ct.changes = 0
    passed = act(ct, &own, r, a, d)
    ct.rewrite = NULL
    return passed

"""PPTP (RFC 2637): a call that is set up over TCP, and the GRE tunnel that it announces.

Theory of operation: each end of a call has an id, and a GRE packet carries the id of the end it goes to. So the two directions of a tunnel have
nothing in common by which to know that they belong together, until the call's set-up names both ids: from then on GRE packets of either
direction get the other id as their source key (name_tunnel), and are one connection. The opener of the control connection is taken for the client
(PNS). Under address translation the client's id becomes its port as seen from outside: several clients may have chosen the same id.
Invariant: a tunnel is in its chain if and only if `known` of its control connection's extension says so.
Not here: the death of the tunnel's connection, which is the tracker's (hang_up).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from ctcore.engine cimport Engine
from ctcore.expectations cimport ANNOUNCED, Expectation, FOLLOW_PPTP, expect_match, expect_remove, expect_same
from ctcore.extensions cimport Extension, Extensions, PptpMemory
from ctcore.hashing cimport hash_of
from ctcore.helpers.helper cimport KIND_DEFAULT, Aid, announce, draft_new, translated
from ctcore.helpers.payload_nat cimport Line, add_byte, edit, set_half
from ctcore.helpers.text cimport Text
from ctcore.lowlevel cimport be16, be32, mul_fold
from ctcore.table cimport table_find
from ctcore.tuples cimport invert
from ctcore.types cimport *

cdef enum:
    MAGIC = 0x1A2B3C4D
    CONTROL = 1                 # packet type
    HEADERS = 12                # length, packet type, magic cookie, message type, reserved
    N_MESSAGES = 16
    START_REQUEST = 1
    START_REPLY = 2
    STOP_REQUEST = 3
    STOP_REPLY = 4
    ECHO_REQUEST = 5
    ECHO_REPLY = 6
    OUT_REQUEST = 7
    OUT_REPLY = 8
    IN_REQUEST = 9
    IN_REPLY = 10
    IN_CONNECTED = 11
    CLEAR_REQUEST = 12
    DISCONNECT = 13
    WAN_ERROR = 14
    SET_LINK = 15
    GOOD = 1                    # any message's result code

# Of a session, in an order that comparisons rely on.
cdef enum:
    SESSION_NONE
    SESSION_ERROR
    SESSION_STOPPING
    SESSION_REQUESTED
    SESSION_CONFIRMED

cdef enum:
    CALL_NONE
    CALL_OUT_ASKED
    CALL_OUT
    CALL_IN_ASKED
    CALL_IN_ANSWERED
    CALL_IN
    CALL_CLEARING

# Bytes of each message behind the headers; shorter ones are not looked at.
cdef uint32_t[N_MESSAGES] SIZE = [0, 144, 144, 4, 4, 0, 0, 156, 20, 208, 12, 16, 4, 136, 28, 12]


# --- tunnels ------------------------------------------------------------------------------------------------------------------------------


cdef inline uint32_t *chain_of(const Extensions *all, const Key *tunnel) noexcept nogil:
    return &all.tunnel[mul_fold(tunnel.src[0] ^ tunnel.dport, tunnel.dst[0] ^ all.secret) & (all.n_tunnels - 1)]


cdef inline bint same_tunnel(const Key *a, const Key *b) noexcept nogil:
    """As it arrives: the source key is what is not known yet. Zones are not looked at, as in Linux."""
    return a.src[0] == b.src[0] and a.dst[0] == b.dst[0] and a.dport == b.dport and a.family == b.family


cdef uint32_t find_tunnel(const Extensions *all, const Key *key) noexcept nogil:
    """The oldest one's number in its chain, 2 * row + direction, or 0."""
    cdef uint32_t node = chain_of(all, key)[0], found = 0
    while node:
        if same_tunnel(&all.row[node >> 1].memory.pptp.tunnel[node & 1], key):
            found = node
        node = all.row[node >> 1].memory.pptp.next[node & 1]
    return found


cdef void name_tunnel(Engine *ct, Packet *p) noexcept nogil:
    """A GRE packet that carries a call id gets the other end's as its source key.   Writes: key, hash, flow."""
    cdef uint32_t node
    if p.key.family != 4 or p.l4_have < 8 or (p.l4[1] & 7) != 1:
        return
    node = find_tunnel(&ct.ext, &p.key)
    if node:
        p.key.sport = ct.ext.row[node >> 1].memory.pptp.tunnel[node & 1].sport
        p.hash = hash_of(&ct.hash_key, &p.key)
        p.flow = NO_FLOW


cdef void name_quoted(const Engine *ct, Key *key) noexcept nogil:
    """The same of GRE that an ICMP error quotes. Without a call id, its key is 0.   Reads and writes: key."""
    cdef uint32_t node = find_tunnel(&ct.ext, key) if key.family == 4 and key.dport else 0
    if node:
        key.sport = ct.ext.row[node >> 1].memory.pptp.tunnel[node & 1].sport


cdef bint know_tunnel(Engine *ct, uint32_t row, int dir, const Key *key) noexcept nogil:
    """Remember a tunnel's direction. False if the call has had another one: until it is over there is one only."""
    cdef PptpMemory *m = &ct.ext.row[row].memory.pptp
    cdef uint32_t *head = chain_of(&ct.ext, key)
    if m.known[dir]:
        return same_tunnel(&m.tunnel[dir], key)
    m.tunnel[dir] = key[0]
    m.next[dir] = head[0]
    head[0] = 2 * row + <uint32_t>dir
    m.known[dir] = 1
    ct.ext.tunnels += 1
    return True


cdef void forget_tunnels(Engine *ct, Extension *ext) noexcept nogil:
    cdef PptpMemory *m = &ext.memory.pptp
    cdef uint32_t row = <uint32_t>(ext - ct.ext.row)
    cdef uint32_t *link
    cdef int dir
    for dir in range(2):
        if not m.known[dir]:
            continue
        link = chain_of(&ct.ext, &m.tunnel[dir])
        while link[0] != 2 * row + <uint32_t>dir:
            link = &ct.ext.row[link[0] >> 1].memory.pptp.next[link[0] & 1]
        link[0] = m.next[dir]
        m.known[dir] = 0
        ct.ext.tunnels -= 1


cdef void tunnel_ended(Engine *ct, const Entry *entry) noexcept nogil:
    """A GRE connection that was expected dies: its master's call has no tunnel any more."""
    cdef uint32_t node = find_tunnel(&ct.ext, &entry.flow[ORIG].key)
    if node and ct.ext.row[node >> 1].master == entry.master:
        forget_tunnels(ct, &ct.ext.row[node >> 1])


cdef uint32_t take_tunnel(Engine *ct, const Entry *control, const Extension *ext, int dir) noexcept nogil:
    """The flow of a call's tunnel in one direction, for the tracker to end it; NO_FLOW if there is none: then what is expected of it goes."""
    cdef Key key = control.flow[dir].key
    cdef uint32_t flow, row
    key.proto = PROTO_GRE
    key.sport = ext.memory.pptp.pns if dir == ORIG else ext.memory.pptp.pac
    key.dport = ext.memory.pptp.pac if dir == ORIG else ext.memory.pptp.pns
    flow = table_find(&ct.table, ct.pool.entry, hash_of(&ct.hash_key, &key), &key)
    if flow == NO_FLOW and ct.expect.count:
        row = expect_match(&ct.expect, &key)
        if row != NO_CONN:
            expect_remove(&ct.expect, row)
    return flow


cdef void follow_pptp(Engine *ct, Entry *child, const Expectation *expected, bint take) noexcept nogil:
    """The tunnel has begun, from one end: from the other it is not expected any more. Then it is translated as its master is, ids and all.

    take: whether it has begun in earnest.
    """
    cdef const Entry *master = &ct.pool.entry[expected.master_conn]
    cdef const PptpMemory *m = &ct.ext.row[expected.owner].memory.pptp
    cdef const Key *back = &master.flow[1 - expected.dir].key
    cdef bint moved = (master.status & (SRC_NAT | DST_NAT)) != 0
    cdef Key other = back[0]
    cdef uint32_t row
    if not moved:
        invert(&expected.key, &other)
    elif expected.dir == ORIG:
        other.sport, other.dport = m.pac, m.pns
    else:
        other.sport, other.dport = m.own_pns, m.own_pac
    other.proto = PROTO_GRE
    row = expect_match(&ct.expect, &other) if take else <uint32_t>NO_CONN
    if row != NO_CONN:
        expect_remove(&ct.expect, row)
    if moved and ct.nat.rule != NULL:
        set_half(ct, child, MANIP_SRC, back.dst, expected.saved_port if expected.dir == ORIG else -1)
        set_half(ct, child, MANIP_DST, back.src, expected.saved_port if expected.dir == REPLY else -1)


# --- calls --------------------------------------------------------------------------------------------------------------------------------


cdef void draft_tunnel(Aid *aid, Expectation *draft, int dir, uint16_t sport, uint16_t dport) noexcept nogil:
    cdef const Key *key = &aid.entry.flow[dir].key
    draft_new(aid, draft, KIND_DEFAULT, PROTO_GRE)
    memcpy(draft.key.src, key.src, 16)
    memcpy(draft.key.dst, key.dst, 16)
    draft.key.sport = sport
    draft.key.dport = dport
    draft.any_sport = 0
    draft.dir = <uint8_t>dir
    draft.follow = FOLLOW_PPTP


cdef void expect_tunnel(Aid *aid, uint16_t pac, uint16_t pns) noexcept nogil:
    """A call stands: GRE is expected from either end. All of it or nothing."""
    cdef PptpMemory *m = &aid.ext.memory.pptp
    cdef uint32_t row = <uint32_t>(aid.ext - aid.ct.ext.row)
    cdef Expectation out, back
    draft_tunnel(aid, &out, ORIG, pns, pac)
    draft_tunnel(aid, &back, REPLY, pac, pns)
    if translated(aid):
        m.own_pac = m.pac
        out.saved_port = m.pns
        out.key.sport, out.key.dport = m.own_pns, m.pac
        back.saved_port = m.own_pns
        back.key.sport, back.key.dport = m.own_pac, m.pns
    if announce(aid, &out) != ANNOUNCED:
        return
    if announce(aid, &back) == ANNOUNCED:
        if know_tunnel(aid.ct, row, ORIG, &out.key):
            if know_tunnel(aid.ct, row, REPLY, &back.key):
                return
            forget_tunnels(aid.ct, aid.ext)
        expect_remove(&aid.ct.expect, expect_same(&aid.ct.expect, &back))
    expect_remove(&aid.ct.expect, expect_same(&aid.ct.expect, &out))


cdef bint from_server(Aid *aid, int message, const uint8_t *body) noexcept nogil:
    """What the server's messages mean. False if one makes no sense here."""
    cdef PptpMemory *m = &aid.ext.memory.pptp
    if message == START_REPLY:
        if m.session < SESSION_REQUESTED:
            return False
        m.session = SESSION_CONFIRMED if body[2] == GOOD else SESSION_ERROR
    elif message == STOP_REPLY:
        if m.session > SESSION_STOPPING:
            return False
        m.session = SESSION_NONE if body[0] == GOOD else SESSION_ERROR
    elif message == OUT_REPLY:
        if m.session != SESSION_CONFIRMED or (m.call != CALL_OUT_ASKED and m.call != CALL_OUT) or m.pns != be16(body + 2):
            return False
        m.call = CALL_OUT if body[4] == GOOD else CALL_NONE
        if m.call == CALL_OUT:
            m.pac = be16(body)
            expect_tunnel(aid, m.pac, m.pns)
    elif message == IN_REQUEST:
        if m.session != SESSION_CONFIRMED:
            return False
        m.call = CALL_IN_ASKED
        m.pac = be16(body)
    elif message == IN_CONNECTED:
        if m.session != SESSION_CONFIRMED or (m.call != CALL_IN_ANSWERED and m.call != CALL_IN) or m.pns != be16(body):
            return False
        m.call = CALL_IN
        expect_tunnel(aid, m.pac, m.pns)
    elif message == DISCONNECT:
        m.call = CALL_NONE
        m.hang_up = 1
    return message in (START_REPLY, STOP_REPLY, OUT_REPLY, IN_REQUEST, IN_CONNECTED, DISCONNECT, WAN_ERROR, ECHO_REQUEST, ECHO_REPLY)


cdef bint from_client(Aid *aid, int message, const uint8_t *body) noexcept nogil:
    """The same of the client's."""
    cdef PptpMemory *m = &aid.ext.memory.pptp
    if message == START_REQUEST:
        if m.session != SESSION_NONE:
            return False
        m.session = SESSION_REQUESTED
    elif message == STOP_REQUEST:
        m.session = SESSION_STOPPING
    elif message == OUT_REQUEST:
        if m.session != SESSION_CONFIRMED:
            return False
        m.call = CALL_OUT_ASKED
        m.pns = be16(body)
    elif message == IN_REPLY:
        if (m.call != CALL_IN_ASKED and m.call != CALL_IN_ANSWERED) or m.pac != be16(body + 2):
            return False
        m.call = CALL_IN_ANSWERED if body[4] == GOOD else CALL_NONE
        if m.call == CALL_IN_ANSWERED:
            m.pns = be16(body)
    elif message == CLEAR_REQUEST:
        if m.session != SESSION_CONFIRMED:
            return False
        m.call = CALL_CLEARING
    return message in (START_REQUEST, STOP_REQUEST, OUT_REQUEST, IN_REPLY, CLEAR_REQUEST, SET_LINK, ECHO_REQUEST, ECHO_REPLY)


cdef uint8_t rewrite_id(Aid *aid, int at, uint16_t value) noexcept nogil:
    """The call id at a place behind the headers."""
    cdef Line line
    line.size = 0
    add_byte(&line, <uint8_t>(value >> 8))
    add_byte(&line, <uint8_t>value)
    return R_OK if edit(aid, <uint32_t>(HEADERS + at), 2, &line) else R_HELPER_REFUSED


cdef uint8_t translate_ids(Aid *aid, int message) noexcept nogil:
    """The client's id is another one outside: what names it is changed."""
    cdef PptpMemory *m = &aid.ext.memory.pptp
    if aid.dir == REPLY:
        if message == OUT_REPLY:
            return rewrite_id(aid, 2, m.own_pns)
        if message == IN_CONNECTED or message == WAN_ERROR or message == DISCONNECT:
            return rewrite_id(aid, 0, m.own_pns)
        return R_OK
    if message == OUT_REQUEST:
        m.own_pns = m.pns
        m.pns = aid.entry.flow[REPLY].key.dport
    if message == OUT_REQUEST or message == IN_REPLY or message == CLEAR_REQUEST:
        return rewrite_id(aid, 0, m.pns)
    return R_OK


cdef uint8_t pptp(Aid *aid) noexcept nogil:
    """One packet.   Writes: the extension's memory, expectations, tunnels, edits."""
    cdef const Text *t = &aid.payload
    cdef uint32_t message
    cdef bint sensible
    if aid.state != ESTABLISHED or t.size < HEADERS or be16(t.at + 2) != CONTROL or be32(t.at + 4) != MAGIC:
        return R_OK
    message = be16(t.at + 8)
    if message == 0 or message >= N_MESSAGES or t.size - HEADERS < SIZE[message]:
        return R_OK
    sensible = from_client(aid, message, t.at + HEADERS) if aid.dir == ORIG else from_server(aid, message, t.at + HEADERS)
    return translate_ids(aid, message) if sensible and translated(aid) else R_OK

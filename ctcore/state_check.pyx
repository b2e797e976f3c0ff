"""What a saved state must be like to be taken up: each field of each part, before anything is made of it.

Theory of operation: whoever wrote it is a stranger. Lengths first, then the checksum, then the parts that have a fixed size; connections are checked
one by one while they are entered (state_restore), since most of what could be wrong among them is that two have one tuple.
Invariant: nothing that passes can lead the engine outside of its memory: numbers that index something are below its length, tuples are of a family.
Not here: what is entered where.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from ctcore.errors import StateError
from ctcore.expectations cimport FOLLOW_PPTP, FOLLOW_SIP
from ctcore.helpers.helper cimport HELPER_FTP, HELPER_PPTP, N_HELPERS, N_KINDS, NO_HELPER
from ctcore.state cimport MOST_OWNED, STATE_VERSION, TRANSLATES, StateConn, StateExpect, StateHeader, StateHelp, state_sum
from ctcore.types cimport *

cdef enum:
    LONGEST_LIFE = 0x7FFFFFFF   # ticks
    FAR = 62                    # bits of a time (ns) and of an ordinal, with room for what is to come
    LARGEST_SCALE = 14          # RFC 7323 2.3
    # Of a PPTP session and call (helpers.pptp)
    MOST_SESSION = 4
    MOST_CALL = 6
    ALL_STATUS = (
        EXPECTED | SEEN_REPLY | ASSURED | CONFIRMED | SRC_NAT | DST_NAT | SEQ_ADJUST | SRC_NAT_DONE | DST_NAT_DONE | FIXED_TIMEOUT | NAT_CLASH
        | HELPER
    )

cdef tuple FAULTS = (
    "", "cut off", "family: expected 4 or 6, and an address of that", "protocol: expected one in both directions",
    "zone: expected as the direction of zones has it", "ordinal: expected them in order, below the next one", "master: expected an earlier ordinal",
    "status: expected that of a confirmed connection", "timeout: expected 0 to 2147483647 ticks", "TCP: expected a state, and what it allows",
    "SCTP: expected a state, and what it allows", "translated: expected a tracker that translates", "NAT rule: expected one of the state's",
    "flag: expected 0 or 1", "helper: expected a tracker with helpers, and a memory for each connection that has one", "helper: expected a known one",
    "helper's memory: expected what a helper writes", "tunnel: expected GRE over IPv4", "connection: expected one of the state's, in order",
    "expectation: expected a known kind", "owner: expected a connection with a helper, and few of it", "its tuple is another one's",
    "no room in the table", "no room beside the places that are reserved",
)


cdef str fault_text(Fault fault):
    return FAULTS[<int>fault]


cdef object refuse(str where, str what):
    """An exception to be raised."""
    return StateError(f"state: {where}: {what}" if where else f"state: {what}")


# --- as a whole -------------------------------------------------------------------------------------------------------------------------


cdef int state_open(const Engine *ct, object memory, Parts *parts) except -1:
    """Where the parts lie. Raises StateError if it is none, damaged, or of a tracker that counts otherwise. memory: contiguous bytes, 8-aligned."""
    cdef const uint8_t[::1] view = memory
    cdef uint64_t size = <uint64_t>view.shape[0], fixed, sum
    cdef const StateHeader *h
    if size < sizeof(StateHeader):
        raise refuse("", f"{size} bytes: expected {sizeof(StateHeader)} at least")
    h = <const StateHeader *>&view[0]
    if memcmp(h.magic, b"ctmstate", 8) != 0:
        raise refuse("", "does not begin as a saved state does")
    if h.version != STATE_VERSION:
        raise refuse("", f"version {h.version}: expected {STATE_VERSION}")
    if h.size != size or size % 8:
        raise refuse("", f"{size} bytes: expected {h.size}, as it says itself")
    with nogil:
        sum = state_sum(h, <const uint64_t *>(h + 1), (size - sizeof(StateHeader)) // 8)
    if sum != h.checksum:
        raise refuse("", f"damaged: checksum {sum:016x}: expected {h.checksum:016x}")
    fixed = sizeof(StateHeader) + h.helped * sizeof(StateHelp) + h.expected * sizeof(StateExpect) + <uint64_t>h.rules * 8
    if fixed + <uint64_t>h.conns * 8 > size:
        raise refuse("", f"{size} bytes: expected more for {h.conns} connections, {h.helped} with a helper, {h.expected} expectations")
    parts.header = h
    parts.conns = <const uint64_t *>(h + 1)
    parts.end = <const uint64_t *>(<const char *>h + (size - (fixed - sizeof(StateHeader))))
    parts.helped = <const StateHelp *>parts.end
    parts.expected = <const StateExpect *>(parts.helped + h.helped)
    parts.rules = <const uint64_t *>(parts.expected + h.expected)
    fits(ct, h)
    return 0


cdef int fits(const Engine *ct, const StateHeader *h) except -1:
    """Raises StateError if the tracker's settings are no place for it."""
    cdef uint32_t hz = <uint32_t>(1_000_000_000 // ct.set.tick_ns)
    if h.hz != hz:
        raise refuse("hz", f"{h.hz}: expected {hz}, as this tracker has it")
    if h.zone_dirs != ct.zones.dirs:
        raise refuse("zone_dir", "another one: expected as this tracker has it")
    if h.conns > ct.set.max and ct.set.share_count == 1:    # of a share, only some will be entered
        raise refuse("", f"{h.conns} connections: expected {ct.set.max} at most (max)")
    if h.helped > ct.ext.most:
        raise refuse("", f"{h.helped} connections with a helper: expected {ct.ext.most} at most (helper_max, 0 without helpers)")
    if h.expected > ct.expect.size:
        raise refuse("", f"{h.expected} expectations: expected {ct.expect.size} at most (expect_max)")
    if <uint64_t>h.now >> FAR or <uint64_t>h.next_id >> FAR or h.flags & ~<uint32_t>TRANSLATES:
        raise refuse("header", "expected a time and an ordinal that are far from overflowing")
    return 0


cdef int state_empty(const Engine *ct) except -1:
    """Raises StateError if there is anything in the tracker."""
    if ct.live or ct.pool.carried or ct.expect.count or ct.ext.count:
        raise refuse("", f"{ct.live} connections are in the table: expected an empty one")
    return 0


cdef int state_tables(const Engine *ct, const Parts *parts) except -1:
    """Check helpers' memories and expectations. Raises StateError."""
    cdef uint32_t i
    cdef Fault fault
    for i in range(parts.header.helped):
        fault = check_help(&parts.helped[i], parts.header.conns, NO_CONN if i == 0 else parts.helped[i - 1].conn)
        if fault != FINE:
            raise refuse(f"connection {parts.helped[i].conn}", fault_text(fault))
    for i in range(parts.header.expected):
        fault = check_expect(ct, parts, &parts.expected[i])
        if fault != FINE:
            raise refuse(f"expectation {i}", fault_text(fault))
    return 0


# --- parts ------------------------------------------------------------------------------------------------------------------------------


cdef inline bint is_address(const uint64_t *words, uint8_t family) noexcept nogil:
    return family == 6 or (words[1] == 0 and words[0] >> 32 == 0)


cdef inline bint is_key(const Key *key) noexcept nogil:
    return (key.family == 4 or key.family == 6) and is_address(key.src, key.family) and is_address(key.dst, key.family)


cdef inline Fault check_keys(const Engine *ct, const StateConn *c) noexcept nogil:
    cdef const Key *orig = &c.key[ORIG]
    cdef const Key *reply = &c.key[REPLY]
    if not is_key(orig) or not is_key(reply) or orig.family != reply.family:
        return F_FAMILY
    if orig.proto != reply.proto:
        return F_PROTO
    if ct.zones.split:
        return FINE if (reply if ct.zones.dirs == 1 << ORIG else orig).zone == 0 else F_ZONE
    return FINE if orig.zone == reply.zone else F_ZONE


cdef inline Fault check_tcp(const Tcp *t) noexcept nogil:
    if t.state < SYN_SENT or t.state >= N_TCP_STATES or t.last_index >= N_TCP_INDEXES or t.last_dir > REPLY:
        return F_TCP
    return F_TCP if t.scale[0] > LARGEST_SCALE or t.scale[1] > LARGEST_SCALE or t.last_wscale > LARGEST_SCALE else FINE


cdef inline Fault check_sctp(const Sctp *s) noexcept nogil:
    return F_SCTP if s.state == SCTP_NONE or s.state >= N_SCTP_STATES or s.last_dir > REPLY or s.init[0] > 1 or s.init[1] > 1 else FINE


cdef Fault check_conn(const Engine *ct, const StateHeader *header, const StateConn *c, int64_t last, bint helped) noexcept nogil:
    """A connection, its keys whole. last: the ordinal before it; helped: whether it has a helper's memory."""
    cdef Fault fault = check_keys(ct, c)
    cdef uint8_t proto = c.key[ORIG].proto
    if fault != FINE:
        return fault
    if c.id <= last or c.id >= header.next_id:
        return F_ORDINAL
    if c.master < 0 or c.master > header.next_id:
        return F_MASTER
    if c.status & ~<uint16_t>ALL_STATUS or not c.status & CONFIRMED:
        return F_STATUS
    if c.status & SEQ_ADJUST and not helped:
        return F_NO_HELPER
    if c.status & (SRC_NAT | DST_NAT) and ct.nat.rule == NULL:
        return F_NAT
    if c.rule[0] > header.rules or c.rule[1] > header.rules:
        return F_RULE
    if c.expects != 0 and c.expects != COLD_MASTER:
        return F_FLAG
    return check_tcp(&c.l4.tcp) if proto == PROTO_TCP else check_sctp(&c.l4.sctp) if proto == PROTO_SCTP else FINE


cdef Fault check_help(const StateHelp *h, uint32_t conns, uint32_t last) noexcept nogil:
    cdef int dir
    if h.conn >= conns or (last != NO_CONN and h.conn <= last):
        return F_CONN
    if h.helper == NO_HELPER or h.helper >= N_HELPERS:
        return F_HELPER
    if h.helper == HELPER_FTP:
        return F_MEMORY if h.memory.ftp.known[0] > 2 or h.memory.ftp.known[1] > 2 else FINE
    if h.helper != HELPER_PPTP:
        return FINE
    if h.memory.pptp.session > MOST_SESSION or h.memory.pptp.call > MOST_CALL or h.memory.pptp.hang_up > 1:
        return F_MEMORY
    for dir in range(2):
        if h.memory.pptp.known[dir] > 1:
            return F_MEMORY
        if h.memory.pptp.known[dir] and not is_tunnel(&h.memory.pptp.tunnel[dir]):
            return F_TUNNEL
    return FINE


cdef inline bint is_tunnel(const Key *key) noexcept nogil:
    return key.proto == PROTO_GRE and key.family == 4 and is_key(key)


cdef const StateHelp *help_of(const Parts *parts, uint32_t conn) noexcept nogil:
    """A connection's helper, or NULL. They come in order, which has been checked."""
    cdef uint32_t low = 0, high = parts.header.helped, middle
    while low < high:
        middle = low + (high - low) // 2
        if parts.helped[middle].conn < conn:
            low = middle + 1
        else:
            high = middle
    return &parts.helped[low] if low < parts.header.helped and parts.helped[low].conn == conn else NULL


cdef Fault check_expect(const Engine *ct, const Parts *parts, const StateExpect *e) noexcept nogil:
    cdef const StateHelp *owner
    if not is_key(&e.key) or not is_address(e.saved, e.key.family):
        return F_FAMILY
    if e.master >= parts.header.conns:
        return F_CONN
    if e.left > LONGEST_LIFE:
        return F_TIMEOUT
    if e.kind >= N_KINDS or e.follow > FOLLOW_SIP or e.dir > REPLY or e.helper >= N_HELPERS:
        return F_KIND
    if e.any_src > 1 or e.any_sport > 1 or e.permanent > 1 or e.inactive > 1 or e.shared > 1:
        return F_FLAG
    owner = help_of(parts, e.master) if e.owned or e.follow == FOLLOW_PPTP else NULL
    if e.owned > MOST_OWNED or (e.owned and owner == NULL):
        return F_OWNER
    if e.follow == FOLLOW_PPTP and (not e.owned or owner.helper != HELPER_PPTP):
        return F_OWNER
    return F_NO_HELPER if e.helper and ct.ext.row == NULL else FINE

"""The rewriting of payload under address translation: the place that a packet names becomes the one at which it can be reached.

Theory of operation: an expectation is announced at the address its connection's packets come from on the other side, and at the same port if that
is free, else at a random one. The text that names it is replaced; a TCP segment that becomes longer or shorter by that moves all later sequence
numbers (seqadj). Its child is then translated as its master is (follow).
Invariant: edits say what is to be done to the packet as it arrived; nothing here writes payload.
Not here: which text names what (the helpers), bytes (datapath.rewrite).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from ctcore.edits cimport edit_next
from ctcore.engine cimport Engine
from ctcore.expectations cimport ANNOUNCED, EXPECT_BUSY, FOLLOW_MASTER, FOLLOW_SIP, Announced, Expectation
from ctcore.helpers.helper cimport Aid, announce
from ctcore.nat cimport draw, nat_setup
from ctcore.nat_table cimport NatRange
from ctcore.seqadj cimport adjust_more
from ctcore.types cimport *

cdef enum:
    MOST_TRIES = 128            # of ports, before all count as taken


# --- ports --------------------------------------------------------------------------------------------------------------------------------


cdef uint16_t announce_at_port(Aid *aid, Expectation *draft, uint16_t port) noexcept nogil:
    """Announce it at this port, or else at a random one above. The port, or 0 if none is free."""
    cdef uint32_t range = 65535 - <uint32_t>port
    cdef int32_t left = <int32_t>min(range, <uint32_t>MOST_TRIES)
    cdef uint16_t least = port
    cdef Announced outcome
    while True:
        draft.key.dport = port
        outcome = announce(aid, draft)
        if outcome == ANNOUNCED:
            return port
        left -= 1
        if outcome != EXPECT_BUSY or left < 0:
            return 0
        port = <uint16_t>(least + other_port(aid.ct, least, range))


cdef uint32_t other_port(Engine *ct, uint32_t least, uint32_t n) noexcept nogil:
    """A number below n to be added to least: the preferred port's, once, if that is one of them, else a random one."""
    cdef int32_t preferred = ct.nat.prefer_announced - <int32_t>least
    ct.nat.prefer_announced = -1
    return <uint32_t>preferred if 0 <= preferred < <int32_t>n else draw_below(ct, n)


cdef uint32_t draw_below(Engine *ct, uint32_t n) noexcept nogil:
    """A random number below n, up to 65,535: where the NAT of this tracker is at."""
    return <uint32_t>draw(&ct.nat) * n >> 16 if n else 0


# --- text ---------------------------------------------------------------------------------------------------------------------------------


cdef void add_byte(Line *line, uint8_t c) noexcept nogil:
    if line.size < sizeof(line.text):
        line.text[line.size] = c
        line.size += 1


cdef void add_text(Line *line, const char *text) noexcept nogil:
    while text[0]:
        add_byte(line, <uint8_t>text[0])
        text += 1


cdef void add_number(Line *line, uint32_t value) noexcept nogil:
    cdef uint8_t digits[10]
    cdef int n = 0
    while n == 0 or value:
        digits[n] = <uint8_t>(c'0' + value % 10)
        value //= 10
        n += 1
    while n:
        n -= 1
        add_byte(line, digits[n])


cdef void add_hex(Line *line, uint32_t value, int least) noexcept nogil:
    cdef int n = 4
    cdef uint32_t digit
    while n > least and value >> (4 * (n - 1)) == 0:
        n -= 1
    while n:
        n -= 1
        digit = value >> (4 * n) & 15
        add_byte(line, <uint8_t>(c'0' + digit if digit < 10 else c'a' - 10 + digit))


cdef void add_ip4(Line *line, const uint8_t *address, uint8_t separator) noexcept nogil:
    cdef int k
    for k in range(4):
        if k:
            add_byte(line, separator)
        add_number(line, address[k])


cdef void add_ip6(Line *line, const uint8_t *address) noexcept nogil:
    """All eight groups, with their zeros."""
    cdef int k
    for k in range(8):
        if k:
            add_byte(line, c':')
        add_hex(line, <uint32_t>address[2 * k] << 8 | address[2 * k + 1], 4)


cdef inline uint32_t group_at(const uint8_t *address, int k) noexcept nogil:
    return <uint32_t>address[2 * k] << 8 | address[2 * k + 1]


cdef inline bint ends_in_ip4(const uint8_t *address) noexcept nogil:
    """Is it an IPv4 address in disguise: ::ffff:a.b.c.d (RFC 4291 2.5.5.2), or that of an ISATAP interface (RFC 5214 6.1)?"""
    cdef int k = 0
    while k < 5 and group_at(address, k) == 0:
        k += 1
    return (k == 5 and group_at(address, 5) == 0xFFFF) or (group_at(address, 4) | 0x0200 == 0x0200 and group_at(address, 5) == 0x5EFE)


cdef void add_ip6_short(Line *line, const uint8_t *address) noexcept nogil:
    """The first of the longest runs of two or more zero groups is left out (RFC 5952 4.2)."""
    cdef int n = 6 if ends_in_ip4(address) else 8
    cdef int k = 0, run, gap = n, size = 1
    while k < n:
        run = 0
        while k + run < n and group_at(address, k + run) == 0:
            run += 1
        if run > size:
            gap, size = k, run
        k += run + 1
    k = 0
    while k < n:
        if k == gap:
            add_text(line, <const char *>b"::" if k == 0 else <const char *>b":")
            k += size
            continue
        add_hex(line, group_at(address, k), 1)
        k += 1
        if k < 8:
            add_byte(line, c':')
    if n == 6:
        add_ip4(line, address + 12, c'.')


# --- edits --------------------------------------------------------------------------------------------------------------------------------


cdef bint add_edit(Engine *ct, uint32_t at, uint32_t old_len, const uint8_t *text, uint32_t size) noexcept nogil:
    """An edit of the packet at hand, for who asks; at: from the transport header on. False if there is no memory."""
    cdef Edit *row
    if ct.rewrite == NULL:
        return True
    row = edit_next(&ct.edits)
    if row == NULL:
        return False
    memset(row, 0, sizeof(Edit))
    row.at = at
    row.old_len = <uint16_t>old_len
    row.new_len = <uint16_t>size
    memcpy(row.text, text, size)
    if not ct.rewrite.flags & REWRITE_EDIT:
        ct.rewrite.flags |= REWRITE_EDIT
        ct.rewrite.first_edit = ct.edits.used - 1
        ct.rewrite.n_edits = 0
    ct.rewrite.n_edits += 1
    return True


cdef bint edit(Aid *aid, uint32_t at, uint32_t old_len, const Line *line) noexcept nogil:
    """Replace old_len bytes of the payload by a line. False if the packet would become too large, or there is no memory to say so."""
    cdef int32_t by = <int32_t>line.size - <int32_t>old_len
    if by > 0 and <int64_t>aid.p.ip_len + aid.grown + by > LARGEST_PACKET:
        return False
    aid.grown += by
    if aid.ct.rewrite != NULL:
        aid.ct.rewrite.flags |= REWRITE_WHOLE
    return add_edit(aid.ct, <uint32_t>(aid.payload.at - aid.p.l4) + at, old_len, line.text, line.size)


cdef bint edit_number(Engine *ct, uint32_t at, uint32_t value) noexcept nogil:
    """Replace four bytes of the transport header."""
    cdef uint8_t text[4]
    cdef int k
    for k in range(4):
        text[k] = <uint8_t>(value >> (24 - 8 * k))
    return add_edit(ct, at, 4, text, 4)


cdef void move_sequence(Aid *aid, int32_t by) noexcept nogil:
    """The segment has become longer by so much: what comes behind it is to be moved."""
    if by == 0 or aid.p.key.proto != PROTO_TCP:
        return
    adjust_more(&aid.ext.adjust[aid.dir], aid.p.seq, by)
    aid.entry.status |= SEQ_ADJUST
    aid.ct.changes |= CHANGE_SEQADJ


# --- the child ----------------------------------------------------------------------------------------------------------------------------


cdef uint32_t set_half(Engine *ct, Entry *child, int manip, const uint64_t *address, int32_t port) noexcept nogil:
    """Translate half a tuple to one address, and to one port unless that is -1."""
    cdef NatRange to
    to.low[0] = to.high[0] = address[0]
    to.low[1] = to.high[1] = address[1]
    to.flags = RANGE_ADDRESSES
    if port >= 0:
        to.flags |= RANGE_PORTS
        to.port_low = to.port_high = <uint16_t>port
    return nat_setup(ct, child, manip, &to)


cdef uint32_t find_pair(Engine *ct, const Entry *child, const Expectation *expected, uint32_t own) noexcept nogil:
    """What the same call expects to be sent to where this stream comes from: by the place of that one it is known outside. NO_CONN: nothing.

    own: the row that has announced the stream itself, if it is still there.
    """
    cdef const Key *key = &child.flow[ORIG].key
    cdef uint32_t row = ct.ext.row[expected.owner].youngest if expected.kind else <uint32_t>NO_CONN
    cdef const Expectation *e
    while row != NO_CONN:
        e = &ct.expect.row[row]
        if row != own and e.key.proto == key.proto and memcmp(key.src, e.saved, 16) == 0 and key.sport == e.saved_port:
            return row
        row = e.older
    return NO_CONN


cdef void follow(Engine *ct, Entry *child, const Expectation *expected, uint32_t own) noexcept nogil:
    """Translate an expected connection as its master is: to where that sends, at the place its packet named.

    own: the row of the expectation if it is still expected, or NO_CONN.
    """
    cdef const Entry *master = &ct.pool.entry[expected.master_conn]
    cdef const Key *back = &master.flow[1 - expected.dir].key
    cdef uint32_t pair
    if expected.follow == FOLLOW_MASTER:
        set_half(ct, child, MANIP_SRC, back.dst, -1)
        set_half(ct, child, MANIP_DST, back.src, expected.saved_port)
    elif expected.follow == FOLLOW_SIP:
        set_half(ct, child, MANIP_DST, expected.saved, expected.saved_port)
        pair = find_pair(ct, child, expected, own)
        if pair != NO_CONN:
            set_half(ct, child, MANIP_SRC, ct.expect.row[pair].key.dst, ct.expect.row[pair].key.dport)
        elif memcmp(child.flow[ORIG].key.src, master.flow[expected.dir].key.src, 16) == 0:
            set_half(ct, child, MANIP_SRC, back.dst, -1)

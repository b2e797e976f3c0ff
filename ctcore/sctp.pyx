"""SCTP: the state machine around the table of spec/sctp.txt, verification tags, and heartbeats on new paths.

sctp_packet() walks the chunks of one packet: their order first, then the tag of the packet, then the table for each chunk in turn. State
changes made before a failing chunk stay, as in the kernel.
Not here: header and CRC32c faults (wire), lookup and confirmation (tracker).
Safety: parse() lets an SCTP packet pass only if all of it was captured, so l4[0 : l4_len] may be read.
"""

from libc.stdint cimport uint8_t, uint32_t

from ctcore.engine cimport ACCEPTED, REJECTED, Engine, Outcome, refresh
from ctcore.lowlevel cimport be16, be32
from ctcore.types cimport *

cdef enum:
    DATA = 0
    INIT = 1
    INIT_ACK = 2
    HEARTBEAT = 4
    HEARTBEAT_ACK = 5
    CHUNK_ABORT = 6
    SHUTDOWN_ACK = 8
    COOKIE_ECHO = 10
    COOKIE_ACK = 11
    SHUTDOWN_COMPLETE = 14
    LAST_TYPE = 14
    T_FLAG = 1                  # of ABORT and SHUTDOWN_COMPLETE: the tag is the receiver's own, reflected (RFC 9260 8.5.1)
    OTHER = 11                  # the table's column of chunks that change nothing
    HEARTBEAT_ASKED = 1         # in Sctp.flags: a HEARTBEAT with a strange tag passed and may be answered

# Chunk type (RFC 9260 3.2) to column of the table; see spec.SCTP_EVENTS.
cdef uint8_t *COLUMN = [OTHER, 0, 1, OTHER, 9, 10, 2, 3, 4, 5, 6, 7, OTHER, OTHER, 8]

ctypedef struct Chunks:
    const uint8_t *at           # the next chunk
    const uint8_t *end
    const uint8_t *chunk        # the one at hand
    uint32_t length             # its own length, as it says


cdef inline void first_chunk(Chunks *c, const Packet *p) noexcept nogil:
    c.at = p.l4 + 12
    c.end = p.l4 + p.l4_len


cdef inline bint next_chunk(Chunks *c) noexcept nogil:
    """Four bytes are a chunk; the next one begins at a multiple of four. Goes on by four at least: scan() refuses a length of 0, but the memory
    may be a file that is written to meanwhile."""
    cdef uint32_t step
    if c.end - c.at < 4:
        return False
    c.chunk = c.at
    c.length = be16(c.at + 2)
    step = (c.length + 3) & ~3 if c.length else 4
    c.at = c.end if c.length > c.end - c.at else c.at + step
    return True


cdef inline uint8_t column_of(uint8_t type) noexcept nogil:
    return COLUMN[type] if type <= LAST_TYPE else OTHER


cdef inline uint32_t bit(uint8_t type) noexcept nogil:
    """Of a chunk type, in the set of those a packet has; types that nothing asks about share none."""
    return <uint32_t>1 << type if type <= LAST_TYPE else 0

cdef enum:
    ALONE = 1 << INIT | 1 << INIT_ACK | 1 << SHUTDOWN_COMPLETE          # must be the only chunk (RFC 9260 6.10)
    FIRST = 1 << COOKIE_ACK | 1 << COOKIE_ECHO                          # must be the first chunk
    OWN_TAG_RULE = (
        1 << INIT | 1 << SHUTDOWN_COMPLETE | 1 << COOKIE_ECHO | 1 << CHUNK_ABORT | 1 << SHUTDOWN_ACK | 1 << HEARTBEAT | 1 << HEARTBEAT_ACK
    )                                                                   # exempt from the tag check of the whole packet
    NEVER_OPENS = 1 << CHUNK_ABORT | 1 << SHUTDOWN_COMPLETE | 1 << COOKIE_ACK


cdef bint scan(const Packet *p, uint32_t *types) noexcept nogil:
    """Are the chunks in an order that may be? types: the set of those that are there."""
    cdef Chunks c
    cdef uint8_t type
    cdef bint alone = False
    cdef int n = 0
    types[0] = 0
    first_chunk(&c, p)
    while next_chunk(&c):
        type = c.chunk[0]
        alone |= bit(type) & ALONE != 0
        if c.length == 0 or (n and (alone or bit(type) & FIRST)):
            return False
        types[0] |= bit(type)
        n += 1
    return n > 0


cdef bint open_sctp(Engine *ct, Sctp *s, const Packet *p, uint32_t types) noexcept nogil:
    """The first packet of an association: every chunk must lead somewhere, and tells a verification tag."""
    cdef Chunks c
    cdef uint32_t tag = be32(p.l4 + 4)
    cdef uint8_t type, state
    if types & NEVER_OPENS:
        return False
    first_chunk(&c, p)
    while next_chunk(&c):
        type = c.chunk[0]
        state = ct.set.sctp_table[ORIG][column_of(type)][SCTP_NONE]
        if state == SCTP_NONE or state == SCTP_INVALID:
            return False
        if type == INIT:
            if tag != 0 or c.end - c.chunk < 20:
                return False
            s.vtag[REPLY] = be32(c.chunk + 4)
        elif type == HEARTBEAT:
            s.vtag[ORIG] = tag
        elif type == SHUTDOWN_ACK:
            s.vtag[REPLY] = tag
    s.state = SCTP_NONE
    return True


cdef bint chunk_tag_fits(const Sctp *s, const Chunks *c, uint32_t tag, int dir) noexcept nogil:
    """The tag rules of single chunks (RFC 9260 8.5.1)."""
    cdef uint8_t type = c.chunk[0]
    if type == INIT:
        return tag == 0
    if type == CHUNK_ABORT or type == SHUTDOWN_COMPLETE:
        return tag == s.vtag[1 - dir if c.chunk[1] & T_FLAG else dir]
    if type == COOKIE_ECHO:
        return tag == s.vtag[dir]
    return True

# What a heartbeat makes of its packet.
cdef enum Beat:
    BEAT_GOES_ON                # the table decides
    BEAT_IGNORED                # passes, changes nothing
    BEAT_WRONG


cdef Beat heartbeat(Sctp *s, uint32_t types, uint32_t tag, int dir, bint ignoring) noexcept nogil:
    """A HEARTBEAT on a path we do not know the tag of sets it; one with a strange tag may be a restart, and passes if answered."""
    if s.vtag[dir] == 0:
        s.vtag[dir] = tag
    elif s.vtag[dir] == tag:
        s.flags &= <uint8_t>~HEARTBEAT_ASKED
    else:
        if types & bit(DATA) or ignoring:
            return BEAT_WRONG
        s.flags |= HEARTBEAT_ASKED
        s.last_dir = <uint8_t>dir
        return BEAT_IGNORED
    return BEAT_GOES_ON


cdef Beat heartbeat_ack(Sctp *s, uint32_t types, uint32_t tag, int dir, bint ignoring) noexcept nogil:
    """The answer to a HEARTBEAT with a strange tag proves that the peers agree on it: both tags are learned anew."""
    if s.vtag[dir] == 0:
        s.vtag[dir] = tag
    elif s.vtag[dir] == tag:
        s.flags &= <uint8_t>~HEARTBEAT_ASKED
    else:
        if types & bit(DATA) or ignoring or not s.flags & HEARTBEAT_ASKED or s.last_dir == dir:
            return BEAT_WRONG
        s.flags &= <uint8_t>~HEARTBEAT_ASKED
        s.vtag[dir] = tag
        s.vtag[1 - dir] = 0
    return BEAT_GOES_ON


cdef uint8_t learn_init(Sctp *s, const Chunks *c, int dir) noexcept nogil:
    """INIT and INIT ACK announce the tag that the other side will use. A reason if one is cut off, or if an INIT ACK contradicts what is known."""
    cdef uint32_t known = s.vtag[1 - dir]
    cdef uint32_t initiate
    if c.end - c.chunk < 20:
        return R_SCTP_CHUNKS
    initiate = be32(c.chunk + 4)
    if c.chunk[0] == INIT:
        if s.state == SCTP_NONE or known != initiate:
            # INITs of both sides cross, or the peer restarts (RFC 9260 5.2).
            if s.init[0] and s.init[1]:
                s.init[1 - dir] = 0
            s.init[dir] = 1
    elif known != initiate and ((not s.init[1 - dir] and known) or (s.init[0] and s.init[1])):
        return R_SCTP_TAG
    s.vtag[1 - dir] = initiate
    return R_OK


cdef Outcome reject(Packet *p, uint8_t reason) noexcept nogil:
    p.reason = reason
    return REJECTED


cdef Outcome one_chunk(Engine *ct, Entry *entry, Packet *p, int dir, const Chunks *c, uint32_t types, bint *ignore) noexcept nogil:
    """Tag, heartbeat rules and table for one chunk."""
    cdef Sctp *s = &entry.l4.sctp
    cdef uint32_t tag = be32(p.l4 + 4)
    cdef uint8_t type = c.chunk[0]
    cdef uint8_t old = s.state, new, refusal
    cdef Beat beat = BEAT_GOES_ON
    if not chunk_tag_fits(s, c, tag, dir):
        return reject(p, R_SCTP_TAG)
    if type == COOKIE_ACK:
        s.init[0] = 0
        s.init[1] = 0
    elif type == HEARTBEAT:
        beat = heartbeat(s, types, tag, dir, ignore[0])
    elif type == HEARTBEAT_ACK:
        beat = heartbeat_ack(s, types, tag, dir, ignore[0])
    if beat == BEAT_WRONG:
        return reject(p, R_SCTP_TAG)
    if beat == BEAT_IGNORED:
        ignore[0] = True
        return ACCEPTED
    new = ct.set.sctp_table[dir][column_of(type)][old]
    if new == SCTP_INVALID:
        return reject(p, R_SCTP_STATE)
    if type == INIT or type == INIT_ACK:
        refusal = learn_init(s, c, dir)
        if refusal != R_OK:
            return reject(p, refusal)
    if type == INIT and old == SCTP_CLOSED and new == SCTP_CLOSED and entry.status & CONFIRMED:
        ignore[0] = True        # retransmitted INIT
    s.state = new
    if new != old:
        ct.changes |= CHANGE_L4STATE
        if new == SCTP_ESTABLISHED and not entry.status & ASSURED:
            entry.status |= ASSURED
            ct.changes |= CHANGE_ASSURED
    return ACCEPTED


cdef Outcome sctp_packet(Engine *ct, Entry *entry, Packet *p, int dir, bint fresh) noexcept nogil:
    """One SCTP packet.   Writes: the entry, ct.changes, p.reason."""
    cdef Sctp *s = &entry.l4.sctp
    cdef Chunks c
    cdef uint32_t types
    cdef bint ignore = False
    if not scan(p, &types):
        return reject(p, R_SCTP_CHUNKS)
    if fresh and not open_sctp(ct, s, p, types):
        return reject(p, R_SCTP_NOT_OPENING)
    if not types & OWN_TAG_RULE and be32(p.l4 + 4) != s.vtag[dir]:
        return reject(p, R_SCTP_TAG)
    first_chunk(&c, p)
    while next_chunk(&c):
        if one_chunk(ct, entry, p, dir, &c, types, &ignore) == REJECTED:
            return REJECTED
    if ignore:
        p.reason = R_SCTP_IGNORED
        return ACCEPTED
    refresh(ct, entry, p, dir, ct.set.sctp_timeout[s.state])
    return ACCEPTED

# What is said of a packet: its decision, with a connection or without.
#
# Inline: each packet comes by here. Not here: what is said of connections (events, changes).

from libc.stdint cimport uint8_t
from libc.string cimport memset

from ctcore.engine cimport Engine, ticks_left
from ctcore.lowlevel cimport likely, unlikely
from ctcore.types cimport (
    COLD_MARK, ESTABLISHED, EXPECTED, NEW, NO_DIR, NO_L4STATE, OFFLOAD_NONE, PROTO_SCTP, PROTO_TCP, RELATED, REPLY, SEEN_REPLY, Decision, Entry, Packet,
)


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

from libc.stdint cimport uint8_t, uint32_t

from ctcore.engine cimport Engine
from ctcore.lowlevel cimport unlikely
from ctcore.types cimport CHANGE_REPLY, Decision, Entry, Packet, REPLY, Rewrite, SEEN_REPLY

# What the first half of a packet's way comes to.
cdef enum Finding:
    FOUND_NOTHING               # it has no connection, for whatever reason: the decision is made
    FOUND_KNOWN                 # a flow of the table
    FOUND_NEW                   # the original flow of a connection that it has opened, which is not confirmed
    FOUND_QUOTED                # the flow that an ICMP error is about
    FOUND_LATER                 # not looked for yet

cdef void hash_rows(Engine *ct, Packet *row, int n) noexcept nogil
cdef void find_rows(Engine *ct, Packet *row, int n) noexcept nogil
cdef void track_rows(Engine *ct, Packet *row, int n, Decision *out, Rewrite *rewrites) noexcept nogil
cdef Finding find_connection(Engine *ct, Packet *p, bint commit, uint32_t *flow, Decision *d) noexcept nogil
cdef void help_packet(Engine *ct, uint32_t conn, Packet *p, int dir) noexcept nogil
cdef void reject(Engine *ct, Packet *p, uint8_t state, uint8_t verdict, uint8_t l4state, Decision *d) noexcept nogil
cdef void replace(Engine *ct, uint32_t victim, uint32_t conn) noexcept nogil


cdef inline void note_reply(Engine *ct, Entry *entry, int dir) noexcept nogil:
    """From its first answer on a connection is established."""
    if unlikely(dir == REPLY and not entry.status & SEEN_REPLY):
        entry.status |= SEEN_REPLY
        ct.changes |= CHANGE_REPLY

"""TFTP (RFC 1350): whoever is asked for a file answers from a port of its own, to the port that asked.

Nothing is to be rewritten under address translation: the request names no port. Not here: anything beyond the two bytes of the opcode.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from ctcore.expectations cimport FOLLOW_MASTER, Expectation
from ctcore.helpers.helper cimport KIND_DEFAULT, Aid, announce_or_drop, draft_new, translated, translated
from ctcore.helpers.text cimport byte_at
from ctcore.types cimport Key, ORIG, PROTO_UDP, R_OK, REPLY

cdef enum:
    READ_REQUEST = 1
    WRITE_REQUEST = 2


cdef uint8_t tftp(Aid *aid) noexcept nogil:
    """One packet of any state and direction.   Writes: expectations."""
    cdef Expectation draft
    cdef const Key *answer = &aid.entry.flow[REPLY].key
    cdef int opcode = byte_at(&aid.payload, 1)
    if byte_at(&aid.payload, 0) != 0 or (opcode != READ_REQUEST and opcode != WRITE_REQUEST):
        return R_OK
    draft_new(aid, &draft, KIND_DEFAULT, PROTO_UDP)
    memcpy(draft.key.src, answer.src, 16)
    memcpy(draft.key.dst, answer.dst, 16)
    draft.key.dport = answer.dport
    if translated(aid):
        draft.saved_port = aid.entry.flow[ORIG].key.sport
        draft.dir = REPLY
        draft.follow = FOLLOW_MASTER
    return announce_or_drop(aid, &draft)

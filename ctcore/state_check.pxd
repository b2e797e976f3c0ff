from libc.stdint cimport int64_t, uint64_t

from ctcore.engine cimport Engine
from ctcore.state cimport StateConn, StateExpect, StateHeader, StateHelp

# What may be wrong with a part of a state; the texts are in state_check.pyx, in this order.
cdef enum Fault:
    FINE
    F_SHORT
    F_FAMILY
    F_PROTO
    F_ZONE
    F_ORDINAL
    F_MASTER
    F_STATUS
    F_TIMEOUT
    F_TCP
    F_SCTP
    F_NAT
    F_RULE
    F_FLAG
    F_NO_HELPER
    F_HELPER
    F_MEMORY
    F_TUNNEL
    F_CONN
    F_KIND
    F_OWNER
    F_TWICE
    F_ROOM
    F_RESERVE

# Where a state's parts begin.
ctypedef struct Parts:
    const StateHeader *header
    const uint64_t *conns
    const uint64_t *end         # of the connections
    const StateHelp *helped
    const StateExpect *expected
    const uint64_t *rules

cdef int state_open(const Engine *ct, object memory, Parts *parts) except -1
cdef int state_empty(const Engine *ct) except -1
cdef int state_tables(const Engine *ct, const Parts *parts) except -1
cdef Fault check_conn(const Engine *ct, const StateHeader *header, const StateConn *conn, int64_t last, bint helped) noexcept nogil
cdef str fault_text(Fault fault)
cdef object refuse(str where, str what)

"""Connections of somebody else's, such as the kernel's, entered beside those that are there.

Theory of operation: each is checked as one of a saved state is, gets the next ordinal, and comes in if its tuples are free and there is a place that
nobody has to leave for it. Of TCP, windows are what another tracker does not tell: as after a flow table, each side's is learnt from its next
packet, and the connection is judged liberally, since that packet may be an old one.
Not here: where they come from (datapath.live.kernel_conntrack).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from ctcore.engine cimport Engine
from ctcore.hashing cimport hash_of
from ctcore.helpers.helper cimport N_HELPERS, NO_HELPER
from ctcore.helpers.registry cimport give_helper, helper_confirmed
from ctcore.state cimport StateConn, StateHeader
from ctcore.state_check cimport F_ROOM, F_TIMEOUT, FINE, Fault, check_conn, fault_text
from ctcore.state_restore cimport enter_conn
from ctcore.types cimport *
from ctcore.zones cimport zone_has_place

cdef enum:
    LONGEST_LIFE = 0x7FFFFFFF   # ticks


cdef void describe(const Engine *ct, const Entry *row, StateConn *c) noexcept nogil:
    """A row of CONN_DTYPE as a state would have it, with the next ordinal."""
    cdef Tcp *tcp = &c.l4.tcp
    cdef int dir
    memset(c, 0, sizeof(StateConn))
    for dir in range(2):
        c.key[dir], c.label[dir] = row.flow[dir].key, row.label[dir]
        c.packets[dir], c.bytes[dir] = row.flow[dir].packets, row.flow[dir].bytes
    c.id, c.start, c.mark = ct.next_id, row.start, row.mark
    c.status = row.status & <uint16_t>~<uint16_t>(HELPER | OFFLOAD | HW_OFFLOAD)
    if c.key[ORIG].proto == PROTO_TCP:
        tcp.state = row.l4.tcp.state
        for dir in range(2):
            tcp.scale[dir] = row.l4.tcp.scale[dir]
            tcp.flags[dir] = row.l4.tcp.flags[dir] & ~<uint8_t>(TF_MAXACK_SET | TF_DATA_UNACKED) | TF_BE_LIBERAL
    elif c.key[ORIG].proto == PROTO_SCTP:
        c.l4.sctp = row.l4.sctp


cdef Fault adopt_one(Engine *ct, const Entry *row, const StateHeader *header) noexcept nogil:
    cdef uint8_t helper = <uint8_t>(row.extension >> EXTENSION_BITS)
    cdef uint16_t rule[2]
    cdef uint32_t hash[2]
    cdef uint32_t conn
    cdef StateConn c
    cdef Fault fault
    cdef int dir
    describe(ct, row, &c)
    fault = check_conn(ct, header, &c, -1, False)
    if fault != FINE:
        return fault
    if row.deadline > LONGEST_LIFE:
        return F_TIMEOUT
    if ct.live >= ct.set.max or (ct.zones.reserved and not zone_has_place(&ct.zones, c.key[ORIG].zone | c.key[REPLY].zone)):
        return F_ROOM
    for dir in range(2):
        rule[dir], hash[dir] = 0, hash_of(&ct.hash_key, &c.key[dir])
    fault = enter_conn(ct, &c, row.deadline, hash, rule, &conn)
    if fault != FINE:
        return fault
    ct.next_id += ct.set.share_count
    if ct.ext.row != NULL and helper != NO_HELPER and helper < N_HELPERS and give_helper(ct, conn, helper):
        ct.pool.entry[conn].status |= HELPER
        helper_confirmed(ct, &ct.pool.entry[conn])
    return FINE


cdef object state_adopt(Engine *ct, object conns):
    """conns: a C-contiguous CONN_DTYPE[n]. Returns how many were entered, and of the others how many for which reason."""
    cdef const Entry *row = <const Entry *><size_t>conns.ctypes.data
    cdef uint32_t i, entered = 0
    cdef StateHeader header
    cdef Fault fault
    cdef dict out = {}
    memset(&header, 0, sizeof(StateHeader))
    for i in range(<uint32_t>len(conns)):
        header.next_id = ct.next_id + 1
        fault = adopt_one(ct, &row[i], &header)
        if fault == FINE:
            entered += 1
        else:
            out[fault_text(fault)] = out.get(fault_text(fault), 0) + 1
    return entered, out

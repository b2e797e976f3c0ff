# A connection that was in the flow table goes back to the tracker, which knows nothing of what passed meanwhile.
#
# Windows are learnt anew, and the timeout is the one that the tracker would have given. Used when a row is torn down (datapath.flowtable), and when
# a state is saved: a saved connection is in no flow table.
# Source: net/netfilter/nf_flow_table_core.c (flow_offload_fixup_ct).

from libc.stdint cimport int64_t, uint8_t, uint16_t

from ctcore.types cimport PROTO_TCP, PROTO_UDP, SEEN_REPLY, TF_MAXACK_SET, L4, Settings


cdef inline int64_t handed_back(const Settings *set, uint8_t proto, uint16_t status, L4 *l4) noexcept nogil:
    """Forget the windows. Ticks that the connection has at most from now on; -1: what it has."""
    cdef int dir
    if proto == PROTO_UDP:
        return set.udp_timeout[(status & SEEN_REPLY) != 0]
    if proto != PROTO_TCP:
        return -1
    for dir in range(2):
        l4.tcp.side[dir].maxwin = 0
        l4.tcp.flags[dir] &= ~<uint8_t>TF_MAXACK_SET
    return set.tcp_timeout[l4.tcp.state]

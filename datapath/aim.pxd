# What each packet of a batch will need, asked for before its turn comes; see aim.pyx.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.engine cimport Engine
from ctcore.types cimport BATCH, Key, Packet
from datapath.flowtable cimport FlowTable
from datapath.frame cimport Frame
from datapath.shortcut cimport Shortcuts

# A batch on its way: of each packet, where it came to, its flow's hash, and its shortcut, or NO_SHORTCUT.
ctypedef struct Aim:
    uint32_t[BATCH] hook
    uint32_t[BATCH] hash
    uint32_t[BATCH] cut
    const Shortcuts *cuts       # NULL: no flow table
    const FlowTable *flows
    const Engine *ct
    uint16_t zone               # of the last packet that was tracked: the next one's, most likely
    # of the packets that have no shortcut
    int n_walks
    uint8_t[BATCH] walks        # which ones they are
    uint32_t[BATCH] guess       # their tuple's hash in that zone; then the slot of their connection, or NO_CONN

cdef void take_aim(Aim *aim, const uint8_t *memory, const Frame *frame, const Packet *row, int n, bint decided) noexcept nogil


cdef inline Key flow_key(const Key *key, uint32_t hook) noexcept nogil:
    """A tuple with the hook in place of the zone, its last word put together in a register, for its hash comes next."""
    cdef Key flow = key[0]
    (<uint64_t *>&flow)[4] = ((<const uint64_t *>key)[4] & <uint64_t>0xFFFF0000FFFFFFFF) | <uint64_t>(hook & 0xFFFF) << 32
    return flow

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.engine cimport Engine
from ctcore.types cimport Decision, Packet, Rewrite

cdef enum CtFlag:
    CT_COMMIT = 1
    CT_FORCE = 2                # a packet of the reply direction begins a connection of its own
    CT_CLEAR = 4                # and nothing else
    CT_NAT = 8
    CT_MARK = 16                # set it, on commit
    CT_LABEL = 32

cdef enum:
    MOST_CARRIED = 256          # connections that only packets know, at a time: what comes on top is dropped

# What an action asks for. Translation and helpers take a tracker whose settings have room for them (checked_action).
ctypedef struct CtRequest:
    uint64_t label[2]           # low word first
    uint64_t label_mask[2]
    uint32_t mark
    uint32_t mark_mask
    uint32_t rule               # of CT_NAT: whose range to choose from, counted from 1; 0: the mapping that the connection has
    uint16_t zone
    uint8_t flags               # CtFlag
    uint8_t helper              # HELPER_*, 0: none

# What a packet carries from one action to the next. A new one is all zeros but for the flow (carry_nothing).
ctypedef struct Carried:
    uint32_t flow               # slot of the connection << 1 | direction of the packet; NO_FLOW: none
    uint32_t generation         # of that slot: with another one it is somebody else's by now
    uint16_t zone               # of the last action
    uint8_t state               # NEW, ESTABLISHED or RELATED
    uint8_t tracked             # whether there was one
    uint8_t error               # the packet is an ICMP error about the flow
    uint8_t own                 # the connection is in no table: nobody but this packet knows it

cdef bint ct_act(Engine *ct, Packet *p, const CtRequest *r, Carried *a, Decision *d, Rewrite *rewrite) noexcept nogil
cdef void ct_leave(Engine *ct, Carried *a) noexcept nogil
cdef void carry_nothing(Carried *a) noexcept nogil

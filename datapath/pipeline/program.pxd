# Rules as the walk reads them: everything an action names is resolved, everything a rule says lies in a few arrays.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.act cimport CtRequest
from datapath.pipeline.classify cimport Table
from datapath.pipeline.draft cimport Munge, TagChange
from datapath.pipeline.police cimport Bucket

cdef enum:
    NO_CHAIN = 0xFFFFFFFF       # of which no rule is: as good as a chain where none matches
    NO_RULE = 0xFFFFFFFF

# What follows an action. `reclassify` is a goto to chain 0 of the hook.
cdef enum ControlKind:
    CONTROL_PASS = 0
    CONTROL_PIPE = 1
    CONTROL_DROP = 2
    CONTROL_CONTINUE = 3
    CONTROL_GOTO = 4

ctypedef struct Control:
    uint32_t chain              # of CONTROL_GOTO: a place in Rules.start, or NO_CHAIN
    uint8_t kind

cdef enum OpKind:
    OP_GACT = 0
    OP_CT = 1
    OP_MIRRED = 2
    OP_PEDIT = 3
    OP_CSUM = 4
    OP_SKBEDIT = 5
    OP_VLAN = 6
    OP_POLICE = 7

ctypedef struct Send:
    uint32_t hook               # as Program.hook() numbers them
    uint8_t redirect            # or else mirror

ctypedef struct Munges:
    uint32_t first              # in Rules.munge
    uint32_t n

ctypedef struct Marks:
    uint32_t mark
    uint32_t kept               # bits of the mark that stay
    uint32_t priority
    uint8_t sets_priority

ctypedef struct Policed:
    uint32_t bucket             # in Rules.bucket
    Control exceed

# What `ct` actions ask, which all that are equal share.
ctypedef struct Ask:
    CtRequest request
    uint8_t helper_family       # a helper is for packets of this family and protocol only
    uint8_t helper_proto

ctypedef union Told:
    Send send
    Munges munges
    uint8_t sums
    Marks marks
    TagChange tag
    Policed policed
    uint32_t ask                # in Rules.ask

# An action.
ctypedef struct Op:
    Told told
    Control then
    uint8_t kind

# A rule in its place in a chain.
ctypedef struct Seat:
    uint32_t rule               # its number in the ruleset
    uint32_t behind             # the place where `continue` goes on
    uint32_t first              # in Rules.op
    uint32_t n                  # of its actions

ctypedef struct Count:
    uint64_t packets
    uint64_t bytes              # on the wire
    int64_t last                # ns, -1: never
    uint64_t drops              # frames that ended here, dropped
    uint64_t overlimits         # times that a policer had no token

ctypedef struct Rules:
    Table table
    uint32_t *first             # by hook: chain 0, or NO_CHAIN
    uint32_t n_hooks
    uint32_t *start             # by chain: its first seat
    Seat *seat
    Op *op
    Munge *munge
    Ask *ask
    Bucket *bucket
    Count *count                # by rule

# Where a frame goes on that hardware has begun with (Program.resumes makes them of rules and chains).
ctypedef struct Resume:
    int64_t conn                # ordinal of the connection that it carries, found by its tuple in `zone`; -1: none
    uint32_t chain              # in Rules.start, or NO_CHAIN
    uint32_t place              # in the chain: rules before it are not asked
    uint32_t action             # of the rule at `place`, which has matched if this is not the first one
    uint32_t mark               # of skbedit
    uint32_t priority
    uint16_t zone
    uint8_t on                  # 0: it begins as any other
    uint8_t turns               # chains that it has been through
    uint8_t state               # of the packet, if it carries a connection: NEW or ESTABLISHED
    uint8_t pad[7]

cdef class Program:
    cdef Rules code
    cdef readonly object ruleset
    cdef readonly object config         # that a tracker needs for these rules
    cdef readonly tuple devices
    cdef readonly object classifier
    cdef readonly bint tracks           # has a ct action
    cdef dict numbers                   # of devices
    cdef dict chains                    # (hook, chain): which one it is
    cdef list arrays                    # that code points into
    cdef Program beside                 # whose policers these are, too
    cdef object counts
    cdef object places                  # of rules in their chains; None: nobody has asked
    cdef dict named                     # chains by hook and number of tc, those that resumes() was asked for
    cdef uint32_t n_munges              # that are in use while rules are compiled
    cdef uint32_t n_buckets
    cdef dict asks                      # by action, which one it is in code.ask
    cdef dict ranges                    # of config: their places
    cdef int lower(self, Op *op, object action, object hook) except -1
    cdef Control control(self, object control, object hook) except *

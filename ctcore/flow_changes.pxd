# What a flow table and who mirrors it in hardware tell each other, between batches; see flow_changes.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.types cimport Key

# What a flow asks of the mirror. Python: Asked.
cpdef enum:
    ASK_INSTALL = 1             # admitted, refreshed, or replies may be served now: its rules as they should be
    ASK_COUNTERS = 2            # its timeout is coming near: what has hardware seen of it?
    ASK_REMOVE = 3              # torn down: its rules have to go before its row can

# What the mirror answers. Python: Answered.
cpdef enum:
    ANSWER_INSTALLED = 1        # at least one rule is in hardware
    ANSWER_REFUSED = 2          # none is: the flow lives on in software
    ANSWER_REMOVED = 3          # none is any more, and none will be: the row may go
    ANSWER_COUNTED = 4
    ANSWER_PENDING = 5          # a job is on its way: another one would be dropped

cpdef enum FlowFlag:
    FLOW_BIDIRECTIONAL = 1      # replies may be served, too: two rules, and not one
    FLOW_ASSURED = 2
    FLOW_SEEN_REPLY = 4
    FLOW_ESTABLISHED = 8        # of an answer: the rules' ctinfo is that of an established connection
    FLOW_SPLIT = 16             # of an answer: the counters are those of each direction; else [0] has those of both, and nobody knows the shares

cdef const void *rows_of(rows, dtype, str name) except? NULL

ctypedef struct FlowAsk:
    Key key[2]                  # the tuples as packets of each direction arrive, by direction
    int64_t now                 # ns
    int64_t conn                # ordinal
    uint64_t label[2]
    uint64_t bytes              # of both directions so far; 0 where nothing is accounted
    uint32_t row                # of the flow table
    uint32_t serial             # the row's life
    uint32_t mark
    uint16_t status             # Status
    uint8_t ask
    uint8_t flags               # FlowFlag
    uint8_t cause               # Offload: of ASK_REMOVE, why
    uint8_t pad[7]

ctypedef struct FlowAnswer:
    int64_t used                # ns: of ANSWER_COUNTED: when hardware saw its last packet; 0: none yet. Else: before which to ask for an
                                # install is in vain, for one was refused; 0: none was
    uint64_t packets[2]         # since the last answer
    uint64_t bytes[2]
    uint32_t row
    uint32_t serial
    uint8_t answer
    uint8_t flags               # FlowFlag
    uint8_t pad[6]

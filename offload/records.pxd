# What a mirror and a backend tell each other; see records.pyx.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ctcore.types cimport Key

# Python: Op.
cpdef enum:
    OP_REPLACE = 1              # a rule for one direction of a flow
    OP_DESTROY = 2
    OP_STATS = 3
    OP_GONE = 4                 # of a reply only, which nobody has asked for: a rule is there no more, by somebody else's doing

# What a rule says of the packets that match it (contract A4.35). Python: Ctinfo.
cpdef enum:
    CT_NEW = 1
    CT_ESTABLISHED = 2
    CT_ESTABLISHED_REPLY = 3

# cookie: (serial << 32 | row) << 1 | direction. The rewrite is from `match` to `to`: an address or a port that differs is written (A4.30-32).
ctypedef struct Command:
    Key match                   # exact; zone, too. TCP: and neither FIN nor RST (A4.27)
    Key to                      # what leaves; zone, proto and family as in `match`
    uint64_t cookie
    int64_t conn                # ordinal: with ctinfo the cookie of the metadata (A4.34)
    uint64_t label[2]
    uint32_t mark
    uint8_t op
    uint8_t ctinfo
    uint8_t dir
    uint8_t pad

ctypedef struct Reply:
    uint64_t cookie
    int64_t used                # ns: when the last packet came; 0: none yet. Of OP_STATS, and of OP_DESTROY and OP_GONE where hardware tells it, as:
    uint64_t packets            # that were not told yet: of a counter that both directions share each is told once, whichever is asked
    uint64_t bytes
    int32_t error               # 0, or a positive errno (A8)
    uint8_t op
    uint8_t shared              # the counters are those of both directions
    uint8_t pad[2]

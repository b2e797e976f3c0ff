# The flow table: connections whose packets need no tracking any more; see flowtable.pyx.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.engine cimport Engine
from ctcore.tracker cimport Tracker
from ctcore.types cimport N_OFFLOADS, Key, Packet

cdef enum:
    NO_ROW = 0xFFFFFFFF
    # flags of a row
    ROW_TEARDOWN = 1            # its packets go the slow way; it goes with the next round
    ROW_BIDIRECTIONAL = 2       # replies may be served, too
    ROW_ASSURED = 4             # its connection is, and stays so
    # flags of a row that is mirrored
    HW_TOLD = 1                 # the mirror knows of it, so that it stays until its rules are gone
    HW_PENDING = 2              # a job of hardware is on its way
    HW_ESTABLISHED = 4          # its rules say established, and not new
    HW_WAITS = 8                # shifted by the number of an ask: that one waits to be taken

# A connection in the table. The first cache line is what a packet needs; the tuples are for who has none of the row's numbers.
ctypedef struct FlowRow:
    int64_t conn_id             # ordinal
    uint32_t conn               # slot in the engine's pool
    uint32_t serial             # lives of this row: tells it from the next connection in it
    uint32_t timeout            # tick
    uint32_t next[2]            # by direction, in the chain of its tuple's hash; of a free row: next[0] is the next free one
    uint8_t flags
    uint8_t cause               # Offload: why it is torn down
    uint8_t hw
    uint8_t pad
    uint16_t zone               # that of its tuples
    uint8_t pads[2]
    uint32_t quiet              # tick: hardware has refused its rules, and is not asked again before
    Key key[2]                  # as packets of each direction arrive
    uint8_t to_line[8]          # two cache lines in all

# An ask that waits to be taken; what it says of its connection is filled in when it is.
ctypedef struct Token:
    uint32_t row
    uint32_t serial
    uint32_t ask                # FlowAsk.ask

# What hardware has counted of a connection without telling the directions apart, by slot of the pool.
ctypedef struct Unsplit:
    int64_t conn_id
    uint64_t packets
    uint64_t bytes

# Between the table and its mirror.
ctypedef struct Asks:
    Token *token                # a ring
    Unsplit *unsplit
    uint32_t size
    uint32_t first
    uint32_t count
    uint32_t sweep              # row from which everything is asked for again, or NO_ROW
    uint8_t missed              # there was no place for an ask: everything has to be asked for again
    uint64_t lost               # asks that there was no place for
    uint64_t taken
    uint64_t stale              # answers to rows that are others by now
    uint64_t packets            # that hardware has counted
    uint64_t bytes
    uint64_t unsplit_packets    # of these, of an unknown direction
    uint64_t late_packets       # of these, of connections that are gone

ctypedef struct FlowTable:
    FlowRow *row
    uint32_t *head              # chains, of row << 1 | direction
    uint32_t *of                # by slot of the pool: its connection's row
    uint64_t *living            # a bit a row: what a round looks at
    uint32_t n_heads            # a power of two
    uint32_t size
    uint32_t used               # rows ever handed out
    uint32_t free
    uint32_t count
    uint32_t timeout[2]         # ticks: TCP; UDP and all others
    uint8_t extends             # whether connections in the table are kept from expiring
    int64_t next_round          # ns: when rows are looked at next
    int64_t round_began         # ns, a whole second
    uint32_t slices             # of it
    uint32_t slice              # the next of them
    uint32_t reached            # the row at which it begins
    Engine *engine
    uint64_t admitted
    uint64_t served             # packets
    uint64_t refused[N_OFFLOADS]        # packets whose connections were not taken in, by why
    uint64_t torn_down[N_OFFLOADS]
    Asks *asks                  # NULL: nothing mirrors it

cdef uint8_t flow_admit(FlowTable *all, Engine *ct, const Packet *p, uint32_t flow, uint8_t state) noexcept nogil
cdef uint32_t flow_find(const FlowTable *all, const Engine *ct, const Key *key) noexcept nogil
cdef uint8_t flow_passes(const Packet *p, const uint8_t *ip) noexcept nogil
cdef uint8_t flow_serve(FlowTable *all, Engine *ct, const Packet *p, uint32_t found) noexcept nogil
cdef void flow_teardown(FlowTable *all, Engine *ct, uint32_t row, uint8_t cause, uint64_t tick) noexcept nogil
cdef void flow_round(FlowTable *all, Engine *ct, int64_t now) noexcept nogil


cdef inline uint32_t *flow_chain(const FlowTable *all, uint32_t hash) noexcept nogil:
    """The head of the chain in which a tuple of this hash is."""
    return &all.head[hash & (all.n_heads - 1)]


cdef class Flows:
    cdef FlowTable all
    cdef readonly Tracker tracker
    cdef size_t size
    cdef Asks asks_of
    cdef size_t asks_size
    cdef Asks *known_asks(self) except NULL

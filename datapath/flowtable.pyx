"""The flow table: which connections are so well established that their packets need no tracking any more, and for how long.

Theory of operation: at the end of a `ct` action flow_admit() takes a connection in. From then on its packets are served here: looked up, accounted,
and told what their connection is; neither window nor timeout is looked at. What may end or change the connection goes the slow way: FIN and RST tear
down first. A row whose packets stay away expires; rounds, one a second, in slices where there are many, take out what is expired or torn down.
One connection: SYN, SYN/ACK, ACK: the third makes it assured and is its admission; data is served; FIN tears it down, the tracker sees the FIN;
the next round removes the row. An idle one comes back after 30 s with what it has left of its day, or of its state's timeout less 30 s.
Invariants (check): a row is in the chains of both its tuples; OFFLOAD is set on exactly the connections whose rows are not torn down; none of
these is dead.
Source: net/sched/act_ct.c, net/netfilter/nf_flow_table_core.c.
Not here: verdicts (a packet served has its rules still before it, see shortcut), how rows end (flowtable_ends.pxi), what hardware is asked for (flowtable_mirrored.pxi).
"""

cimport cython

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

import numpy as np

from ctcore.engine cimport Engine, set_deadline, ticks_left
from ctcore.flow_changes cimport (
    ANSWER_COUNTED, ANSWER_INSTALLED, ANSWER_PENDING, ANSWER_REMOVED, ASK_COUNTERS, ASK_INSTALL, ASK_REMOVE, FLOW_ASSURED, FLOW_BIDIRECTIONAL,
    FLOW_ESTABLISHED, FLOW_SEEN_REPLY, FLOW_SPLIT, FlowAnswer, FlowAsk, rows_of,
)
from ctcore.handback cimport handed_back
from ctcore.hashing cimport hash_of
from ctcore.lifetime cimport advance_clock
from ctcore.lowlevel cimport be16, first_bit, likely, prefetch_write, unlikely
from ctcore.pool cimport map_memory, unmap_memory
from ctcore.table cimport same_key
from ctcore.timers cimport tick_reached
from ctcore.tracker cimport Tracker
from ctcore.types cimport *

from ctcore import types
from ctcore.flow_changes import ANSWER_DTYPE, ASK_DTYPE

cdef enum:
    DAY = 86400                 # seconds that a connection has from its admission on, whatever it had before
    FIVE_MINUTES = 300          # with less left, one in the table gets more
    SECOND = 1_000_000_000      # ns between rounds
    SLICE = 8192                # rows of a round that are looked at together: some 0.25 ms
    IP4_PLAIN = 20              # bytes of an IP header without options
    IP6_PLAIN = 40
    AHEAD = 16                  # asks that are fetched before they are taken
    FLAGS_OVER = FIN | RST

# What flow_admit() may say, by the names of counters.
REFUSALS = {
    "refused_proto": NOT_PROTO, "refused_tcp_state": NOT_TCP_STATE, "refused_not_assured": NOT_ASSURED, "refused_unconfirmed": NOT_UNCONFIRMED,
    "refused_helper": NOT_HELPER, "refused_seqadj": NOT_SEQADJ, "refused_gre_nat": NOT_GRE_NAT, "refused_gre_key": NOT_GRE_KEY,
    "refused_dying": NOT_DYING, "refused_tuple_busy": NOT_TUPLE_BUSY,
}

UNSPLIT_DTYPE = np.dtype([("conn_id", "i8"), ("packets", "u8"), ("bytes", "u8")])
assert UNSPLIT_DTYPE.itemsize == sizeof(Unsplit)

cdef int64_t NEVER = 0x7FFFFFFFFFFFFFFF
cdef int64_t LEAP = 30 * <int64_t>86400 * 1_000_000_000     # ns: at most a third of what a 32-bit difference of ticks can tell

# Bytes of a transport header that have to be there.
cdef inline uint32_t least_of(uint8_t proto) noexcept nogil:
    return 20 if proto == PROTO_TCP else 8 if proto == PROTO_UDP else 4


# --- rows -------------------------------------------------------------------------------------------------------------------------------


cdef inline uint32_t *chain_of(const FlowTable *all, const Engine *ct, const Key *key) noexcept nogil:
    return flow_chain(all, hash_of(&ct.hash_key, key))


cdef uint32_t flow_find(const FlowTable *all, const Engine *ct, const Key *key) noexcept nogil:
    """The row and direction (row << 1 | direction) that has this tuple, torn down or not, or NO_ROW."""
    cdef uint32_t at = chain_of(all, ct, key)[0]
    while at != NO_ROW and not same_key(&all.row[at >> 1].key[at & 1], key):
        at = all.row[at >> 1].next[at & 1]
    return at


cdef uint32_t row_take(FlowTable *all) noexcept nogil:
    cdef uint32_t row = all.free
    if row != NO_ROW:
        all.free = all.row[row].next[0]
    elif all.used < all.size:
        row = all.used
        all.used += 1
    return row


cdef void row_remove(FlowTable *all, const Engine *ct, uint32_t number) noexcept nogil:
    """Out of both chains, and free. Whoever remembers it sees by the serial that it is another life."""
    cdef FlowRow *row = &all.row[number]
    cdef uint32_t *link
    cdef int dir
    for dir in range(2):
        link = chain_of(all, ct, &row.key[dir])
        while link[0] != (number << 1 | dir):
            link = &all.row[link[0] >> 1].next[link[0] & 1]
        link[0] = row.next[dir]
    all.living[number >> 6] &= ~(<uint64_t>1 << (number & 63))
    row.serial += 1
    row.next[0] = all.free
    all.free = number
    all.count -= 1


cdef uint32_t next_living(const FlowTable *all, uint32_t start) noexcept nogil:
    """The first row from `start` on that is in the table, or NO_ROW: there may have been far more than there are now."""
    cdef uint32_t word = start >> 6, last = (all.used + 63) >> 6
    cdef uint64_t bits
    if word >= last:
        return NO_ROW
    bits = all.living[word] >> (start & 63) << (start & 63)
    while not bits:
        word += 1
        if word == last:
            return NO_ROW
        bits = all.living[word]
    return word << 6 | <uint32_t>first_bit(bits)


cdef inline uint32_t idle_ticks(const FlowTable *all, uint8_t proto) noexcept nogil:
    return all.timeout[0 if proto == PROTO_TCP else 1]


include "flowtable_mirrored.pxi"
include "flowtable_admission.pxi"


# --- packets ----------------------------------------------------------------------------------------------------------------------------


cdef uint8_t flow_passes(const Packet *p, const uint8_t *ip) noexcept nogil:
    """OFFLOAD_NONE if the table may be asked for a packet, or why it goes the slow way. ip: its IP header."""
    cdef uint8_t proto = p.key.proto
    if p.verdict != PENDING or p.reason == R_FRAGMENT:
        return NOT_FRAGMENT
    if proto != PROTO_TCP and proto != PROTO_UDP and proto != PROTO_GRE:
        return NOT_PROTO
    if p.l4 - ip != (IP4_PLAIN if p.key.family == 4 else IP6_PLAIN):
        return NOT_IP_OPTIONS
    if p.hop_limit <= 1:
        return NOT_TTL
    if p.l4_have < least_of(proto):
        return NOT_TRUNCATED
    return NOT_PROTO if proto == PROTO_GRE and be16(p.l4) & 7 else OFFLOAD_NONE


cdef uint8_t flow_serve(FlowTable *all, Engine *ct, const Packet *p, uint32_t found) noexcept nogil:
    """A packet whose tuple flow_find() found: OFFLOAD_SOFTWARE if it is served, or why it goes the slow way; OFFLOAD_NONE: the row is no longer."""
    cdef FlowRow *row = &all.row[found >> 1]
    cdef int dir = found & 1
    cdef Entry *entry = &ct.pool.entry[row.conn]
    cdef uint32_t timeout
    cdef bint renewed = False
    if unlikely(row.flags & ROW_TEARDOWN):
        return OFFLOAD_NONE
    if unlikely(not row.flags & ROW_ASSURED) and entry.status & ASSURED:
        row.flags |= ROW_ASSURED
    if unlikely(dir == REPLY and not row.flags & ROW_BIDIRECTIONAL):
        if row.flags & ROW_ASSURED:
            row.flags |= ROW_BIDIRECTIONAL
        elif row.hw & HW_ESTABLISHED:
            return NOT_ASSURED              # its rules say already what this packet could change (A5.39)
        renewed = True
    if p.key.proto == PROTO_TCP and unlikely(p.tcp_flags & FLAGS_OVER):
        flow_teardown(all, ct, found >> 1, NOT_TEARDOWN_FIN if p.tcp_flags & FIN else NOT_TEARDOWN_RST, ct.tick)
        return row.cause
    timeout = <uint32_t>ct.tick + idle_ticks(all, p.key.proto)
    if unlikely(renewed or <int64_t><int32_t>(timeout - row.timeout) * ct.set.tick_ns > SECOND):
        row.timeout = timeout
        flow_ask(all, found >> 1, ASK_INSTALL)
    if unlikely(not row.flags & ROW_ASSURED):
        return NOT_ASSURED                  # so that it can become so
    if likely(ct.set.acct):
        entry.flow[dir].packets += 1
        entry.flow[dir].bytes += p.ip_len
    all.served += 1
    return OFFLOAD_SOFTWARE


include "flowtable_ends.pxi"


cdef dict hardware_counters(const Asks *asks):
    return {
        "hw_asks": asks.taken, "hw_asks_waiting": asks.count, "hw_asks_lost": asks.lost, "hw_answers_stale": asks.stale, "hw_packets": asks.packets,
        "hw_bytes": asks.bytes, "hw_packets_unsplit": asks.unsplit_packets, "hw_packets_late": asks.late_packets,
    }


# --- from Python ------------------------------------------------------------------------------------------------------------------------


@cython.no_gc_clear      # the collector of circles may not take the tracker away: the engine in it is told at the end
cdef class Flows:
    """A tracker's flow table. See flowtable.pyi."""

    def __cinit__(self, Tracker tracker not None):
        cdef FlowTable *all = &self.all
        cdef Engine *ct = &tracker.ct
        cdef size_t rows, heads, bits
        if ct.offloaded_gone != NULL:
            raise ValueError("flow table: expected a tracker that has none yet")
        memset(all, 0, sizeof(FlowTable))
        self.tracker = tracker
        all.engine = ct
        all.size = ct.pool.capacity
        all.n_heads = 8 << (all.size - 1).bit_length()      # most are empty: a new connection's tuples are looked up and not found
        rows, heads = all.size * sizeof(FlowRow), all.n_heads * sizeof(uint32_t)
        bits = (all.size + 63) // 64 * sizeof(uint64_t)
        self.size = (rows + bits + heads + all.size * sizeof(uint32_t) + 4095) & ~<size_t>4095
        all.row = <FlowRow *>map_memory(self.size)
        if all.row == NULL:
            raise MemoryError(f"no memory for a flow table of {all.size} connections")
        all.living = <uint64_t *>(all.row + all.size)
        all.head = <uint32_t *>(all.living + bits // sizeof(uint64_t))
        all.of = all.head + all.n_heads
        memset(all.head, 0xFF, heads)
        all.free = NO_ROW
        all.timeout = [tracker.config.flowtable_tcp_timeout * tracker.config.hz, tracker.config.flowtable_udp_timeout * tracker.config.hz]
        all.extends = tracker.config.flowtable_extends
        ct.offloaded_gone, ct.offloaded_who = connection_gone, all

    def __dealloc__(self):
        if self.all.row != NULL:
            self.all.engine.offloaded_gone, self.all.engine.offloaded_who = NULL, NULL
            unmap_memory(self.all.row, self.size)
        if self.all.asks != NULL:
            unmap_memory(self.asks_of.unsplit, self.asks_size)

    @property
    def count(self):
        return self.all.count

    @property
    def rows(self):
        return self.all.size

    def counters(self):
        """See flowtable.pyi."""
        cdef FlowTable *all = &self.all
        ended = {each.name.removeprefix("NOT_").lower(): all.torn_down[<int>each] for each in types.Offload if each.name.startswith("NOT_TEARDOWN_")}
        refused = {name: all.refused[number] for name, number in REFUSALS.items()}
        told = {"flows": all.count, "admitted": all.admitted, "served": all.served, **ended, **refused}
        return told if all.asks == NULL else {**told, **hardware_counters(all.asks)}

    # --- hardware -------------------------------------------------------------------------------------------------------------------------

    def mirrored(self, uint32_t capacity=65536):
        """See flowtable.pyi."""
        cdef Asks *asks = &self.asks_of
        cdef size_t unsplit = self.all.size * sizeof(Unsplit)
        if self.all.asks != NULL or not capacity:
            raise ValueError("flow table: expected one that is not mirrored yet, and room for an ask at least")
        self.asks_size = (unsplit + capacity * sizeof(Token) + 4095) & ~<size_t>4095
        asks.unsplit = <Unsplit *>map_memory(self.asks_size)
        if asks.unsplit == NULL:
            raise MemoryError(f"no memory for {capacity} asks of a flow table")
        asks.token, asks.size = <Token *>(<char *>asks.unsplit + unsplit), capacity
        asks.sweep = 0 if self.all.count else <uint32_t>NO_ROW
        self.all.asks = asks

    @property
    def due(self):
        cdef const Asks *asks = self.known_asks()
        if asks.count or asks.missed or asks.sweep != NO_ROW:
            return 0
        return self.all.next_round if self.all.count else NEVER

    def asks(self, uint32_t most=65536):
        """See flowtable.pyi."""
        cdef Asks *asks = self.known_asks()
        cdef uint32_t room
        room = most if asks.sweep != NO_ROW or asks.missed else min(most, asks.count)
        taken = np.empty(room, dtype=ASK_DTYPE)
        if room:
            taken = taken[:asks_take(&self.all, <FlowAsk *><size_t>taken.ctypes.data, room)]
        return taken

    def answer(self, answers not None):
        """See flowtable.pyi."""
        cdef const FlowAnswer *row = <const FlowAnswer *>rows_of(answers, ANSWER_DTYPE, "answers")
        cdef Py_ssize_t i
        self.known_asks()
        for i in range(len(answers)):
            flow_answer(&self.all, row + i)

    def advance(self, now):
        """See flowtable.pyi."""
        cdef int64_t time = now
        self.tracker.idle()
        if time >= self.all.next_round:
            flow_round(&self.all, self.all.engine, time)
        advance_clock(self.all.engine, time)

    def unsplit(self):
        """See flowtable.pyi."""
        cdef Asks *asks = self.known_asks()
        counted = np.array(<Unsplit[:self.all.engine.pool.used]>asks.unsplit) if self.all.engine.pool.used else np.empty(0, dtype=UNSPLIT_DTYPE)
        return counted[counted["packets"] > 0]

    cdef Asks *known_asks(self) except NULL:
        self.tracker.idle()
        if self.all.asks == NULL:
            raise ValueError("flow table: expected one that is mirrored")
        return self.all.asks

    # --- all of it ------------------------------------------------------------------------------------------------------------------------

    def flush(self):
        """See flowtable.pyi."""
        cdef uint32_t i = next_living(&self.all, 0)
        self.tracker.idle()
        while i != NO_ROW:
            flow_teardown(&self.all, self.all.engine, i, NOT_TEARDOWN_FLUSH, self.all.engine.tick)
            i = next_living(&self.all, i + 1)

    def keep(self, zones):
        """See flowtable.pyi."""
        cdef uint32_t i
        cdef uint8_t[::1] kept = np.zeros(1 << 16, dtype=np.uint8)
        self.tracker.idle()
        for zone in zones:
            kept[<int>zone] = 1
        i = next_living(&self.all, 0)
        while i != NO_ROW:
            if not kept[self.all.row[i].zone]:
                flow_teardown(&self.all, self.all.engine, i, NOT_TEARDOWN_FLUSH, self.all.engine.tick)
                leave(&self.all, self.all.engine, i)
            i = next_living(&self.all, i + 1)

    def check(self):
        """See flowtable.pyi."""
        cdef FlowTable *all = &self.all
        cdef FlowRow *row
        cdef uint32_t i = next_living(all, 0), live = 0, marked = 0, waiting = 0
        cdef int dir
        while i != NO_ROW:
            row = &all.row[i]
            live += 1
            for dir in range(2):
                if flow_find(all, all.engine, &row.key[dir]) != (i << 1 | dir):
                    raise AssertionError(f"row {i}: not in the chain of its tuple of direction {dir}")
            waiting += (row.hw & HW_WAITS << ASK_INSTALL != 0) + (row.hw & HW_WAITS << ASK_COUNTERS != 0) + (row.hw & HW_WAITS << ASK_REMOVE != 0)
            if not row.flags & ROW_TEARDOWN:
                marked += 1
                if not all.engine.pool.entry[row.conn].status & OFFLOAD or all.engine.pool.entry[row.conn].flow[ORIG].id != row.conn_id:
                    raise AssertionError(f"row {i}: connection {row.conn_id} has no OFFLOAD, or is another one")
            i = next_living(all, i + 1)
        if all.asks != NULL and waiting > all.asks.count:
            raise AssertionError(f"{waiting} asks wait by the marks of their rows, {all.asks.count} are there")
        if live != all.count:
            raise AssertionError(f"{live} rows live, {all.count} are counted")
        offloaded = int(np.count_nonzero(self.tracker.conns()["status"] & <int>OFFLOAD))
        if offloaded != marked:
            raise AssertionError(f"{offloaded} connections have OFFLOAD, {marked} rows serve some")

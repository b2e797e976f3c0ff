"""A tracker's state written: what later packets are judged by, in one piece of memory (state.pxd has its layout).

Theory of operation: connections are gathered by ordinal, so that chains whose order matters (sources of translation) come out as they were; what has
an order of its own (tunnels, expectations of an owner) carries its place in it. Nothing of the tracker changes.
Connections in the flow table are written as if they were handed back at this moment: without OFFLOAD, their windows to be learnt anew, and with no
more time than their state gives.
Not here: what is not saved because it is nobody's later on: packets' own connections that are not confirmed, events and evictions that wait to be
taken, counters.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

from ctcore.engine cimport Engine, ticks_left
from ctcore.expectations cimport Expectation
from ctcore.extensions cimport Extension
from ctcore.handback cimport handed_back
from ctcore.helpers.helper cimport HELPER_PPTP
from ctcore.lowlevel cimport prefetch
from ctcore.state cimport (
    CONN_WORDS, LONGEST_CONN, STATE_VERSION, TRANSLATES, StateConn, StateExpect, StateHeader, StateHelp, differ, mirrored, state_sum,
)
from ctcore.types cimport *

cdef enum:
    AHEAD = 12                  # connections, whose memory is asked for early

assert sizeof(StateConn) == 8 * CONN_WORDS and LONGEST_CONN == 8 * (CONN_WORDS + 1)
assert sizeof(StateHelp) % 8 == sizeof(StateExpect) % 8 == sizeof(StateHeader) % 8 == 0


# --- connections ------------------------------------------------------------------------------------------------------------------------


cdef object by_ordinal(const Engine *ct):
    """The slots of live connections, uint32[n], in the order of their ordinals."""
    cdef object slots = np.empty(ct.live, dtype=np.uint32), ids = np.empty(ct.live, dtype=np.int64)
    cdef uint32_t *slot = <uint32_t *><size_t>slots.ctypes.data
    cdef int64_t *id = <int64_t *><size_t>ids.ctypes.data
    cdef int64_t last = -1
    cdef uint32_t conn, n = 0
    cdef bint sorted = True
    with nogil:
        for conn in range(ct.pool.used):
            if ct.pool.entry[conn].live:
                slot[n], id[n] = conn, ct.pool.entry[conn].flow[ORIG].id
                sorted = sorted and id[n] > last
                last = id[n]
                n += 1
    return slots if sorted else slots[np.argsort(ids)]


cdef uint32_t describe(const Engine *ct, uint32_t conn, StateConn *out) noexcept nogil:
    """All that is saved of a connection but its helper. Returns the ticks it has left."""
    cdef const Entry *entry = &ct.pool.entry[conn]
    cdef uint32_t left = <uint32_t>ticks_left(ct, entry)
    cdef int64_t most
    cdef Key answers
    cdef int dir
    for dir in range(2):
        out.key[dir] = entry.flow[dir].key
        out.packets[dir], out.bytes[dir] = entry.flow[dir].packets, entry.flow[dir].bytes
        out.rule[dir] = ct.nat.link[conn].rule[dir] if ct.nat.rule != NULL else 0
        out.label[dir] = entry.label[dir]
    mirrored(&out.key[ORIG], &answers)
    differ(&out.key[REPLY], &answers)
    out.id, out.start, out.master = entry.flow[ORIG].id, entry.start, entry.master + 1
    out.l4 = entry.l4
    out.mark, out.status, out.expects, out.unused = entry.mark, entry.status, entry.cold & COLD_MASTER, 0
    if entry.status & OFFLOAD:
        out.status &= <uint16_t>~<uint16_t>(OFFLOAD | HW_OFFLOAD)
        most = handed_back(&ct.set, out.key[ORIG].proto, out.status, &out.l4)
        left = min(left, <uint32_t>most) if most >= 0 else left
    if out.key[ORIG].proto == PROTO_UDP:
        out.l4.udp.stream_ts -= ct.tick
    return left


cdef uint64_t *put_conns(const Engine *ct, const uint32_t *slot, uint32_t n, uint64_t *out) noexcept nogil:
    """Returns where the next part begins."""
    cdef StateConn conn
    cdef const uint64_t *word = <const uint64_t *>&conn
    cdef const char *memory
    cdef uint64_t head
    cdef uint64_t *next
    cdef uint32_t i
    cdef int k
    for i in range(n):
        if i + AHEAD < n:
            memory = <const char *>&ct.pool.entry[slot[i + AHEAD]]
            for k in range(4):
                prefetch(memory + 64 * k)
        head = <uint64_t>describe(ct, slot[i], &conn) << 32
        next = out + 1
        for k in range(CONN_WORDS):
            # Written in any case, and overwritten if it was 0: no branch to be foreseen.
            next[0] = word[k]
            next += word[k] != 0
            head |= <uint64_t>(word[k] != 0) << k
        out[0] = head
        out = next
    return out


# --- helpers, expectations, rules -------------------------------------------------------------------------------------------------------


cdef uint32_t older_tunnels(const Engine *ct, const Extension *ext, int dir) noexcept nogil:
    """How many of a tunnel's chain are older than it is: those behind it."""
    cdef uint32_t node = ext.memory.pptp.next[dir], n = 0
    while node:
        n += 1
        node = ct.ext.row[node >> 1].memory.pptp.next[node & 1]
    return n


cdef void *put_helped(const Engine *ct, const uint32_t *slot, uint32_t n, StateHelp *out, uint32_t *count) noexcept nogil:
    cdef const Extension *ext
    cdef uint32_t i
    cdef int dir
    for i in range(n):
        if not ct.pool.entry[slot[i]].cold & COLD_EXTENSION:
            continue
        ext = &ct.ext.row[ct.pool.entry[slot[i]].extension & EXTENSION_ROW]
        memset(out, 0, sizeof(StateHelp))
        out.conn, out.changes, out.helper, out.memory = i, ext.changes, ext.helper, ext.memory
        for dir in range(2):
            out.adjust[dir] = ext.adjust[dir]
            if ext.helper == HELPER_PPTP:
                out.memory.pptp.next[dir] = older_tunnels(ct, ext, dir) if ext.memory.pptp.known[dir] else 0
        out += 1
        count[0] += 1
    return out


cdef void put_expected(const Engine *ct, const Expectation *e, uint32_t master, StateExpect *out) noexcept nogil:
    cdef uint32_t row
    memset(out, 0, sizeof(StateExpect))
    memcpy(out.saved, e.saved, 16)
    out.key, out.master = e.key, master
    out.left = <uint32_t>max(<int64_t>(e.deadline - ct.tick), 0)
    out.saved_port, out.kind, out.dir, out.any_src, out.any_sport = e.saved_port, e.kind, e.dir, e.any_src, e.any_sport
    out.follow, out.helper, out.permanent, out.inactive, out.shared = e.follow, e.helper, e.permanent, e.inactive, e.shared
    if e.owner:
        out.owned = 1
        row = e.older
        while row != NO_CONN:
            out.owned += 1
            row = ct.expect.row[row].older


cdef uint32_t number_of(const Engine *ct, const uint32_t *slot, uint32_t n, uint32_t conn) noexcept nogil:
    """A live connection's place in the order of ordinals."""
    cdef int64_t id = ct.pool.entry[conn].flow[ORIG].id
    cdef uint32_t low = 0, high = n, middle
    while low < high:
        middle = low + (high - low) // 2
        if ct.pool.entry[slot[middle]].flow[ORIG].id < id:
            low = middle + 1
        else:
            high = middle
    return low


cdef list expected(const Engine *ct):
    """The rows to be saved, oldest first of each chain: those whose masters are confirmed."""
    cdef uint32_t chain, row
    found = []
    for chain in range(ct.expect.n_heads if ct.expect.count else 0):
        row = ct.expect.head[chain]
        while row != NO_CONN:
            if ct.pool.entry[ct.expect.row[row].master_conn].live:
                found.append(row)
            row = ct.expect.row[row].next
    return found[::-1]


cdef object state_save(const Engine *ct, object rules):
    """The state, as a read-only memoryview of bytes. rules: uint64[n], by which NAT rules are known again."""
    cdef object slots = by_ordinal(ct), memory
    cdef uint32_t *slot = <uint32_t *><size_t>slots.ctypes.data
    cdef uint32_t n = <uint32_t>len(slots), row
    cdef list rows = expected(ct)
    cdef size_t most = (sizeof(StateHeader) + <size_t>n * LONGEST_CONN + ct.ext.count * sizeof(StateHelp) + len(rows) * sizeof(StateExpect)
                        + len(rules) * 8)
    memory = np.empty(most, dtype=np.uint8)
    cdef char *base = <char *><size_t>memory.ctypes.data
    cdef char *at = base + sizeof(StateHeader)
    cdef StateHeader *header = <StateHeader *>base
    memset(header, 0, sizeof(StateHeader))
    memcpy(header.magic, b"ctmstate", 8)
    header.version, header.hz = STATE_VERSION, <uint32_t>(1_000_000_000 // ct.set.tick_ns)
    header.now, header.next_id, header.conns = ct.now, ct.next_id, n
    header.expected, header.rules = <uint32_t>len(rows), <uint32_t>len(rules)
    header.zone_dirs = ct.zones.dirs
    if ct.nat.rule != NULL:
        header.flags, header.nat_random = TRANSLATES, ct.nat.random
    with nogil:
        at = <char *>put_conns(ct, slot, n, <uint64_t *>at)
        at = <char *>put_helped(ct, slot, n, <StateHelp *>at, &header.helped)
    for row in rows:
        put_expected(ct, &ct.expect.row[row], number_of(ct, slot, n, ct.expect.row[row].master_conn), <StateExpect *>at)
        at += sizeof(StateExpect)
    for rule in rules:
        (<uint64_t *>at)[0] = rule
        at += 8
    header.size = <uint64_t>(at - base)
    with nogil:
        header.checksum = state_sum(header, <uint64_t *>(header + 1), (header.size - sizeof(StateHeader)) // 8)
    memory.flags.writeable = False
    return memoryview(memory)[:header.size]

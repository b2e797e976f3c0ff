"""Aim: what each packet of a batch will need, asked for before its turn comes.

Theory of operation: a stage for each memory access that waits for another one. A flow that is known: its bucket, its shortcut, its row in the flow
table, and of its connection the line of its direction, where it is accounted. One that will walk through the rules, if the first `ct` on its way is of
the same zone as the last packet's: the buckets of flow table and tracker, its row, its connection.
Invariants: nothing is changed but the aim; nothing that was found is believed before it has been compared (ruled, track).
Not here: what is done with it.
"""

from libc.stdint cimport uint8_t, uint32_t

from ctcore.engine cimport Engine
from ctcore.hashing cimport hash_of
from ctcore.lowlevel cimport likely, prefetch, prefetch_write
from ctcore.table cimport bucket_of, table_candidate
from ctcore.types cimport NO_CONN, NO_FLOW, OFFLOAD_NONE, Key, Packet
from datapath.flowtable cimport NO_ROW, FlowRow, flow_chain, flow_passes
from datapath.frame cimport Frame
from datapath.shortcut cimport NO_SHORTCUT, Shortcut, Shortcuts, home_of, shortcut_candidate


cdef void take_aim(Aim *aim, const uint8_t *memory, const Frame *frame, const Packet *row, int n, bint decided) noexcept nogil:
    """Find each packet's shortcut, and ask for what it will need.   Reads: hook.   Writes: hash, cut.   decided: each gets a decision."""
    cdef const Shortcuts *all = aim.cuts
    cdef const Shortcut *cut
    cdef const FlowRow *flow
    cdef Key key
    cdef int i
    for i in range(n):
        aim.cut[i] = NO_SHORTCUT
    if all == NULL:
        return
    aim.n_walks = 0
    for i in range(n):
        if likely(flow_passes(&row[i], memory + frame[i].offset + row[i].l3_off) == OFFLOAD_NONE):
            key = flow_key(&row[i].key, aim.hook[i])
            aim.hash[i] = hash_of(&aim.ct.hash_key, &key)
            aim.cut[i] = 0
            prefetch(&all.bucket[home_of(all, aim.hash[i])])
    for i in range(n):
        if likely(aim.cut[i] == 0):
            aim.cut[i] = shortcut_candidate(all, aim.hash[i])
            if likely(aim.cut[i] != NO_SHORTCUT):
                prefetch(&all.one[aim.cut[i]])
            else:
                aim.walks[aim.n_walks] = <uint8_t>i
                aim.n_walks += 1
    for i in range(n):
        if likely(aim.cut[i] != NO_SHORTCUT):
            prefetch(&aim.flows.row[all.one[aim.cut[i]].row[0] >> 1])
    for i in range(n):
        if likely(aim.cut[i] != NO_SHORTCUT):
            cut = &all.one[aim.cut[i]]
            flow = &aim.flows.row[cut.row[0] >> 1]
            prefetch_write(&aim.ct.pool.entry[flow.conn].flow[cut.row[0] & 1])
            if decided:                     # which tells of its timeout and status
                prefetch(&aim.ct.pool.entry[flow.conn].l4)
    if aim.n_walks:
        foresee(aim, row)


cdef void foresee(Aim *aim, const Packet *row) noexcept nogil:
    """For the packets that will have to walk."""
    cdef const Engine *ct = aim.ct
    cdef Key key
    cdef uint32_t at
    cdef int i
    for i in range(aim.n_walks):
        key = row[aim.walks[i]].key
        key.zone = aim.zone
        aim.guess[i] = hash_of(&ct.hash_key, &key)
        prefetch(flow_chain(aim.flows, aim.guess[i]))
        prefetch(&ct.table.bucket[bucket_of(&ct.table, aim.guess[i])])
    for i in range(aim.n_walks):
        at = flow_chain(aim.flows, aim.guess[i])[0]
        if at != NO_ROW:
            prefetch(&aim.flows.row[at >> 1])
            prefetch(&aim.flows.row[at >> 1].key[1])
    for i in range(aim.n_walks):
        at = flow_chain(aim.flows, aim.guess[i])[0]
        if at != NO_ROW:
            aim.guess[i] = aim.flows.row[at >> 1].conn
        else:
            at = table_candidate(&ct.table, aim.guess[i])
            aim.guess[i] = at >> 1 if at != NO_FLOW else <uint32_t>NO_CONN
        if aim.guess[i] != NO_CONN:
            prefetch_write(&ct.pool.entry[aim.guess[i]].flow[0])
            prefetch_write(&ct.pool.entry[aim.guess[i]].flow[1])
            prefetch_write(&ct.pool.entry[aim.guess[i]].l4)
            prefetch(&aim.flows.of[aim.guess[i]])

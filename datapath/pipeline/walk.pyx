"""The walk: one packet through the chains of a hook, rule by rule and action by action, without the GIL and without allocating anything.

The twin of interpret, which says in plain Python what is right; to the byte the same.
Theory of operation: the packet's fields are looked up in the chain (classify), the rule found is counted and its actions are done; then its control
says which chain or rule is next. The frame stays where it came from until an action changes it (draft); from then on it is parsed anew before the next
look-up. What mirred sends begins a level of its own on top of this one, with this one's bytes, and has ended before the next action: so few levels
are ever needed, and no queue.
One packet: chain 0 `dst_port 80: pedit dport 8080, goto 1` finds it, copies it, changes two bytes; chain 1 sees port 8080.
Invariants: at most MOST_TURNS chains at each of at most MOST_HOPS + 1 levels, and at most MOST_SENT of these begun in all; a level's bytes do not
change while a level above is at work; every rule found is counted once each time.
Not here: parsing the frame as it came (worker), what a rule is (program), sending.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

from ctcore.act cimport carry_nothing, ct_leave
from ctcore.fragments cimport Reassembler, fragments_release
from ctcore.lowlevel cimport likely, unlikely
from ctcore.tracker cimport Tracker
from ctcore.types cimport (
    ACCEPT, BATCH, DROP, HELD, N_REASONS, PENDING, R_FRAGMENT, R_OK, R_RULE_CHAINS, R_RULE_CUT, R_RULE_DROP, R_RULE_HOPS,
    R_RULE_POLICE, R_RULE_RESTORE, R_RULE_ROOM, Packet,
)
from datapath.frame cimport Frame, checked_frames
from datapath.pipeline.classify cimport NO_PLACE, classify
from datapath.pipeline.cut cimport PIECE_ROOM, Cutting, cut_begin, cut_next
from datapath.pipeline.draft cimport DRAFT_ROOM, ETHERNET, TAG, Draft, draft_begin, draft_csum, draft_pedit, draft_tagged, draft_vlan
from datapath.pipeline.level cimport MOST_HITS, MOST_HOPS, MOST_SENT, MOST_TURNS, Level, Result, Walking, look
from datapath.pipeline.outputs cimport OUTPUT_COPY, Output, output_add, outputs_free, outputs_reset
from datapath.pipeline.police cimport spent
from datapath.pipeline.program cimport (
    CONTROL_CONTINUE, CONTROL_DROP, CONTROL_GOTO, CONTROL_PASS, CONTROL_PIPE, NO_CHAIN, NO_RULE,
    OP_CSUM, OP_CT, OP_GACT, OP_MIRRED, OP_PEDIT, OP_POLICE, OP_SKBEDIT, OP_VLAN, Control, Count, Op, Program, Resume, Seat, Send,
)
from datapath.pipeline.track cimport carry_again, track
from datapath.pipeline.trail cimport trail_begin, trail_follows, trail_leaves_script, trail_next, trail_step
from datapath.wire cimport FRAGMENTS_GATHERED, parse

from ctcore.errors import ConfigError
from ctcore.types import DECISION_DTYPE
from datapath.pipeline.outputs import OUTPUT_DTYPE

RESULT_DTYPE = np.dtype([
    ("rule", "u4"), ("mark", "u4"), ("priority", "u4"), ("n_hits", "u4"), ("device", "u2"), ("egress", "u1"), ("hops", "u1"), ("verdict", "u1"),
    ("reason", "u1"), ("tracked", "u1"), ("pad", "u1"), ("decision", DECISION_DTYPE), ("hit", "u4", MOST_HITS),
])
assert RESULT_DTYPE.itemsize == sizeof(Result)

OUTPUT_BYTES = 1 << 30
cdef Control PASS = Control(NO_CHAIN, CONTROL_PASS)
cdef Control SHOT = Control(NO_CHAIN, CONTROL_DROP)


# --- actions ----------------------------------------------------------------------------------------------------------------------------


cdef inline uint8_t changed(Level *v, uint8_t reason) noexcept nogil:
    """After an action on the draft."""
    if v.draft.own:
        v.in_place = v.parsed = v.keyed = False
    return reason


cdef void fail(Level *v, uint8_t reason) noexcept nogil:
    v.verdict = DROP
    v.reason = reason


cdef void one_on(Walking *w, uint8_t at, const Send *send, const Draft *draft) noexcept nogil:
    """A frame to another hook, and through it."""
    cdef Level *v = &w.level[at]
    cdef Level *on = &w.level[at + 1]
    begin(on, send.hook, v.mark, v.priority)
    on.draft.data, on.draft.have, on.draft.missing = draft.data, draft.have, draft.missing
    on.draft.ethernet, on.draft.family, on.draft.l3, on.draft.own = v.draft.ethernet, v.draft.family, v.draft.l3, False
    on.copy = v.copy or not send.redirect
    on.packet, on.parsed, on.in_place = v.packet, v.parsed and draft.data == v.draft.data, v.in_place
    if send.redirect:
        on.decision, on.tracked = v.decision, v.tracked
    go(w, at + 1)


cdef inline void count_lost(Walking *w, const Level *on) noexcept nogil:
    """What is sent on and is not what becomes of the frame itself."""
    cdef const Level *end = &w.level[on.end]
    w.lost[end.reason] += end.verdict == DROP


cdef bint pieces_on(Walking *w, uint8_t at, const Send *send) noexcept nogil:
    """A datagram to another hook, cut up again. False: it cannot be."""
    cdef Level *v = &w.level[at]
    cdef Cutting cutting
    cdef Draft piece
    cdef bint first = True
    if not cut_begin(&cutting, &v.origin, &v.draft, v.piece):
        return False
    while cut_next(&cutting):
        if not first:
            count_lost(w, &w.level[at + 1])
        first = False
        piece.data, piece.have, piece.missing = v.piece, cutting.size, cutting.missing
        one_on(w, at, send, &piece)
    return True


cdef Control send_on(Walking *w, uint8_t at, const Op *op) noexcept nogil:
    """mirred: the frame's connection stays here, and comes to nothing before a redirected frame goes on."""
    cdef Level *v = &w.level[at]
    cdef const Send *send = &op.told.send
    cdef bint sent = True
    if at >= MOST_HOPS or w.sent >= MOST_SENT:
        fail(v, R_RULE_HOPS)
        return SHOT
    w.sent += 1
    if send.redirect and w.ct != NULL:
        ct_leave(w.ct, &v.carried)
    if unlikely(v.origin.whole != NULL):
        sent = pieces_on(w, at, send)
    else:
        one_on(w, at, send, &v.draft)
    if not send.redirect and sent:
        count_lost(w, &w.level[at + 1])
    elif not send.redirect:
        w.lost[<int>R_RULE_CUT] += 1
    elif sent:
        v.verdict = ACCEPT
        v.end = w.level[at + 1].end
    else:
        fail(v, R_RULE_CUT)
    return op.then


cdef Control track_on(Walking *w, uint8_t at, const Op *op) noexcept nogil:
    cdef Level *v = &w.level[at]
    cdef uint8_t reason = track(w, v, &w.rules.ask[op.told.ask])
    if unlikely(v.billed == 0):
        v.billed = bill(&v.draft)
    if reason != R_OK:
        fail(v, reason)
        if reason == R_FRAGMENT:
            v.verdict = HELD
    return op.then


cdef inline uint32_t bill(const Draft *d) noexcept nogil:
    """What policers count of a frame: the outermost tag lies beside a packet, in Linux."""
    return d.have + d.missing - (TAG if d.ethernet and draft_tagged(d) else 0)


cdef Control exceeded(Walking *w, Level *v, const Op *op) noexcept nogil:
    """A policer without a token."""
    trail_leaves_script(&w.trail)
    w.rules.count[v.rule].overlimits += 1
    if op.told.policed.exceed.kind == CONTROL_DROP:
        fail(v, R_RULE_POLICE)
    return op.told.policed.exceed


cdef Control act(Walking *w, uint8_t at, const Op *op) noexcept nogil:
    """One action; what is to follow it. A verdict of the level says that nothing does."""
    cdef Level *v = &w.level[at]
    cdef uint8_t reason = R_OK
    if op.kind == OP_CT:
        return track_on(w, at, op)
    if op.kind != OP_GACT and op.kind != OP_SKBEDIT and not (op.kind == OP_MIRRED and op.told.send.redirect):
        w.trail.plain = False
    if op.kind == OP_MIRRED:
        return send_on(w, at, op)
    if op.kind == OP_PEDIT:
        reason = changed(v, draft_pedit(&v.draft, w.rules.munge + op.told.munges.first, op.told.munges.n))
    elif op.kind == OP_CSUM:
        reason = changed(v, draft_csum(&v.draft, op.told.sums))
    elif op.kind == OP_VLAN:
        reason = changed(v, draft_vlan(&v.draft, &op.told.tag))
    elif op.kind == OP_SKBEDIT:
        v.mark = (v.mark & op.told.marks.kept) | op.told.marks.mark
        v.priority = op.told.marks.priority if op.told.marks.sets_priority else v.priority
    elif op.kind == OP_POLICE:
        if not spent(&w.rules.bucket[op.told.policed.bucket], v.billed, 0 if v.hook & 1 else ETHERNET if v.draft.ethernet else v.draft.l3, w.frame.ts):
            return exceeded(w, v, op)
    if unlikely(reason != R_OK):
        fail(v, reason)
    return op.then


cdef Control act_all(Walking *w, uint8_t at, const Seat *seat, uint32_t first) noexcept nogil:
    """A rule's actions from the `first` on, until one says something else than `pipe`. What pipes at the end passes, as in Linux."""
    cdef Control then
    cdef uint32_t i
    for i in range(seat.first + first, seat.first + seat.n):
        then = act(w, at, &w.rules.op[i])
        if w.level[at].verdict != PENDING or then.kind != CONTROL_PIPE:
            return then
    return PASS


# --- chains -----------------------------------------------------------------------------------------------------------------------------


cdef inline void begin(Level *v, uint32_t hook, uint32_t mark, uint32_t priority) noexcept nogil:
    v.hook, v.mark, v.priority = hook, mark, priority
    v.keyed = v.tracked = False
    v.verdict, v.reason = PENDING, R_OK
    v.origin.whole = NULL
    memset(&v.said, 0, sizeof(v.said))
    carry_nothing(&v.carried)


cdef inline void count(Walking *w, Level *v, uint32_t rule) noexcept nogil:
    cdef Count *c = &w.rules.count[rule]
    c.packets += 1
    c.bytes += <uint64_t>v.draft.have + v.draft.missing
    c.last = max(c.last, w.frame.ts)        # captures may go back in time
    if likely(w.result.n_hits < MOST_HITS):
        w.result.hit[w.result.n_hits] = rule
    w.result.n_hits += 1


cdef inline uint32_t find(Walking *w, Level *v, uint32_t chain, uint32_t least) noexcept nogil:
    """The place of the next rule of a chain that matches: as a walk before has found it, if there was one."""
    cdef uint32_t place
    if trail_follows(&w.trail):
        place = trail_next(&w.trail)
    else:
        if not v.keyed:
            look(w, v)
        place = classify(&w.rules.table, chain, &v.key, least)
    if w.trail.flows != NULL:
        trail_step(&w.trail, place)
    return place


cdef Control turn(Walking *w, uint8_t at, uint32_t chain, uint32_t place, uint32_t first) noexcept nogil:
    """A chain from a place on, rule by rule, until one says what is to follow. first: 0, or of the rule at the place, which has matched, its action."""
    cdef Level *v = &w.level[at]
    cdef const Seat *seat
    cdef Control then
    while chain != NO_CHAIN:
        if likely(not first):
            place = find(w, v, chain, place)
        if place == NO_PLACE:
            break
        seat = &w.rules.seat[w.rules.start[chain] + place]
        v.rule = seat.rule
        count(w, v, seat.rule)
        then = act_all(w, at, seat, first)
        if v.verdict != PENDING or then.kind != CONTROL_CONTINUE:
            return then
        place, first = seat.behind, 0
    v.rule = NO_RULE
    return PASS


cdef Control first_turn(Walking *w, uint8_t at, int *turns) noexcept nogil:
    """The hook's first chain; or where hardware has stopped."""
    cdef const Resume *resume = w.resume
    cdef Level *v = &w.level[at]
    if likely(resume == NULL):
        return turn(w, at, w.rules.first[v.hook], 0, 0)
    w.resume = NULL                     # of this frame; what it sends on begins as any other
    turns[0] = min(<int>resume.turns, MOST_TURNS - 1)
    v.mark, v.priority = resume.mark, resume.priority
    if resume.conn >= 0 and (w.ct == NULL or not carry_again(w, v, resume)):
        fail(v, R_RULE_RESTORE)
        return SHOT
    return turn(w, at, resume.chain, resume.place, resume.action)


cdef void all_turns(Walking *w, uint8_t at) noexcept nogil:
    """All chains of a level's hook, and what comes of it."""
    cdef Level *v = &w.level[at]
    cdef int turns = 0
    cdef Control then = first_turn(w, at, &turns)
    while v.verdict == PENDING and then.kind == CONTROL_GOTO and turns < MOST_TURNS - 1:
        turns += 1
        then = turn(w, at, then.chain, 0, 0)
    if v.verdict != PENDING:
        return
    if then.kind == CONTROL_GOTO:
        fail(v, R_RULE_CHAINS)
    elif then.kind == CONTROL_DROP:
        fail(v, R_RULE_DROP)
    else:
        v.verdict = ACCEPT
        leave(w, v)


cdef void go(Walking *w, uint8_t at) noexcept nogil:
    """A frame at a hook to its end there, whichever way."""
    cdef Level *v = &w.level[at]
    v.end = at
    v.billed = bill(&v.draft)
    all_turns(w, at)
    if v.verdict == DROP and v.rule != NO_RULE:
        w.rules.count[v.rule].drops += 1
    if w.ct != NULL:
        ct_leave(w.ct, &v.carried)


# --- leaving ----------------------------------------------------------------------------------------------------------------------------


cdef void put_out(Walking *w, Level *v, const uint8_t *data, uint32_t have, uint32_t missing) noexcept nogil:
    cdef Output *out
    if w.outputs == NULL:
        if unlikely(v.copy):
            w.mirrored[v.hook >> 1] += 1
        return
    out = output_add(w.outputs, data, have, not v.in_place)
    if unlikely(out == NULL):
        fail(v, R_RULE_ROOM)
        return
    if unlikely(v.copy):
        w.mirrored[v.hook >> 1] += 1
        out.flags |= OUTPUT_COPY
    if v.in_place:
        out.offset = w.frame.offset
    out.frame = w.row
    out.length = have + missing
    out.mark, out.priority = v.mark, v.priority
    out.device, out.egress = <uint16_t>(v.hook >> 1), v.hook & 1


cdef void leave(Walking *w, Level *v) noexcept nogil:
    """The frame passes: as it is, or cut up again."""
    cdef Cutting cutting
    if likely(v.origin.whole == NULL):
        put_out(w, v, v.draft.data, v.draft.have, v.draft.missing)
    elif not cut_begin(&cutting, &v.origin, &v.draft, v.piece):
        fail(v, R_RULE_CUT)
    else:
        while cut_next(&cutting):
            put_out(w, v, v.piece, cutting.size, cutting.missing)


cdef void walk(Walking *w, const uint8_t *memory, const Frame *frame, const Packet *packet, uint32_t hook, Result *result) noexcept nogil:
    """A frame that comes to a hook.   Reads: the frame; w.row, packet.   Writes: result; counters, buckets, w.lost; outputs, where asked for.

    packet: what parse() made of the frame, with w.settings.
    """
    cdef Level *v = &w.level[0]
    w.frame, w.result = frame, result
    result.n_hits = w.sent = 0
    w.gathers = False
    trail_begin(&w.trail)
    if unlikely(w.resume != NULL):
        w.trail.lasting = False             # it tells of a part of the way only
    begin(v, hook, 0, 0)
    v.copy = False
    draft_begin(&v.draft, memory, frame, packet)
    v.packet, v.parsed, v.in_place = packet, True, True
    go(w, 0)
    if unlikely(w.fragments != NULL and w.fragments.finished.reserved):
        fragments_release(w.fragments)
    result.hops = v.end
    v = &w.level[v.end]
    w.trail.untouched = v.in_place
    result.rule, result.mark, result.priority = v.rule, v.mark, v.priority
    result.device, result.egress = <uint16_t>(v.hook >> 1), v.hook & 1
    result.verdict, result.reason, result.tracked = v.verdict, v.reason, v.tracked
    if v.tracked:
        result.decision = v.decision


# --- from Python ------------------------------------------------------------------------------------------------------------------------


cdef class Walker:
    """See walk.pyi."""

    def __init__(self, Program program not None, Tracker tracker=None, *, size_t output_bytes=OUTPUT_BYTES, Walker before=None):
        cdef int i
        cdef uint8_t *room
        if self.rooms is not None:
            raise RuntimeError("walker: was set up already: expected one of its own for each program")
        self.program, self.tracker = program, tracker
        self.rooms = np.empty((MOST_HOPS + 1) * (DRAFT_ROOM + PIECE_ROOM), dtype=np.uint8)      # touched only where something is changed
        memset(&self.walking, 0, sizeof(Walking))
        for i in range(MOST_HOPS + 1):
            room = <uint8_t *><size_t>self.rooms.ctypes.data + <size_t>i * (DRAFT_ROOM + PIECE_ROOM)
            self.walking.level[i].draft.room, self.walking.level[i].piece = room, room + DRAFT_ROOM
        self.copies = np.zeros(len(program.devices), dtype=np.uint64)
        self.walking.mirrored = <uint64_t *><size_t>self.copies.ctypes.data
        self.walking.rules = &program.code
        self.walking.settings.fragments, self.walking.settings.at_hook = FRAGMENTS_GATHERED, True
        self.all.most = output_bytes
        self.earlier = {}
        if before is not None:
            self._go_on(before)
        if program.tracks:
            self._track(tracker)

    def _go_on(self, Walker before):
        """What outlives rules: fragments wait in their zone for the rest of the datagram (in Linux in the netns, of which rules are no part)."""
        if before.reassembler is not None and before.tracker is not self.tracker:
            raise ValueError("walker: expected the tracker of the one before")
        self.reassembler, self.earlier = before.reassembler, before.mirrored()
        self.walking.gathered = before.walking.gathered
        memcpy(self.walking.lost, before.walking.lost, sizeof(self.walking.lost))

    def _track(self, Tracker tracker):
        if tracker is None:
            raise ValueError("rules: a ct action: expected a tracker")
        config, wanted = tracker.config, self.program.config
        if config.nat != wanted.nat or config.nat_actions < wanted.nat_actions or config.helper_actions < wanted.helper_actions:
            raise ConfigError("tracker: expected one with the settings of the program (Program.config)")
        if self.reassembler is None:
            self.reassembler = Reassembler(config)
        self.walking.ct, self.walking.fragments = &tracker.ct, &self.reassembler.all
        self.walking.settings.checksum = config.checksum
        self.walking.settings.nat = len(config.nat) > 0 or config.nat_actions

    def __dealloc__(self):
        outputs_free(&self.all)

    def run(self, const uint8_t[::1] memory not None, frames not None, hooks, *, bint outputs=True):
        cdef const Frame *frame = checked_frames(memory, frames)
        cdef Py_ssize_t n = len(frames), i
        cdef const uint32_t[::1] hook = self._hooks(hooks, n)
        cdef Result *result
        cdef const uint8_t *base = &memory[0] if memory.shape[0] else NULL
        results = np.zeros(n, dtype=RESULT_DTYPE)
        result = <Result *><size_t>results.ctypes.data
        if self.walking.ct != NULL:
            self.tracker.enter()
        self.walking.outputs = &self.all if outputs else NULL
        outputs_reset(&self.all)
        with nogil:
            walk_all(&self.walking, base, frame, n, &hook[0] if n else NULL, result)
        if self.walking.ct != NULL:
            self.tracker.busy = False
        return results

    def _hooks(self, hooks, n):
        """A hook for each frame."""
        if not isinstance(hooks, np.ndarray):
            return np.full(n, self.program.hook(hooks), dtype=np.uint32)
        if hooks.shape != (n,) or (n and not 0 <= hooks.min() <= hooks.max() < self.program.code.n_hooks):
            raise ValueError(f"hooks: expected {n} numbers from 0 to {self.program.code.n_hooks - 1}")
        return np.ascontiguousarray(hooks, dtype=np.uint32)

    def outputs(self):
        """What left because of the last run()."""
        rows, data = np.empty(self.all.n, dtype=OUTPUT_DTYPE), np.empty(self.all.used, dtype=np.uint8)
        if self.all.n:
            memcpy(<void *><size_t>rows.ctypes.data, self.all.row, self.all.n * sizeof(Output))
        if self.all.used:
            memcpy(<void *><size_t>data.ctypes.data, self.all.memory, self.all.used)
        return rows, data

    def check(self):
        if self.walking.ct != NULL and self.tracker.ct.pool.carried:
            raise AssertionError(f"{self.tracker.ct.pool.carried} connections are carried, and no packet is on its way")

    def mirrored(self):
        counts = dict(self.earlier)
        for device, count in zip(self.program.devices, self.copies.tolist(), strict=True):
            if count:
                counts[device] = counts.get(device, 0) + count
        return counts

    def lost(self):
        return np.array(self.walking.lost, dtype=np.uint64)[:N_REASONS]


cdef void walk_all(
    Walking *w, const uint8_t *memory, const Frame *frame, Py_ssize_t n, const uint32_t *hook, Result *result
) noexcept nogil:
    """Frames in batches: all of one are parsed before the first of them begins its walk."""
    cdef Packet[BATCH] row
    cdef Py_ssize_t start = 0
    cdef int k, i
    while start < n:
        k = <int>min(n - start, <Py_ssize_t>BATCH)
        parse(&w.settings, memory, frame + start, k, row)
        for i in range(k):
            w.row = <uint32_t>(start + i)
            walk(w, memory, frame + start + i, &row[i], hook[start + i], result + start + i)
        start += k

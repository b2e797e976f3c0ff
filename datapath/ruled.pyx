"""The worker of a pipeline of rules: a packet's way through parser, flow table and rules, one batch at a time.

    parse -> aim (which flow is it?) -> a shortcut, or a walk through the rules -> sum up

Theory of operation: what a packet's flow did before is looked up for the whole batch, so that memory has arrived when it is needed. A flow with a
shortcut whose connections are all in the flow table does as before: served, counted, done. All others walk; a walk that another one of the same flow
would repeat leaves a shortcut.
Where more comes in than can walk, whoever runs it says how many may (walks), and the rest is dropped: first comes what the flow table knows.
Invariants: with and without the flow table the same packets pass and leave with the same bytes, but for what the offload contract says otherwise.
Not here: asking for memory ahead (aim), what rules do (walk), which connections are in the flow table (flowtable), captures without rules (worker).
"""

cimport cython
import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ctcore.batch cimport Batch
from ctcore.decision cimport with_conn
from ctcore.engine cimport Engine
from ctcore.lifetime cimport advance_clock
from ctcore.lowlevel cimport likely, unlikely
from ctcore.table cimport same_key
from ctcore.tracker cimport Tracker
from ctcore.types cimport (
    ACCEPT, BATCH, DROP, ESTABLISHED, FIN, N_REASONS, NOT_SEEN, NO_DIR, NO_L4STATE, OFFLOAD_NONE, OFFLOAD_SOFTWARE, PENDING, PROTO_TCP, R_OK,
    R_OVERLOAD, R_RULE_DROP, RST, Decision, Key, Packet,
)
from datapath.aim cimport flow_key, take_aim
from datapath.flowtable cimport NO_ROW, ROW_ASSURED, ROW_TEARDOWN, FlowRow, Flows, FlowTable, flow_passes, flow_round, flow_serve
from datapath.frame cimport Frame, checked_frames
from datapath.link cimport LINKTYPE_ETHERNET
from datapath.pipeline.flower cimport FLOWER_WORDS, FlowerKey, flower_key
from datapath.pipeline.level cimport MOST_HITS, Result, Walking
from datapath.pipeline.outputs cimport Output, output_add, outputs_reset
from datapath.pipeline.program cimport NO_RULE, Program, Resume
from datapath.pipeline.trail cimport MOST_CTS, Trail
from datapath.pipeline.walk cimport Walker, walk
from datapath.shortcut cimport (
    NO_SHORTCUT, Cuts, Plan, Shortcut, Shortcuts, plan_intern, shortcut_find, shortcut_set,
)
from datapath.wire cimport parse
from datapath.worker cimport gathered_by, sum_up, summary_begin, summary_of

from ctcore.config import Config
from ctcore.types import DECISION_DTYPE, KEY_DTYPE
from datapath.pipeline.program import RESUME_DTYPE
from datapath.pipeline.walk import RESULT_DTYPE

cdef enum:
    ETHERNET = 14               # bytes of a header without tags
    TWO_TAGS = 22               # the most that is compared; a third one may show when others are popped


@cython.final
cdef class RulePipeline:
    """Frames through rules. See ruled.pyi."""

    def __init__(self, ruleset, config=None, *, devices=(), bint flowtable=True, Program beside=None):
        config = Config() if config is None else config
        program = Program(ruleset, devices, config, seed=config.seed, beside=beside)
        self.tracker = Tracker(program.config)
        self.flows = Flows(self.tracker) if flowtable else None
        self.cuts = Cuts(2 * self.tracker.config.capacity, self.tracker) if flowtable else None
        self.aim.ct = &self.tracker.ct
        if flowtable:
            self.aim.flows, self.aim.cuts = &self.flows.all, &self.cuts.all
        self.batch = Batch(BATCH)
        self.walks = ALL_WALK
        summary_begin(&self.sums)
        self.put_in(program)

    cdef int put_in(self, Program program) except -1:
        self.walker = Walker(program, self.tracker, before=self.walker)
        self.program = program
        if self.flows is not None:
            self.walker.walking.trail.flows = &self.flows.all
            self.cuts.look_at(program)
        self.hooks = np.zeros(1, dtype=np.uint32)
        self.loaded += 1

    def compiled(self, ruleset, *, devices=(), Program beside=None):
        """See ruled.pyi."""
        return Program(ruleset, devices, self.tracker.config, seed=self.tracker.config.seed, beside=beside)

    def load(self, ruleset, *, devices=()):
        """See ruled.pyi."""
        self.take(self.compiled(ruleset, devices=devices))

    def take(self, Program program not None):
        """See ruled.pyi."""
        self.tracker.idle()
        if program.tracks:
            self.tracker.widen(program.config)
        self.put_in(program)
        if self.flows is not None:
            self.flows.keep(program.zones)

    def arrive(self, hooks):
        """See ruled.pyi."""
        self.tracker.idle()
        numbers = np.array([self.program.hook(hook) for hook in hooks], dtype=np.uint32)
        if not len(numbers):
            raise ValueError("hooks: expected one for each interface, one at least")
        self.hooks = numbers

    def process(
        self, const uint8_t[::1] memory not None, frames not None, *, bint decisions=True, bint keys=False, bint results=False, bint outputs=False,
        resumes=None,
    ):
        """See ruled.pyi."""
        cdef Wanted wanted
        cdef Py_ssize_t n = len(frames)
        cdef const Frame *frame = checked_frames(memory, frames)
        cdef const uint8_t *base = &memory[0] if memory.shape[0] else NULL
        memset(&wanted, 0, sizeof(Wanted))
        if resumes is not None:
            wanted.resumes = checked_resumes(resumes, n)
        decided = np.empty(n, dtype=DECISION_DTYPE) if decisions else None
        found = np.empty(n, dtype=KEY_DTYPE) if keys else None
        told = np.zeros(n, dtype=RESULT_DTYPE) if results else None
        if decisions:
            wanted.decisions = <Decision *><size_t>decided.ctypes.data
        if keys:
            wanted.keys = <Key *><size_t>found.ctypes.data
        if results:
            wanted.results = <Result *><size_t>told.ctypes.data
        self.tracker.enter()
        self.walker.walking.outputs = &self.walker.all if outputs else NULL
        outputs_reset(&self.walker.all)
        with nogil:
            self.run(base, frame, n, &wanted)
        self.tracker.busy = False
        return decided, found, told

    def outputs(self):
        """See ruled.pyi."""
        self.tracker.idle()
        return self.walker.outputs()

    def summary(self):
        """See ruled.pyi."""
        cdef int reason
        gathered = {} if self.walker.reassembler is None else gathered_by(self.walker.reassembler, self.tracker.ct.now)
        told = summary_of(&self.sums)
        packets, first = told["reason_packets"], told["reason_first"]
        for reason in range(<int>N_REASONS):
            if self.covered[reason]:
                packets[reason] += self.covered[reason]
                first[reason] = min(first[reason], self.covered_first[reason]) if first[reason] >= 0 else self.covered_first[reason]
        return {**told, "fragments": gathered}

    def counters(self):
        """See ruled.pyi."""
        counts = self.program.counters()
        if self.cuts is not None:
            self.cuts.add_to(counts)
        return counts

    def count(self, reason):
        """See ruled.pyi."""
        return self.sums.reason_packets[<int>reason] + self.covered[<int>reason]

    def shortcuts(self):
        """See ruled.pyi."""
        return {"plans": 0, "flows": 0, "hits": 0} if self.cuts is None else self.cuts.counters()

    # --- the straight line ----------------------------------------------------------------------------------------------------------------

    cdef void run(self, const uint8_t *memory, const Frame *frame, Py_ssize_t n, const Wanted *wanted) noexcept nogil:
        cdef Packet *row = self.batch.row
        cdef Walking *w = &self.walker.walking
        cdef Result scratch
        cdef Result *result
        cdef Decision unseen
        cdef Decision *decision
        cdef Py_ssize_t start = 0
        cdef uint32_t last = <uint32_t>self.hooks.shape[0] - 1
        cdef int k, i
        if self.sums.total_packets == 0 and n:
            self.sums.first_ts = self.sums.last_ts = frame[0].ts
        while start < n:
            k = <int>min(n - start, <Py_ssize_t>BATCH)
            parse(&w.settings, memory, frame + start, k, row)
            for i in range(k):
                self.aim.hook[i] = self.hooks[min(frame[start + i].iface, last)]
            take_aim(&self.aim, memory, frame + start, row, k, wanted.decisions != NULL)
            for i in range(k):
                result = &scratch if wanted.results == NULL else wanted.results + start + i
                decision = &unseen if wanted.decisions == NULL else wanted.decisions + start + i
                w.row = <uint32_t>(start + i)
                self.tick(row[i].now)
                if unlikely(wanted.resumes != NULL and wanted.resumes[start + i].on):
                    if likely(self.walks == ALL_WALK) or not self.stays_out(memory, frame + start + i, &row[i], i, wanted.resumes + start + i, result, decision):
                        w.resume = wanted.resumes + start + i
                        self.long_way(memory, frame + start + i, &row[i], i, result, decision)
                elif not self.short_way(memory, frame + start + i, &row[i], i, result, decision, wanted.decisions != NULL) and not self.turned_away(
                    &row[i], i, result, decision
                ):
                    self.long_way(memory, frame + start + i, &row[i], i, result, decision)
                row[i].state, row[i].verdict, row[i].reason = decision.state, result.verdict, decision.reason
            sum_up(&self.sums, row, frame + start, k)
            if wanted.keys != NULL:
                for i in range(k):
                    wanted.keys[start + i] = row[i].key
            start += k

    cdef inline void tick(self, int64_t now) noexcept nogil:
        """Time goes on: what is due once a second in the flow table comes before what the tracker lets expire."""
        cdef Engine *ct = &self.tracker.ct
        if self.flows is not None and unlikely(now >= self.flows.all.next_round):
            flow_round(&self.flows.all, ct, now)
        advance_clock(ct, now)

    # --- the short way --------------------------------------------------------------------------------------------------------------------

    cdef bint short_way(
        self, const uint8_t *memory, const Frame *frame, Packet *p, int i, Result *result, Decision *decision, bint decided
    ) noexcept nogil:
        """Do as the flow did before. False: it has to walk."""
        cdef Shortcuts *all
        cdef const Shortcut *cut
        cdef Plan *plan
        cdef Trail *trail
        cdef uint32_t length
        if self.aim.cut[i] == NO_SHORTCUT:
            return False
        all = &self.cuts.all
        cut = self.matching(memory, frame, p, i)
        if cut == NULL:
            return False
        plan = &all.plan[cut.plan >> 1]
        all.hits += 1
        if unlikely(not plan.plain) or (self.walker.walking.outputs != NULL and not self.put_out(frame, p, i, plan)):
            trail = &self.walker.walking.trail
            trail.script, trail.n_script = plan.step, plan.n_steps
            self.long_way(memory, frame, p, i, result, decision)
            trail.script = NULL
            return True
        self.serve(p, cut, decision, decided)
        length = max(frame.len, frame.caplen)
        plan.packets += 1
        plan.bytes += length
        plan.behind += length - min(length, p.l3_off + p.ip_len)
        plan.last = max(plan.last, frame.ts)
        result[0] = plan.result
        decision.verdict, decision.reason = result.verdict, result.reason
        return True

    cdef inline bint put_out(self, const Frame *frame, const Packet *p, int i, const Plan *plan) noexcept nogil:
        """The frame leaves as it came, but for what `ct` cuts off behind the IP packet. False: it does not, or there is no memory left."""
        cdef const Result *result = &plan.result
        cdef Output *out
        cdef uint32_t length = p.l3_off + p.ip_len, whole = max(frame.len, frame.caplen)
        if result.verdict != ACCEPT:
            return True
        if not plan.untouched:
            return False
        out = output_add(self.walker.walking.outputs, NULL, min(frame.caplen, length), False)
        if unlikely(out == NULL):
            return False
        out.offset, out.frame, out.length = frame.offset, self.walker.walking.row, min(whole, length)
        out.mark, out.priority = result.mark, result.priority
        out.device, out.egress = result.device, result.egress
        return True

    cdef const Shortcut *matching(self, const uint8_t *memory, const Frame *frame, const Packet *p, int i) noexcept nogil:
        """The packet's shortcut, if it still says what is true; or NULL."""
        cdef Shortcuts *all = &self.cuts.all
        cdef const Shortcut *cut = &all.one[self.aim.cut[i]]
        cdef const FlowRow *row
        cdef Key key
        cdef int j
        if unlikely(p.l3_off > TWO_TAGS or (p.key.proto == PROTO_TCP and p.tcp_flags & (FIN | RST))):
            return NULL
        key = flow_key(&p.key, self.aim.hook[i])
        if unlikely(not same_key(&cut.key, &key)):
            self.aim.cut[i] = shortcut_find(all, self.aim.hash[i], &key)
            if self.aim.cut[i] == NO_SHORTCUT:
                return NULL
            cut = &all.one[self.aim.cut[i]]
        if unlikely(cut.epoch != self.epoch()):
            return NULL
        for j in range(MOST_CTS):
            if cut.row[j] == NO_ROW:
                break
            row = &self.flows.all.row[cut.row[j] >> 1]
            if unlikely(row.serial != cut.serial[j] or row.flags & ROW_TEARDOWN or not row.flags & ROW_ASSURED):
                return NULL
        if unlikely(cut.plan & 1 or p.l3_off != ETHERNET) and not self.same_fields(memory, frame, p, cut):
            return NULL
        return cut

    cdef inline uint32_t epoch(self) noexcept nogil:
        """Counts what may change the rules' mind about a flow: other rules, and other marks and labels."""
        return self.loaded + <uint32_t>self.tracker.ct.offloaded_changes

    cdef bint same_fields(self, const uint8_t *memory, const Frame *frame, const Packet *p, const Shortcut *cut) noexcept nogil:
        """Whether the fields that rules look at, beside the tuple, are what they were."""
        cdef FlowerKey fields
        cdef const uint64_t *then = <const uint64_t *>&self.cuts.all.fields[cut - self.cuts.all.one]
        cdef const uint64_t *now = <const uint64_t *>&fields
        cdef int i
        if not cut.plan & 1:
            return False
        self.read_fields(memory, frame, p, &fields)
        for i in range(FLOWER_WORDS):
            if now[i] != then[i]:
                return False
        return True

    cdef void read_fields(self, const uint8_t *memory, const Frame *frame, const Packet *p, FlowerKey *fields) noexcept nogil:
        cdef const uint64_t *mask = <const uint64_t *>&self.cuts.all.mask
        cdef uint64_t *word = <uint64_t *>fields
        cdef int i
        flower_key(memory + frame.offset, frame.caplen, frame.link == LINKTYPE_ETHERNET, p.key.family, p.l3_off, fields)
        for i in range(FLOWER_WORDS):
            word[i] &= mask[i]

    cdef void serve(self, const Packet *p, const Shortcut *cut, Decision *decision, bint decided) noexcept nogil:
        """All connections of a packet are alive, and it is neither FIN nor RST: the flow table serves it, as often as a walk would ask it."""
        cdef Engine *ct = &self.tracker.ct
        cdef FlowTable *flows = &self.flows.all
        cdef Packet seen
        cdef uint32_t row = cut.row[0]
        cdef int j
        for j in range(MOST_CTS):
            if cut.row[j] == NO_ROW:
                break
            row = cut.row[j]
            flow_serve(flows, ct, p, row)
        decision.state = ESTABLISHED
        if decided:
            seen = p[0]
            seen.state, seen.key.zone = ESTABLISHED, flows.row[row >> 1].zone
            with_conn(ct, &ct.pool.entry[flows.row[row >> 1].conn], &seen, row & 1, decision)
            decision.offload = OFFLOAD_SOFTWARE

    # --- the long way ---------------------------------------------------------------------------------------------------------------------

    cdef void long_way(self, const uint8_t *memory, const Frame *frame, Packet *p, int i, Result *result, Decision *decision) noexcept nogil:
        """Through the rules, and if the next packet of the flow would go the same way, remember it."""
        cdef uint32_t epoch = self.epoch()
        walk(&self.walker.walking, memory, frame, p, self.aim.hook[i], result)
        if unlikely(self.walker.walking.gathers):
            p.key = self.walker.walking.datagram    # a fragment has no ports, and what it completes has
        if result.tracked:
            decision[0] = result.decision
            self.aim.zone = decision.zone
        else:
            never_tracked(p, decision)
        decision.verdict = result.verdict
        if result.reason != R_OK:
            if result.tracked and decision.reason != R_OK and decision.reason != result.reason:
                self.cover(decision.reason, i)
            decision.reason = result.reason
        if not self.walker.walking.trail.lasting or not self.walker.walking.trail.n_cts or self.walker.walking.trail.script != NULL:
            return
        if epoch == self.epoch():               # else it has set a mark, which the next packet will have from the beginning
            self.remember(memory, frame, p, i, result)

    cdef void cover(self, uint8_t reason, int i) noexcept nogil:
        """Count what `ct` said of the packet of row i, which the rules did something else to."""
        if self.covered[reason] == 0:
            self.covered_first[reason] = <int64_t>self.sums.total_packets + i
        self.covered[reason] += 1

    cdef inline bint turned_away(self, const Packet *p, int i, Result *result, Decision *decision) noexcept nogil:
        """True: no more may walk, and the packet is dropped. What is not tracked is few and cheap, and connections need it (ARP)."""
        if likely(self.walks == ALL_WALK) or self.flows is None or p.verdict != PENDING:
            return False
        if self.walks:
            self.walks -= 1
            return False
        memset(result, 0, sizeof(Result))
        result.rule, result.device, result.egress = NO_RULE, <uint16_t>(self.aim.hook[i] >> 1), self.aim.hook[i] & 1
        result.verdict, result.reason = DROP, R_OVERLOAD
        never_tracked(p, decision)
        decision.verdict, decision.reason = DROP, R_OVERLOAD
        return True

    cdef bint stays_out(
        self, const uint8_t *memory, const Frame *frame, const Packet *p, int i, const Resume *resume, Result *result, Decision *decision
    ) noexcept nogil:
        """The same of a packet that hardware has begun with: it goes on if hardware knew its connection, or the flow table does."""
        if resume.conn >= 0 or (self.aim.cut[i] != NO_SHORTCUT and self.matching(memory, frame, p, i) != NULL):
            return False
        return self.turned_away(p, i, result, decision)

    cdef void remember(self, const uint8_t *memory, const Frame *frame, const Packet *p, int i, const Result *result) noexcept nogil:
        cdef const Trail *trail = &self.walker.walking.trail
        cdef Shortcut draft
        cdef FlowerKey fields
        cdef bint exact = self.cuts.all.exact or p.l3_off != ETHERNET
        cdef int j
        if flow_passes(p, memory + frame.offset + p.l3_off) != OFFLOAD_NONE or result.n_hits > MOST_HITS or p.l3_off > TWO_TAGS:
            return
        if result.reason != R_OK and result.reason != R_RULE_DROP:
            return
        draft.key = flow_key(&p.key, self.aim.hook[i])
        for j in range(MOST_CTS):
            draft.row[j] = trail.row[j] if j < trail.n_cts else <uint32_t>NO_ROW
            draft.serial[j] = self.flows.all.row[trail.row[j] >> 1].serial if j < trail.n_cts else 0
        draft.plan, draft.epoch = self.plan_of(trail, result) << 1 | exact, self.epoch()
        if exact:
            self.read_fields(memory, frame, p, &fields)
        shortcut_set(&self.cuts.all, self.aim.hash[i], &draft, &fields)

    cdef uint32_t plan_of(self, const Trail *trail, const Result *result) noexcept nogil:
        cdef Plan draft
        cdef uint32_t j
        memset(&draft, 0, sizeof(Plan))
        draft.result = result[0]
        memset(&draft.result.decision, 0, sizeof(Decision))
        draft.plain, draft.untouched, draft.n_steps, draft.whole = trail.plain, trail.untouched, trail.n_steps, trail.whole
        for j in range(trail.n_steps):
            draft.step[j] = trail.step[j]
        return plan_intern(&self.cuts.all, &draft)


cdef const Resume *checked_resumes(object resumes, Py_ssize_t n) except? NULL:
    """Safe: that many rows, one after the other."""
    if resumes.dtype != RESUME_DTYPE or resumes.shape != (n,) or not resumes.flags.c_contiguous:
        raise ValueError(f"resumes: expected RESUME_DTYPE[{n}], contiguous")
    return <const Resume *><size_t>resumes.ctypes.data


cdef inline void never_tracked(const Packet *p, Decision *d) noexcept nogil:
    """No rule has asked for tracking."""
    memset(d, 0, sizeof(Decision))
    d.conn = d.timeout = -1
    d.state, d.dir, d.l4state = NOT_SEEN, NO_DIR, NO_L4STATE
    d.proto, d.family = p.key.proto, p.key.family
    # What a tracker would have held against it nobody has asked for.
    d.reason = p.reason if p.verdict != PENDING and p.state == NOT_SEEN else <uint8_t>R_OK

"""The mirror of what hardware holds: what it should have of each flow, what it has, and the commands that lead from one to the other.

Theory of operation: asks of a flow table, replies of hardware and the time come in as arrays; commands and answers go out as arrays. A flow has one
job at most: to add rules, to destroy them, or to count. Another one that is asked for meanwhile is dropped and counted, since the flow table asks
again (A3.21); that a flow is going is remembered, and an install that hardware has not heard of is called off. Commands wait in the ring of their
kind until hardware takes them, and are made up then. Those it has are in one list, the oldest first, which is how overdue answers are found.
One flow: INSTALL -> REPLACE of both directions -> 0, 0 -> INSTALLED; COUNTERS -> STATS of one, then of the other -> COUNTED; REMOVE -> DESTROY of
both -> REMOVED. Hardware that is full refuses: the flow lives on in software, and is tried again later and later; or another one makes room.
After a reset everything is desired again, and put back a piece with each call.
A rule whose REPLACE got no answer is in doubt, and is destroyed before anything else is done. Answers later than that may be taken for another's
of the same rule; audit() finds what came of it.
Invariants (check): at most two rules a flow; each command in a ring is of a job of its kind that waits for it; the gauges are what a count says.
Source: net/netfilter/nf_flow_table_offload.c; contract A3, A4, A8.
Not here: which flows are to be in hardware (flow table), hardware (backend), who carries the arrays (pump).
"""

cimport cython
import numpy as np

from libc.errno cimport EEXIST, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, ETIMEDOUT
from libc.math cimport exp, fmin
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from ctcore.flow_changes cimport (
    ANSWER_COUNTED, ANSWER_INSTALLED, ANSWER_PENDING, ANSWER_REFUSED, ANSWER_REMOVED, ASK_COUNTERS, ASK_INSTALL, ASK_REMOVE, FLOW_BIDIRECTIONAL,
    FLOW_ESTABLISHED, FLOW_SEEN_REPLY, FLOW_SPLIT, FlowAnswer, FlowAsk, rows_of,
)
from ctcore.lowlevel cimport first_bit, prefetch_write
from ctcore.pool cimport map_memory, unmap_memory
from ctcore.table cimport same_key
from ctcore.types cimport ORIG, PROTO_TCP, PROTO_UDP, REPLY, Key
from offload.records cimport CT_ESTABLISHED, CT_ESTABLISHED_REPLY, CT_NEW, OP_DESTROY, OP_GONE, OP_REPLACE, OP_STATS, Command, Reply

from enum import IntEnum

from ctcore.errors import ConfigError
from ctcore.flow_changes import ANSWER_DTYPE, ASK_DTYPE
from offload.contract.why import Why, of_error
from offload.mirror_settings import POLICIES, MirrorSettings
from offload.records import COMMAND_DTYPE, REPLY_DTYPE, Ctinfo

cdef enum:
    FOUND_EXTRA = 1             # hardware has a rule that it should not have
    FOUND_MISSING = 2
    FOUND_DIFFERENT = 3
    AHEAD = 8                   # rows that are fetched before they are needed
    MOST_ANSWERS = 4            # that one ask, reply or overdue job leads to
    MEMORY_MS = 4000            # of a rate
    BUDGET = 4096               # rows that advance() looks at
    MOST_WORDS = 4096           # of marks, 64 rows each, that a search for one to evict goes through
    N_ERRORS = 256              # beyond those that Linux has

cdef int64_t NEVER = 0x7FFFFFFFFFFFFFFF

assert sizeof(Mirrored) == 160

Job = IntEnum("Job", {"NONE": NO_JOB, "ADD": JOB_ADD, "DEL": JOB_DEL, "STATS": JOB_STATS}, module=__name__)
Found = IntEnum("Found", {"EXTRA": FOUND_EXTRA, "MISSING": FOUND_MISSING, "DIFFERENT": FOUND_DIFFERENT}, module=__name__)
AUDIT_DTYPE = np.dtype([("cookie", "u8"), ("row", "u4"), ("dir", "u1"), ("found", "u1"), ("pad", "u1", 2)])
BYTES_PER_FLOW = sizeof(Mirrored) + 3 * sizeof(uint32_t) + 0.125
JOBS = {JOB_ADD: "add", JOB_DEL: "del", JOB_STATS: "stats"}
OUTCOMES = ("done", "existed", "missing", "full", "unsupported", "other", "lost")
assert len(OUTCOMES) == N_OUTCOMES

cdef uint8_t[4] OPS = [0, OP_REPLACE, OP_DESTROY, OP_STATS]
cdef uint8_t[3] FIRST = [JOB_STATS, JOB_DEL, JOB_ADD]       # in which order their commands are given

include "mirror_jobs.pxi"


cdef inline void fetch(const Mirrored *row) noexcept nogil:
    prefetch_write(row)
    prefetch_write(<const char *>row + 64)
    prefetch_write(<const char *>row + 128)


# --- asks -------------------------------------------------------------------------------------------------------------------------------


cdef inline bint translated(const Key *a, const Key *b) noexcept nogil:
    """Whether b is another tuple than the inverse of a."""
    return (
        a.src[0] != b.dst[0] or a.src[1] != b.dst[1] or a.dst[0] != b.src[0] or a.dst[1] != b.src[1] or a.sport != b.dport or a.dport != b.sport
    )


cdef void measure(State *m, Mirrored *row, uint64_t more) noexcept nogil:
    """So many bytes more than before. The rate forgets as e**(-t/4 s): right for lumps of any distance, and low for what has just begun."""
    cdef uint32_t now = <uint32_t>(m.now // 1_000_000)
    cdef double passed = <double>(now - row.measured) / MEMORY_MS
    row.bytes += more
    row.rate = <float>(row.rate * exp(-fmin(passed, 60.0)) + <double>more * 1000.0 / MEMORY_MS)
    row.measured = now


cdef void settle(State *m, uint32_t number) noexcept nogil:
    """A flow that does not know of hardware's last reset: nothing of it is there, and it is put back, or it is gone."""
    cdef Mirrored *row = &m.row[number]
    cdef bint had = installed(row) != 0
    if row.epoch == m.epoch or not row.flags & KNOWN:
        return
    row.epoch = m.epoch
    row.held[ORIG] = row.held[REPLY] = 0
    row.job, row.waits, row.queued, row.doubt, row.error, row.tries, row.due = NO_JOB, 0, 0, 0, 0, 0, 0
    row.next = row.prev = NONE
    row.flags &= ~<uint16_t>(LEAVING | WAITING | EVICTED)
    if row.flags & GOING:
        depart(m, number)
        return
    if had:
        say_state(m, number)
    install(m, number, True)


cdef void install(State *m, uint32_t number, bint own) noexcept nogil:
    """A flow without a job gets the rules that it lacks. own: nobody has asked for that."""
    cdef Mirrored *row = &m.row[number]
    cdef uint8_t dirs = needed(row), proto = row.key[ORIG].proto
    if not dirs:
        say_state(m, number)
    elif proto != PROTO_TCP and proto != PROTO_UDP and translated(&row.key[ORIG], &row.key[REPLY]):
        row.error = EOPNOTSUPP          # A4.32
        m.tally.refused_unsupported += 1
        say_state(m, number)
    elif own:
        begin_own(m, number, JOB_ADD, dirs)
    elif m.full_until > m.now and not installed(row):
        row.error = ENOSPC              # as it would say
        m.tally.kept_out += 1
        back_off(m, row)
        say_state(m, number)
        make_room(m, number)
    else:
        begin(m, number, JOB_ADD, dirs)


cdef void meet(State *m, const FlowAsk *ask) noexcept nogil:
    """A flow that was not known."""
    cdef Mirrored *row = &m.row[ask.row]
    memset(row, 0, sizeof(Mirrored))
    row.key[ORIG], row.key[REPLY] = ask.key[ORIG], ask.key[REPLY]
    row.conn, row.serial, row.epoch, row.flags, row.bytes = ask.conn, ask.serial, m.epoch, KNOWN, ask.bytes
    row.measured = <uint32_t>(m.now // 1_000_000)
    row.next = row.prev = NONE
    m.used = max(m.used, ask.row + 1)
    m.known += 1


cdef void asked_install(State *m, const FlowAsk *ask) noexcept nogil:
    cdef Mirrored *row = &m.row[ask.row]
    if ask.bytes > row.bytes:
        measure(m, row, ask.bytes - row.bytes)
    if row.flags & GOING:
        m.tally.strange += 1
        return
    if row.job != NO_JOB:
        m.tally.dropped[JOB_ADD] += 1   # A3.21
        return
    if row.due > m.now:
        m.tally.held_back += 1
        say_state(m, ask.row)
        return
    wait_no_more(m, ask.row)
    row.label[0], row.label[1], row.mark = ask.label[0], ask.label[1], ask.mark
    if ask.flags & FLOW_BIDIRECTIONAL:
        row.flags |= BIDIRECTIONAL
    if ask.flags & FLOW_SEEN_REPLY:
        row.flags |= SEEN_REPLY
    install(m, ask.row, False)


cdef void asked_counters(State *m, const FlowAsk *ask) noexcept nogil:
    cdef Mirrored *row = &m.row[ask.row]
    if row.job != NO_JOB:
        m.tally.dropped[JOB_STATS] += 1
    elif not installed(row):
        say_state(m, ask.row)
    else:
        begin(m, ask.row, JOB_STATS, 1 if row.held[ORIG] else 2)


cdef void asked_remove(State *m, const FlowAsk *ask) noexcept nogil:
    cdef Mirrored *row = &m.row[ask.row]
    wait_no_more(m, ask.row)
    if row.job != NO_JOB:
        row.flags |= GOING
        m.tally.dropped[JOB_DEL] += 1   # and begun when the other one ends
        call_off(m, ask.row)
    elif row.due <= m.now or not row.flags & GOING:
        row.flags |= GOING
        depart(m, ask.row)
    else:
        say_state(m, ask.row)           # hardware has refused that, and it is not time yet
    row.flags |= GOING if row.flags & KNOWN else 0


cdef void asked(State *m, const FlowAsk *ask) noexcept nogil:
    if ask.row >= m.size or ask.ask < ASK_INSTALL or ask.ask > ASK_REMOVE:
        m.tally.strange += 1
        return
    settle(m, ask.row)
    if not m.row[ask.row].flags & KNOWN:
        if ask.ask != ASK_INSTALL:
            say(m, ask.row, ask.serial, ANSWER_REMOVED if ask.ask == ASK_REMOVE else ANSWER_REFUSED)
            return
        meet(m, ask)
    elif m.row[ask.row].serial != ask.serial:
        m.tally.strange += 1            # a row may not be another's before it was told that its rules are gone
        return
    if ask.ask == ASK_INSTALL:
        asked_install(m, ask)
    elif ask.ask == ASK_COUNTERS:
        asked_counters(m, ask)
    else:
        asked_remove(m, ask)


include "mirror_replies.pxi"


# --- time -------------------------------------------------------------------------------------------------------------------------------


cdef void overdue(State *m, uint32_t number) noexcept nogil:
    """Hardware has not answered in time: ask again, and in the end destroy whatever has come of it."""
    cdef Mirrored *row = &m.row[number]
    cdef uint8_t late = row.waits & ~row.queued, n = (late & 1) + (late >> 1)
    unlink(m, &m.sent, number)
    m.outstanding[row.job] -= n
    m.tally.lost += n
    m.tally.came[row.job][<int>LOST] += n
    row.lost += row.lost < 255
    if row.job == JOB_DEL or row.queued or (row.job == JOB_ADD and row.lost < m.tries):
        enqueue(m, number, late)
        call_off(m, number)
        return
    row.waits = 0
    if row.job == JOB_ADD:
        row.doubt |= late
        row.error = ETIMEDOUT
    else:
        say(m, number, row.serial, ANSWER_COUNTED)      # nothing is known
    finish(m, number)


cdef void forget_hardware(State *m) noexcept nogil:
    """Hardware has begun anew: nothing that was asked is answered any more."""
    cdef int job
    m.epoch += 1
    m.rules = m.offloaded = 0
    memset(m.outstanding, 0, sizeof(m.outstanding))
    memset(m.offered, 0, sizeof(m.offered))
    for job in range(N_JOBS):
        m.ring[job].first = m.ring[job].count = m.ring[job].commands = 0
    memset(m.pending, 0, sizeof(m.pending))
    memset(m.holding, 0, (m.size + 63) // 64 * sizeof(uint64_t))
    m.sent.head = m.sent.tail = m.waiting.head = m.waiting.tail = NONE
    m.sweep, m.full_until = 0, 0
    m.tally.resets += 1


include "mirror_commands.pxi"
include "mirror_told.pxi"


# --- from Python ------------------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Mirror:
    """See mirror.pyi."""

    def __cinit__(self, uint32_t flows, settings=None):
        cdef State *m = &self.all
        cdef int job
        cdef size_t rows = flows * sizeof(Mirrored), bits = (<size_t>flows + 63) // 64 * sizeof(uint64_t)
        if not 0 < flows < 1 << 31:
            raise ConfigError(f"flows = {flows}: expected a number from 1 to {(1 << 31) - 1}")
        settings = MirrorSettings() if settings is None else settings
        memset(m, 0, sizeof(State))
        self.settings, self.resets = settings, -1
        self.memory = (rows + bits + 3 * <size_t>flows * sizeof(uint32_t) + 4095) & ~<size_t>4095
        m.row = <Mirrored *>map_memory(self.memory)
        if m.row == NULL:
            raise MemoryError(f"no memory for the mirror of {flows} flows")
        m.holding = <uint64_t *>(m.row + flows)
        for job in range(JOB_ADD, N_JOBS):
            m.ring[job].row = <uint32_t *>(<char *>m.holding + bits) + <size_t>(job - JOB_ADD) * flows
        m.size = flows
        m.sweep = m.sent.head = m.sent.tail = m.waiting.head = m.waiting.tail = NONE
        m.limit, m.probe = <int64_t>(settings.reply_limit * 1e9), <int64_t>(settings.probe * 1e9)
        m.backoff, m.backoff_most = <int64_t>(settings.backoff * 1e9), <int64_t>(settings.backoff_most * 1e9)
        m.clearly, m.policy = settings.clearly, POLICIES.index(settings.policy)
        m.window, m.look, m.tries = settings.window, settings.look, settings.tries

    def __dealloc__(self):
        unmap_memory(self.all.row, self.memory)
        free(self.all.answer)

    cdef int reserve(self, size_t rows) except -1:
        """Room for what so many asks, replies or rows may lead to."""
        cdef State *m = &self.all
        cdef size_t room = m.answers + MOST_ANSWERS * rows
        cdef FlowAnswer *more
        if room > m.room:
            room = max(room, 2 * <size_t>m.room)
            more = <FlowAnswer *>realloc(m.answer, room * sizeof(FlowAnswer))
            if more == NULL:
                raise MemoryError(f"no memory for {room} answers to a flow table")
            m.answer, m.room = more, <uint32_t>room
        return 0

    def feed(self, asks, now):
        """See mirror.pyi."""
        cdef const FlowAsk *ask = <const FlowAsk *>rows_of(asks, ASK_DTYPE, "asks")
        cdef Py_ssize_t i, n = len(asks)
        cdef State *m = &self.all
        self.reserve(n)
        m.now = max(m.now, <int64_t>now)
        with nogil:
            for i in range(n):
                if i + AHEAD < n and ask[i + AHEAD].row < m.size:
                    fetch(&m.row[ask[i + AHEAD].row])
                asked(m, &ask[i])

    def replies(self, rows, now):
        """See mirror.pyi."""
        cdef const Reply *reply = <const Reply *>rows_of(rows, REPLY_DTYPE, "replies")
        cdef Py_ssize_t i, n = len(rows)
        cdef State *m = &self.all
        self.reserve(n)
        m.now = max(m.now, <int64_t>now)
        with nogil:
            for i in range(n):
                if i + AHEAD < n and <uint32_t>(reply[i + AHEAD].cookie >> 1) < m.size:
                    fetch(&m.row[<uint32_t>(reply[i + AHEAD].cookie >> 1)])
                replied(m, &reply[i])

    def advance(self, now):
        """See mirror.pyi."""
        cdef State *m = &self.all
        cdef int left = BUDGET
        self.reserve(2 * BUDGET)
        m.now = max(m.now, <int64_t>now)
        with nogil:
            while left and m.sent.head != NONE and m.row[m.sent.head].due <= m.now:
                overdue(m, m.sent.head)
                left -= 1
            left = BUDGET
            while left and m.sweep != NONE:
                if m.sweep >= m.used:
                    m.sweep = NONE
                    break
                settle(m, m.sweep)
                m.sweep += 1
                left -= 1

    def reset(self, now):
        """See mirror.pyi."""
        self.all.now = max(self.all.now, <int64_t>now)
        forget_hardware(&self.all)

    def commands(self, uint32_t most=BUDGET):
        """See mirror.pyi."""
        cdef State *m = &self.all
        cdef uint32_t n = offer(m, most)
        cdef int i
        made = np.empty(n, dtype=COMMAND_DTYPE)
        cdef Command *c = <Command *><size_t>made.ctypes.data
        with nogil:
            for i in range(3):
                commands_from(m, &m.ring[<int>FIRST[i]], m.offered[<int>FIRST[i]], c)
                c += m.offered[<int>FIRST[i]]
        return made

    def sent(self, uint32_t n, now):
        """See mirror.pyi."""
        cdef State *m = &self.all
        cdef int i
        if n > sum_of(m.offered):
            raise ValueError(f"sent: expected at most the {sum_of(m.offered)} commands that were given, not {n}")
        m.now = max(m.now, <int64_t>now)
        with nogil:
            for i in range(3):
                while n and m.offered[<int>FIRST[i]]:
                    taken(m, FIRST[i])
                    m.offered[<int>FIRST[i]] -= 1
                    n -= 1
        memset(m.offered, 0, sizeof(m.offered))

    def answers(self):
        """See mirror.pyi."""
        cdef State *m = &self.all
        told = np.empty(m.answers, dtype=ANSWER_DTYPE)
        if m.answers:
            memcpy(<void *><size_t>told.ctypes.data, m.answer, m.answers * sizeof(FlowAnswer))
        m.answers = 0
        return told

    @property
    def size(self):
        return self.all.size

    @property
    def flows(self):
        return self.all.known

    @property
    def outstanding(self):
        return sum_of(self.all.outstanding)

    @property
    def waiting(self):
        return commands_of(&self.all)

    @property
    def due(self):
        cdef const State *m = &self.all
        if commands_of(m) or m.answers or m.sweep != NONE:
            return 0
        return m.row[m.sent.head].due if m.sent.head != NONE else NEVER

    def counters(self):
        """See mirror.pyi."""
        return counters_of(&self.all)

    def why(self, uint32_t row):
        """See mirror.pyi."""
        return why_of(&self.all, row)

    def reasons(self, rows=None):
        """See mirror.pyi."""
        return reasons_of(&self.all, 0 if rows is None else rows.start, self.all.used if rows is None else min(rows.stop, self.all.used))

    @property
    def used(self):
        return self.all.used

    def audit(self, held):
        """See mirror.pyi."""
        return audit_of(&self.all, held)

    def check(self):
        """See mirror.pyi."""
        check_all(&self.all)

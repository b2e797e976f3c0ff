"""The worker: a packet's straight line through the datapath, one batch at a time.

    parse -> (defragment) -> hash -> find -> track -> rewrite (where asked for) -> sum up

Each stage works on the whole batch before the next one starts, so that what one asked the memory for has arrived when the next needs it.
The same holds for a capture's bytes: replay() has a source hand over its frames batch by batch, as the scan finds them.
Not here: where frames come from and go to (capture, sink), what is shown to people (report).
"""

import time

import numpy as np

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset

from ctcore.batch cimport Batch
from ctcore.fragments cimport Reassembler, fragments_expire, fragments_release
from ctcore.edits cimport edits_reset
from ctcore.lowlevel cimport unlikely
from ctcore.track cimport find_rows, hash_rows, track_rows
from ctcore.tracker cimport Tracker
from ctcore.types cimport (
    BATCH, DROP, HELD, N_REASONS, N_STATES, LARGEST_BATCH, R_OK, REWRITE_DST, REWRITE_SRC, Decision, Key, Packet, Rewrite,
)
from ctcore.types import DECISION_DTYPE, KEY_DTYPE, REWRITE_DTYPE
from datapath.capture cimport PcapSource
from datapath.defragment cimport Gathering, datagrams_of, defragment
from datapath.frame cimport Frame, Taker, checked_frames
from datapath.rewrite cimport rewrite_rows
from datapath.wire cimport FRAGMENTS_GATHERED, FRAGMENTS_PASSED, ParseSettings, parse

from ctcore.config import Config
from ctcore.errors import ConfigError
from datapath.leave import leaving

assert N_REASONS <= 96 and N_STATES == 6

CLOCKS = ("capture", "wall")


cdef void sum_up(Summary *s, const Packet *row, const Frame *frames, int n) noexcept nogil:
    """Count the batch.   Reads: state, verdict, reason, wire_len, now; the frames' captured lengths."""
    cdef int i
    cdef const Packet *p
    for i in range(n):
        p = &row[i]
        s.packets[p.state] += 1
        s.bytes[p.state] += p.wire_len
        if unlikely(p.reason != R_OK):
            if s.reason_packets[p.reason] == 0:
                s.reason_first[p.reason] = <int64_t>s.total_packets + i
            s.reason_packets[p.reason] += 1
            s.dropped += p.verdict == DROP
            s.held += p.verdict == HELD
        s.total_bytes += p.wire_len
        s.snapped += frames[i].caplen < frames[i].len
        if unlikely(frames[i].ts < s.last_ts):
            s.backwards += 1
            s.first_ts = min(s.first_ts, frames[i].ts)
        else:
            s.last_ts = frames[i].ts
    s.total_packets += n


cdef void summary_begin(Summary *s) noexcept nogil:
    memset(s, 0, sizeof(Summary))
    memset(s.reason_first, 0xFF, sizeof(s.reason_first))


cdef dict summary_of(Summary *s):
    """As NumPy arrays and numbers; see Pipeline.summary in worker.pyi."""
    s.reason_packets[<int>R_OK] = s.total_packets - sum([s.reason_packets[i] for i in range(1, <int>N_REASONS)])
    return {
        "packets": np.array(s.packets, dtype=np.uint64), "bytes": np.array(s.bytes, dtype=np.uint64),
        "reason_packets": np.array(s.reason_packets, dtype=np.uint64)[:N_REASONS],
        "reason_first": np.array(s.reason_first, dtype=np.int64)[:N_REASONS],
        "dropped": s.dropped, "held": s.held, "backwards": s.backwards, "snapped": s.snapped, "translated": s.translated,
        "total_packets": s.total_packets, "total_bytes": s.total_bytes, "first_ts": s.first_ts, "last_ts": s.last_ts,
    }


cdef dict gathered_by(Reassembler reassembler, int64_t now):
    """Counters of reassembly: what has expired by now (ns) is waiting no more."""
    fragments_expire(&reassembler.all, <uint64_t>(max(now, 0) // reassembler.all.tick_ns))
    return {**reassembler.counters(), "waiting": sum(reassembler.waiting())}


cdef void count_translated(Summary *s, const Rewrite *rewrites, int n) noexcept nogil:
    cdef int i
    for i in range(n):
        s.translated += (rewrites[i].flags & (REWRITE_SRC | REWRITE_DST)) != 0


cdef class Pipeline(Taker):
    """Parser and tracker, put together. See worker.pyi."""
    cdef readonly Tracker tracker
    cdef readonly Reassembler reassembler
    cdef readonly object clock
    cdef Batch batch
    cdef ParseSettings settings
    cdef Summary sums
    cdef readonly bint translates
    cdef object room            # for the rewrites of one batch, which nobody else may want to have
    cdef Rewrite *rewrites
    cdef uint64_t first         # number of the last call's first packet

    def __init__(self, config=None, *, zone=0, clock="capture", int batch=BATCH):
        if self.tracker is not None:
            raise RuntimeError("pipeline: was set up already: expected one of its own for each run")
        config = Config() if config is None else config
        if not isinstance(config, Config):
            raise ConfigError(f"config = {config!r}: expected a Config")
        if not 0 <= zone <= 0xFFFF:
            raise ConfigError(f"zone = {zone}: expected 0 to 65535")
        if clock not in CLOCKS:
            raise ConfigError(f"clock = {clock}: expected {' or '.join(CLOCKS)}")
        if not 1 <= batch <= LARGEST_BATCH:
            raise ConfigError(f"batch = {batch}: expected 1 to {<int>LARGEST_BATCH}")
        self.clock = clock
        self.batch = Batch(batch)
        self.settings.zone = zone
        self.settings.checksum = config.checksum
        self.settings.nat = len(config.nat) > 0
        self.translates = len(config.nat) > 0
        self.room = np.zeros(batch, dtype=REWRITE_DTYPE)
        self.rewrites = <Rewrite *><size_t>self.room.ctypes.data
        self.settings.fragments = FRAGMENTS_GATHERED
        self.reassembler = Reassembler(config)
        summary_begin(&self.sums)
        self.tracker = Tracker(config)      # last: who has a tracker has all the rest

    cdef int ready(self) except -1:
        if self.tracker is None:
            raise ValueError("pipeline: was never set up: a subclass has to call Pipeline.__init__")
        return self.tracker.idle()

    def process(self, const uint8_t[::1] memory not None, frames not None, *, bint decisions=True, bint keys=False, bint rewrites=False):
        """Run frames through all stages; see worker.pyi."""
        cdef Asked asked
        memset(&asked, 0, sizeof(Asked))
        decided = np.empty(len(frames), dtype=DECISION_DTYPE) if decisions else None
        found = np.empty(len(frames), dtype=KEY_DTYPE) if keys else None
        told = np.zeros(len(frames), dtype=REWRITE_DTYPE) if rewrites and self.translates else None
        if decisions:
            asked.decisions = <Decision *><size_t>decided.ctypes.data
        if keys:
            asked.keys = <Key *><size_t>found.ctypes.data
        if told is not None:
            asked.rewrites = <Rewrite *><size_t>told.ctypes.data
        self.go(memory, frames, &asked)
        if rewrites:
            return decided, found, told
        return (decided, found) if keys else decided

    def forward(self, uint8_t[::1] memory not None, frames not None, *, bint decisions=True):
        """Run frames through all stages and change those that pass where they lie; see worker.pyi."""
        cdef Asked asked
        if self.tracker is not None and self.tracker.config.helpers:
            raise ConfigError("forward: expected no helpers: frames that they make longer have no room")
        memset(&asked, 0, sizeof(Asked))
        decided = np.empty(len(frames), dtype=DECISION_DTYPE) if decisions else None
        if decisions:
            asked.decisions = <Decision *><size_t>decided.ctypes.data
        if memory.shape[0]:
            asked.memory = &memory[0]
        self.go(memory, frames, &asked)
        return decided

    def leaving(self, memory, frames, decisions, rewrites=None, edits=None):
        """What leaves because of the frames of the last process(); see worker.pyi."""
        return leaving(memory, frames, decisions, rewrites, edits, self.datagrams())

    cdef int go(self, const uint8_t[::1] memory, object frames, const Asked *asked) except -1:
        """The checks, then the straight line without the GIL."""
        cdef Py_ssize_t n = len(frames)
        cdef const Frame *frame
        cdef int64_t wall = time.time_ns() if self.clock == "wall" else 0
        self.ready()
        frame = checked_frames(memory, frames)
        if n == 0:
            return 0
        self.tracker.enter()
        with nogil:
            self.run(&memory[0] if memory.shape[0] else NULL, frame, n, wall, asked)
        self.tracker.busy = False
        return 0

    def replay(self, PcapSource source not None, n):
        """Read frames and run them through all stages; see worker.pyi."""
        self.ready()
        if self.clock == "wall":            # what is waited for has the time of its arrival
            memory, frames = source.read(n)
            self.process(memory, frames, decisions=False)
            return memory, frames
        self.tracker.enter()
        try:
            return source.hand(n, self)
        finally:
            self.tracker.busy = False

    cdef void take(self, const uint8_t *memory, const Frame *frames, int n) noexcept nogil:
        """A batch out of a source that replay() reads."""
        cdef Asked nothing
        memset(&nothing, 0, sizeof(Asked))
        if n > 0:
            self.run(memory, frames, n, 0, &nothing)

    cdef void start(self, const Frame *first) noexcept nogil:
        """What only the frames before had, goes."""
        edits_reset(&self.tracker.ct.edits)
        fragments_release(&self.reassembler.all)
        self.first = self.sums.total_packets
        if self.sums.total_packets == 0:
            self.sums.first_ts = self.sums.last_ts = first.ts

    cdef void run(self, const uint8_t *memory, const Frame *frame, Py_ssize_t n, int64_t wall, const Asked *asked) noexcept nogil:
        """The straight line, of one frame at least. wall: ns to use instead of the frames' own time, or 0."""
        cdef Packet *row = self.batch.row
        cdef Rewrite *rewrites
        cdef Py_ssize_t start = 0
        cdef bint fragments
        cdef int k, i
        self.start(frame)
        while start < n:
            k = <int>min(n - start, <Py_ssize_t>self.batch.capacity)
            rewrites = asked.rewrites + start if asked.rewrites != NULL else self.rewrites if self.translates else NULL
            fragments = parse(&self.settings, memory, frame + start, k, row)
            if unlikely(wall != 0):
                for i in range(k):
                    row[i].now = wall
            if unlikely(fragments):
                self.gather(memory, frame + start, n - start, row, k)
            hash_rows(&self.tracker.ct, row, k)
            find_rows(&self.tracker.ct, row, k)
            track_rows(&self.tracker.ct, row, k, NULL if asked.decisions == NULL else asked.decisions + start, rewrites)
            if rewrites != NULL:
                count_translated(&self.sums, rewrites, k)
                if asked.memory != NULL:
                    rewrite_rows(asked.memory, frame + start, row, rewrites, k)
            sum_up(&self.sums, row, frame + start, k)
            if asked.keys != NULL:
                for i in range(k):
                    asked.keys[start + i] = row[i].key
            start += k

    cdef void gather(self, const uint8_t *memory, const Frame *frames, Py_ssize_t left, Packet *row, int n) noexcept nogil:
        """Reassembly, of a batch that has fragments. frames: of the batch and what comes behind it in this call, `left` of them."""
        cdef Gathering g
        g.all = &self.reassembler.all
        g.first_link = False
        g.settings = self.settings
        g.settings.fragments = FRAGMENTS_PASSED
        g.now = self.tracker.ct.now
        g.memory = memory
        g.frames = frames
        g.left = left
        g.number = self.sums.total_packets
        defragment(&g, row, n)

    def datagrams(self):
        """What the last process() put together; see worker.pyi."""
        self.ready()
        return datagrams_of(&self.reassembler.all, self.first, self.settings.checksum)

    def fragments(self):
        """Counters of reassembly; see worker.pyi."""
        self.ready()
        return gathered_by(self.reassembler, self.tracker.ct.now)

    def count(self, reason):
        """How many packets had this reason; see worker.pyi."""
        return self.sums.reason_packets[<int>reason]

    def summary(self):
        """What was counted so far; see worker.pyi."""
        return {**summary_of(&self.sums), "fragments": {} if self.reassembler is None else self.fragments()}

"""A worker's loop: frames from its ifaces, through the rules, to its ifaces, as long as it is told to.

    receive -> pipeline -> place what leaves in chunks -> send -> tidy

Theory of operation: a frame lies in a chunk of the memory that all ifaces share, and what leaves untouched leaves in it: nothing is copied. What rules
changed lies in the pipeline's memory, and is copied into its frame's own chunk, which nobody needs any more. Only further copies of a frame (mirrors,
pieces of a datagram) take chunks from the pool. All that do not leave give theirs back.
One frame: chunk 7 arrives at eth0, a rule redirects it to eth1: chunk 7 is handed to eth1, and comes back to the pool when the kernel has sent it.
Invariants: each received chunk is handed to an iface or given back in the round in which it came. No frame is lost without a counter. Python has its
turn between two calls of run() only, so nobody changes rules or tables under a packet.
Not here: opening ifaces and loading rules (node), what rules do (ruled), jobs from outside (worker).
"""

import os

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ctcore.lowlevel cimport likely, unlikely
from datapath.live.iface cimport Iface, wall_ns
from datapath.live.partial cimport complete
from datapath.live.umem cimport HELD, pool_give, pool_take
from datapath.pipeline.outputs cimport OUTPUT_CHANGED, Output, Outputs, outputs_reset
from datapath.ruled cimport RulePipeline

from datapath.pipeline.rules import Hook

cdef extern from "<poll.h>" nogil:
    ctypedef struct pollfd "struct pollfd":
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long n, int timeout)
    enum:
        POLLIN

cdef enum:
    PATIENCE = 256              # empty rounds before it sleeps
    LONGEST_NAP = 4             # ms: timers go on

cdef uint64_t NOWHERE = ~<uint64_t>0    # of what leaves: nowhere, and counted

COUNTERS = ("rounds", "frames", "waits", "sent", "nobody", "no_chunk", "too_long", "too_many", "not_sent")
assert sizeof(LoopCounts) == 8 * len(COUNTERS)


cdef class Loop:
    """See loop.pyi."""

    def __init__(self, RulePipeline pipeline not None, ifaces, *, inward=None):
        self.ifaces = tuple(ifaces)
        if not 0 < len(self.ifaces) <= MOST_IFACES:
            raise ValueError(f"ifaces: expected 1 to {MOST_IFACES}, found {len(self.ifaces)}")
        self.pipeline, self.umem = pipeline, self.ifaces[0].umem
        self.n_ifaces = len(self.ifaces)
        workers = {iface.worker for iface in self.ifaces}
        for i, iface in enumerate(self.ifaces):
            if not isinstance(iface, Iface) or iface.umem is not self.umem or len(workers) > 1:
                raise ValueError(f"ifaces: {iface!r}: expected ifaces of one memory and one worker")
            self.iface[i] = <void *>iface
            self.unsummed[i] = &(<Iface>iface).counts.rx_completed if iface.driver == "xdp" else NULL
        self.pool = self.umem.pool(self.ifaces[0].worker)
        memset(&self.wanted, 0, sizeof(self.wanted))
        memset(&self.counts, 0, sizeof(self.counts))
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.aim(inward or {})

    def __dealloc__(self):
        if self.bell > 0:
            os.close(self.bell)

    def aim(self, inward):
        """See loop.pyi."""
        devices = self.pipeline.program.devices
        first = {iface.name: i for i, iface in reversed(list(enumerate(self.ifaces)))}
        missing = [iface.name for iface in self.ifaces if iface.name not in devices]
        if missing:
            raise ValueError(f"devices: {missing[0]} is none of the pipeline's")
        self.leaves = np.array([first.get(name, NOBODY) for name in devices], dtype=np.intc)
        self.enters = np.array([first.get(inward.get(name, ""), NOBODY) for name in devices], dtype=np.intc)
        names = {iface.ordinal: iface.name for iface in self.ifaces}
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"ifaces: ordinals {sorted(names)}: expected them from 0 on")
        self.pipeline.arrive([Hook(names[i]) for i in range(len(names))])
        self.pipeline.walker.walking.outputs = &self.pipeline.walker.all

    def run(self, double seconds):
        """See loop.pyi."""
        cdef uint64_t before = self.counts.frames
        cdef int64_t until = wall_ns() + <int64_t>(seconds * 1e9)
        for iface in self.ifaces:
            iface.ready()
        self.pipeline.tracker.enter()
        with nogil:
            self.go(until)
        self.pipeline.tracker.busy = False
        if self.asked:
            self.asked = False
            self.still()
        return self.counts.frames - before

    def ring(self):
        """See loop.pyi. In this order: a bell that rang after run() had gone would keep it awake from then on."""
        os.eventfd_write(self.bell, 1)
        self.asked = True

    cdef int still(self) except -1:
        """Silence the bell. Of two who ring at a time, the second one may have been heard with the first, and ask again without it."""
        try:
            os.eventfd_read(self.bell)
        except BlockingIOError:
            pass

    def counters(self):
        """See loop.pyi."""
        cdef const uint64_t *count = <const uint64_t *>&self.counts
        return {name: count[i] for i, name in enumerate(COUNTERS)}

    def histogram(self):
        """See loop.pyi."""
        return np.array(self.took, dtype=np.uint64)

    # --- the straight line ----------------------------------------------------------------------------------------------------------------

    cdef void go(self, int64_t until) noexcept nogil:
        cdef int idle = 0
        cdef int64_t now
        while True:
            idle = 0 if self.round() else idle + 1
            now = wall_ns()
            if idle:
                self.pipeline.tick(now)
            if self.asked or now >= until:
                return
            if idle > PATIENCE:
                self.wait(until - now)

    cdef int round(self) noexcept nogil:
        """Each iface once. How many frames there were."""
        cdef int i, n, all = 0
        for i in range(self.n_ifaces):
            n = (<Iface>self.iface[i]).receive(self.frame, ROUND)
            if n:
                if self.unsummed[i] != NULL:
                    self.unsummed[i][0] += complete(self.umem.base, self.frame, n)
                self.forward(n)
                all += n
        for i in range(self.n_ifaces):
            (<Iface>self.iface[i]).tidy()
        self.counts.rounds += 1
        self.counts.frames += all
        return all

    cdef void forward(self, int n) noexcept nogil:
        """Frames that have come through the rules, and on."""
        cdef int64_t start = wall_ns()
        cdef uint64_t took
        cdef int bucket = 0, i
        outputs_reset(&self.pipeline.walker.all)
        self.pipeline.run(self.umem.base, self.frame, n, &self.wanted)
        memset(self.claimed, 0, n)
        self.send_all(self.place_all(n))
        for i in range(n):
            if not self.claimed[i]:
                pool_give(self.pool, self.frame[i].offset, HELD)
        took = <uint64_t>max(wall_ns() - start, <int64_t>1)
        while took > 1 and bucket < N_BUCKETS - 1:
            took >>= 1
            bucket += 1
        self.took[bucket] += n

    # --- chunks ---------------------------------------------------------------------------------------------------------------------------

    cdef size_t place_all(self, int n) noexcept nogil:
        """Where each output lies: what leaves untouched has the first claim on its own chunk, so that its bytes are still there."""
        cdef Outputs *all = &self.pipeline.walker.all
        cdef const Output *out
        cdef size_t i, k = min(all.n, <size_t>MOST_OUT)
        self.counts.too_many += all.n - k
        for i in range(k):
            out = &all.row[i]
            self.exit[i], self.place[i] = self.exit_of(out), NOWHERE
            if unlikely(self.exit[i] < 0):
                self.counts.nobody += 1
            elif out.flags & OUTPUT_CHANGED:
                continue
            elif likely(not self.claimed[out.frame]):
                self.claimed[out.frame] = True
                self.place[i] = out.offset
            else:
                self.place[i] = self.fresh(self.umem.base + out.offset, out.caplen)
        if all.used:
            for i in range(k):
                if self.exit[i] >= 0 and all.row[i].flags & OUTPUT_CHANGED:
                    self.place[i] = self.own(&all.row[i])
        return k

    cdef inline int exit_of(self, const Output *out) noexcept nogil:
        return self.leaves[out.device] if out.egress else self.enters[out.device]

    cdef uint64_t own(self, const Output *out) noexcept nogil:
        """A changed frame's bytes, in the chunk that it came in, or in a new one."""
        cdef const uint8_t *data = self.pipeline.walker.all.memory + out.offset
        cdef uint64_t start = self.frame[out.frame].offset, chunk = start & self.pool.mask, size = <uint64_t>1 << self.pool.shift
        if self.claimed[out.frame]:
            return self.fresh(data, out.caplen)
        if start - chunk + out.caplen > size:
            start = chunk
        if out.caplen > size:
            self.counts.too_long += 1
            return NOWHERE
        self.claimed[out.frame] = True
        memcpy(self.umem.base + start, data, out.caplen)
        return start

    cdef uint64_t fresh(self, const uint8_t *data, uint32_t size) noexcept nogil:
        cdef uint64_t offset
        if size > <uint64_t>1 << self.pool.shift:
            self.counts.too_long += 1
            return NOWHERE
        if pool_take(self.pool, &offset, 1, HELD) == 0:
            self.counts.no_chunk += 1
            return NOWHERE
        memcpy(self.umem.base + offset, data, size)
        return offset

    # --- sending --------------------------------------------------------------------------------------------------------------------------

    cdef void send_all(self, size_t n) noexcept nogil:
        """In order: frames of one iface that follow each other go together."""
        cdef const Output *row = self.pipeline.walker.all.row
        cdef int to = NOBODY, ready = 0
        cdef size_t i
        for i in range(n):
            if unlikely(self.place[i] == NOWHERE):
                continue
            if self.exit[i] != to:
                self.flush(to, ready)
                to, ready = self.exit[i], 0
            self.ready[ready].offset, self.ready[ready].len, self.ready[ready].flags = self.place[i], row[i].caplen, 0
            ready += 1
        self.flush(to, ready)

    cdef void flush(self, int iface, int n) noexcept nogil:
        cdef int i, taken
        if n == 0:
            return
        taken = (<Iface>self.iface[iface]).send(self.ready, n)
        self.counts.sent += taken
        self.counts.not_sent += n - taken
        for i in range(taken, n):
            pool_give(self.pool, self.ready[i].offset, HELD)

    # --- waiting --------------------------------------------------------------------------------------------------------------------------

    cdef void wait(self, int64_t most) noexcept nogil:
        """Until a frame comes, somebody rings the bell, or timers want to go on."""
        cdef pollfd[MOST_IFACES + 1] fds
        cdef int i
        for i in range(self.n_ifaces):
            fds[i].fd, fds[i].events = (<Iface>self.iface[i]).fd, POLLIN
        fds[self.n_ifaces].fd, fds[self.n_ifaces].events = self.bell, POLLIN
        self.counts.waits += 1
        poll(fds, self.n_ifaces + 1, <int>min(most // 1000000, <int64_t>LONGEST_NAP))

"""A worker's loop: frames from its ifaces, through the rules, to its ifaces, as long as it is told to.

    receive -> pipeline -> place what leaves in chunks -> (route -> pipeline) -> send -> tidy

Theory of operation: a frame lies in a chunk of the memory that all ifaces share, and what leaves untouched leaves in it: nothing is copied. What rules
changed lies in the pipeline's memory, and is copied into its frame's own chunk, which nobody needs any more. Only further copies of a frame (mirrors,
pieces of a datagram) take chunks from the pool. All that do not leave give theirs back.
What passes at a device in router mode is routed where it lies, and goes through the pipeline once more if there are rules at the egress of the device
it leaves by; what a rule sends on from there is not routed again. An ICMP error quotes the frame as it came, before any rule: so its sender knows it.
One frame: chunk 7 arrives at eth0, a rule redirects it to eth1: chunk 7 is handed to eth1, and comes back to the pool when the kernel has sent it.
What is routed to a neighbour that is not known yet waits in its chunk (unresolved), and is routed anew when it is, or its sender is told that it is not.
With several workers, what was received and is another one's is handed over before anything looks at it, and what others hand over is done last.
Invariants: each received chunk is handed to an iface, to another worker, or given back in the round in which it came, but for those that wait for a
neighbour. No frame is lost without a counter. Python has its turn between two calls of run() only, so nobody changes rules or tables under a packet;
but for a front, which has frames before the rules do, and for who wants a turn every millisecond (offloading): both hold the GIL, in this thread.
Not here: opening ifaces and loading rules (node), what rules do (ruled), jobs from outside (worker), where a frame is routed to (router).
"""

import os

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ctcore.flow_changes cimport rows_of
from ctcore.lowlevel cimport likely, unlikely
from datapath.link cimport LINKTYPE_ETHERNET
from datapath.live.cut_ipv4 cimport Slices, slices_begin, slices_next
from datapath.live.handoff cimport Handoff
from datapath.live.iface cimport PRESSED, Iface, wall_ns
from datapath.live.partial cimport complete
from datapath.live.polling cimport POLLIN, poll, pollfd
from datapath.live.router cimport ETH, WAY_CUT, WAY_NO_NEIGHBOUR, Router, Step, later_fragment, router_move, same_ends
from datapath.live.routes cimport Address
from datapath.live.umem cimport HELD, pool_give, pool_take
from datapath.live.unresolved cimport Waiting
from datapath.pipeline.outputs cimport OUTPUT_CHANGED, Output, Outputs, output_add, outputs_reset
from datapath.pipeline.program cimport NO_CHAIN
from datapath.ruled cimport ALL_WALK, RulePipeline

from datapath.frame import FRAME_DTYPE
from datapath.pipeline.outputs import OUTPUT_DTYPE
from datapath.pipeline.rules import Hook

cdef enum:
    PATIENCE = 256              # empty rounds before it sleeps
    LONGEST_NAP = 4             # ms: timers go on
    LEAST_WALKS = 16            # of a round, however much comes in
    TURN_NS = 1_000_000         # between two turns at least, and at most while frames come
    QUIET_NS = 1_000_000_000    # at most

cdef uint64_t NOWHERE = ~<uint64_t>0    # of what leaves: nowhere, and counted

COUNTERS = ("rounds", "frames", "waits", "sent", "nobody", "no_chunk", "too_long", "too_many", "not_sent", "frame_ns")
assert sizeof(LoopCounts) == 8 * len(COUNTERS)

include "loop_routing.pxi"


cdef class Loop:
    """See loop.pyi."""

    def __init__(self, RulePipeline pipeline not None, ifaces, *, inward=None, Router router=None, Handoff handoff=None, front=None, turn=None):
        self.ifaces = tuple(ifaces)
        if not 0 < len(self.ifaces) <= MOST_IFACES:
            raise ValueError(f"ifaces: expected 1 to {MOST_IFACES}, found {len(self.ifaces)}")
        self.pipeline, self.umem, self.router, self.handoff = pipeline, self.ifaces[0].umem, router, handoff
        self.shares, self.routes = handoff is not None, router is not None
        self.front, self.turn, self.fronted, self.turns = front, turn, front is not None, turn is not None
        self.memory, self.rows = self.umem.memory, np.asarray(<uint8_t[:ROUND * sizeof(Frame)]><uint8_t *>self.frame).view(FRAME_DTYPE)
        if self.shares and (handoff.exchange.umem is not self.umem or handoff.worker != self.ifaces[0].worker):
            raise ValueError(f"handoff: of worker {handoff.worker}: expected that of worker {self.ifaces[0].worker}, on the same memory")
        self.n_ifaces = len(self.ifaces)
        workers = {iface.worker for iface in self.ifaces}
        for i, iface in enumerate(self.ifaces):
            if not isinstance(iface, Iface) or iface.umem is not self.umem or len(workers) > 1:
                raise ValueError(f"ifaces: {iface!r}: expected ifaces of one memory and one worker")
            self.put(i, iface)
        self.pool = self.umem.pool(self.ifaces[0].worker)
        if router is not None:
            router.unresolved.begin(self.umem, self.ifaces[0].worker)
        memset(&self.wanted, 0, sizeof(self.wanted))
        memset(&self.counts, 0, sizeof(self.counts))
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.aim(inward or {})

    def __dealloc__(self):
        if self.bell > 0:
            os.close(self.bell)

    cdef int put(self, int i, Iface iface) except -1:
        self.iface[i] = <void *>iface
        self.unsummed[i] = &iface.counts.rx_completed if iface.driver == "xdp" else NULL
        return 0

    def replace(self, Iface old not None, Iface new not None):
        """See loop.pyi."""
        if new.umem is not self.umem or (new.worker, new.name, new.ordinal) != (old.worker, old.name, old.ordinal):
            raise ValueError(f"{new!r}: expected an iface of the same memory, worker, name and ordinal")
        self.pipeline.tracker.idle()
        i = self.ifaces.index(old)
        self.ifaces = (*self.ifaces[:i], new, *self.ifaces[i + 1:])
        self.put(i, new)

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
        self.n_devices = len(names)
        leaving = [] if self.router is None else self._aim_router([names[i] for i in range(len(names))], first)
        hooks = [Hook(names[i]) for i in range(len(names))] + leaving
        (self.front if self.fronted else self.pipeline).arrive(hooks)
        self.pipeline.walker.walking.outputs = &self.pipeline.walker.all

    def _aim_router(self, list names, dict first):
        """Which devices' frames are routed, and where there are rules for what leaves. The hooks that routed frames come to, by ordinal."""
        cdef int i
        devices = list(self.pipeline.program.devices)
        if list(self.router.names) != names:
            raise ValueError(f"router: has {', '.join(self.router.names)}: expected {', '.join(names)}")
        for name in self.router.routed():
            self.enters[devices.index(name)] = ROUTED
        hooks = [Hook(name, "egress") for name in names]
        for i in range(len(names)):
            self.sends[i] = first[names[i]]
            self.ruled[i] = self.pipeline.program.code.first[<uint32_t>self.pipeline.program.hook(hooks[i])] != NO_CHAIN
        return hooks

    def run(self, double seconds):
        """See loop.pyi."""
        cdef uint64_t before = self.counts.frames
        cdef int64_t until = wall_ns() + <int64_t>(seconds * 1e9)
        for iface in self.ifaces:
            iface.ready()
        self.pipeline.tracker.enter()
        self.turn_at = 0                # what was done between may have led to something
        with nogil:
            self.go(until)
        self.pipeline.tracker.busy = False
        if self.failed is not None:
            failed, self.failed = self.failed, None
            raise failed
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

    def end(self):
        """See loop.pyi."""
        if self.router is not None:
            self.router.unresolved.give_up()

    def counters(self):
        """See loop.pyi."""
        cdef const uint64_t *count = <const uint64_t *>&self.counts
        counts = {name: count[i] for i, name in enumerate(COUNTERS)}
        return counts if self.handoff is None else {**counts, **self.handoff.counters()}

    def histogram(self):
        """See loop.pyi."""
        return np.array(self.took, dtype=np.uint64)

    # --- the straight line ----------------------------------------------------------------------------------------------------------------

    cdef void go(self, int64_t until) noexcept nogil:
        cdef int idle = 0
        cdef int64_t now = wall_ns()
        while True:
            if unlikely(self.routes) and self.router.unresolved.n_hops:
                resolve(self, now)
            idle = 0 if self.round() else idle + 1
            now = wall_ns()
            if idle:
                self.pipeline.tick(now)
            if unlikely(self.shares):
                self.handoff.look(now)
            if unlikely(self.turns):
                if idle == 0:
                    self.turn_at = min(self.turn_at, now + TURN_NS)
                if now >= self.turn_at:
                    self.give_turn(now)
            if self.asked or now >= until:
                return
            if idle > PATIENCE:
                self.wait(until - now, now)

    cdef int round(self) noexcept nogil:
        """Each iface once, and what other workers have handed over. How many frames there were."""
        cdef int i, n, all = 0, came = 0
        for i in range(self.n_ifaces):
            n = (<Iface>self.iface[i]).receive(self.frame, ROUND)
            if n:
                self.pipeline.walks = ALL_WALK if likely(n < ROUND) else self.may_walk((<Iface>self.iface[i]).pressed())
                if self.unsummed[i] != NULL:
                    self.unsummed[i][0] += complete(self.umem.base, self.frame, n)
                came += n
                if unlikely(self.shares):
                    n = self.handoff.sort(self.frame, n)
                    if n == 0:
                        continue
                self.forward(n)
                all += n
        if unlikely(self.shares):
            n = self.from_others()
            all, came = all + n, came + n
        for i in range(self.n_ifaces):
            (<Iface>self.iface[i]).tidy()
        if unlikely(self.shares):
            self.handoff.settle()
        self.counts.rounds += 1
        self.counts.frames += all
        return came

    cdef int from_others(self) noexcept nogil:
        """Frames that are this worker's, whoever has received them. How many."""
        cdef uint32_t source
        cdef int n, all = 0
        for source in range(self.handoff.workers):
            n = self.handoff.take(source, self.frame, ROUND)
            if n:
                self.pipeline.walks = ALL_WALK if likely(n < ROUND) else self.may_walk(self.handoff.pressed(source))
                self.forward(n)
                all += n
        return all

    cdef inline uint32_t may_walk(self, int pressed) noexcept nogil:
        """How many of a round may walk through the rules: the fuller the ring they come from, from half on, the fewer, as connections in the flow table
        shall go on whatever else comes in. A ring that is full loses frames of all kinds alike."""
        cdef int left = PRESSED - pressed
        return ALL_WALK if left > PRESSED // 2 else <uint32_t>max(ROUND * 2 * left // PRESSED, <int>LEAST_WALKS)

    cdef void forward(self, int n) noexcept nogil:
        """Frames that have come through the rules, and on."""
        cdef int64_t start = wall_ns()
        cdef uint64_t took
        cdef int bucket = 0
        self.through(n)
        self.pipeline.walks = ALL_WALK
        if unlikely(self.n_onward):
            send_onward(self)
        took = <uint64_t>max(wall_ns() - start, <int64_t>1)
        self.counts.frame_ns += took * n
        while took > 1 and bucket < N_BUCKETS - 1:
            took >>= 1
            bucket += 1
        self.took[bucket] += n

    cdef void through(self, int n) noexcept nogil:
        """Frames through the rules; what leaves is sent, or stands in `onward`."""
        cdef size_t k
        cdef int i
        if unlikely(self.fronted):
            self.meet_front(n)
        else:
            outputs_reset(&self.pipeline.walker.all)
            self.pipeline.run(self.umem.base, self.frame, n, &self.wanted)
        memset(self.claimed, 0, n)
        k = self.place_all(n)
        if unlikely(self.n_routed):
            move_all(self, k)
        self.send_all(k)
        for i in range(n):
            if not self.claimed[i]:
                pool_give(self.pool, self.frame[i].offset, HELD)

    # --- a front, and turns -----------------------------------------------------------------------------------------------------------------

    cdef void meet_front(self, int n) noexcept nogil:
        """Frames come to the front, which lets the pipeline have what is not its own; what leaves because of either is the walker's."""
        with gil:
            self.pipeline.tracker.busy = False
            try:
                self.front.process(self.memory, self.rows[:n], decisions=False, outputs=True)
                outputs_reset(&self.pipeline.walker.all)
                rows, data = self.front.outputs()
                self.take_outputs(rows, data, <uint32_t>n)
            except BaseException as error:
                outputs_reset(&self.pipeline.walker.all)
                self.fail(error)
            self.pipeline.tracker.busy = True

    cdef int take_outputs(self, rows, data, uint32_t n) except -1:
        """Rows of OUTPUT_DTYPE, of n frames, and the bytes of those that were changed. Counts what there is no memory for."""
        cdef const Output *row = <const Output *>rows_of(rows, OUTPUT_DTYPE, "outputs")
        cdef const uint8_t[::1] own = data
        cdef uint64_t size
        cdef Output *out
        cdef Py_ssize_t i
        cdef bint changed
        for i in range(len(rows)):
            changed = row[i].flags & OUTPUT_CHANGED
            size = <uint64_t>own.shape[0] if changed else self.umem.size
            if row[i].frame >= n or row[i].offset > size or row[i].caplen > size - row[i].offset:
                raise ValueError(f"outputs: row {i}: expected one of {n} frames, within {size} bytes")
            out = output_add(&self.pipeline.walker.all, &own[row[i].offset] if changed else NULL, row[i].caplen, changed)
            if unlikely(out == NULL):
                self.counts.too_many += 1
                continue
            size = out.offset
            out[0] = row[i]
            if changed:
                out.offset = size
        return 0

    cdef void give_turn(self, int64_t now) noexcept nogil:
        """Between two rounds. It says when it wants the next one."""
        with gil:
            self.pipeline.tracker.busy = False
            try:
                self.turn_at = min(max(<int64_t>self.turn(now), now + TURN_NS), now + <int64_t>QUIET_NS)
            except BaseException as error:
                self.fail(error)
            self.pipeline.tracker.busy = True

    cdef int fail(self, error) except -1:
        """Have run() raise it after the round at hand."""
        self.failed = error
        self.asked = True
        return 0

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
                self.exit[i] = route(self, i, out)
                if self.exit[i] < 0:
                    continue
            if out.flags & OUTPUT_CHANGED:
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

    cdef void wait(self, int64_t most, int64_t now) noexcept nogil:
        """Until a frame comes, somebody rings the bell, or timers want to go on."""
        cdef pollfd[MOST_IFACES + 2] fds
        cdef int i, nap = <int>min((most + 999999) // 1000000, <int64_t>LONGEST_NAP)
        if unlikely(self.turns):
            nap = <int>max(min((self.turn_at - now + 999999) // 1000000, <int64_t>nap), <int64_t>0)
        if self.shares and not self.handoff.may_sleep():
            return
        for i in range(self.n_ifaces):
            fds[i].fd, fds[i].events = (<Iface>self.iface[i]).fd, POLLIN
        fds[self.n_ifaces].fd, fds[self.n_ifaces].events = self.bell, POLLIN
        if self.shares:
            fds[self.n_ifaces + 1].fd, fds[self.n_ifaces + 1].events = self.handoff.post[self.handoff.worker].bell, POLLIN
        self.counts.waits += 1
        poll(fds, self.n_ifaces + 1 + self.shares, nap)
        if self.shares:
            self.handoff.awake()

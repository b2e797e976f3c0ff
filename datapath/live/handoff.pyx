"""Frames from worker to worker: what a worker receives and another one owns is handed over, and chunks come back.

    receive -> sort (own frames stay, others go into lanes) -> publish_all -> ... -> take (from each other worker) -> settle

Theory of operation: there is a lane for each ordered pair of workers. A frame is handed over where it lies: its chunk is in the lane, as the ledger
says, until the other end takes it and holds it from then on. Whoever takes a chunk owes one: free chunks of its own go back by a ring of the lane in
the other direction, at the end of each round, as many as it has and as there is room for. So no pool drains, whichever way frames go.
A worker that sleeps is woken by a bell of its own. It says that it will sleep, and then looks whether there is anything in its lanes; who fills a lane
publishes, and then looks whether the other one sleeps: between the two stands a full fence each, so that one of them sees the other.
A fragment goes to its gatherer first, and from there to its owner; what the gatherer hands over is not looked at again.
Invariants: frames of a lane are taken in their order. A frame is taken, or it is counted and its chunk is free again. owed + what is on its way back
is what was taken and not paid.
Not here: whose a frame is (steer), fragments (gather), the round (loop).
"""

import os

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport read, write

from ctcore.lowlevel cimport likely, prefetch, unlikely
from ctcore.steering cimport MOST_SHARES
from ctcore.strays cimport StrayTable
from datapath.frame cimport Frame
from datapath.live.gather cimport Gatherer
from datapath.live.iface cimport PRESSED, wall_ns
from datapath.live.lane cimport (
    BACK, LANE, Handed, Lane, Post, filled, full_fence, lane_put, look, publish, put, room, take_flag,
)
from datapath.live.ring cimport load_acquire, store_release
from datapath.live.steer cimport FRAGMENT, NO_OWNER, OWNED, Course, steer
from datapath.live.umem cimport HELD, Umem, pool_give, pool_move, pool_take

cdef enum:
    AHEAD = 8                   # frames whose headers are asked for
    HEADERS = 14                # bytes in front of what is read first

COUNTERS = ("handed", "taken", "lane_full")
assert sizeof(HandoffCounts) == 8 * len(COUNTERS)


cdef class Exchange:
    """Lanes between all workers of one memory. See handoff.pyi."""

    def __init__(self, Umem umem not None):
        self.umem, self.workers, self.strays = umem, umem.workers, StrayTable()
        if not 2 <= self.workers <= MOST_SHARES:
            raise ValueError(f"workers = {self.workers}: expected 2 to {<int>MOST_SHARES}")
        self.lay_out()
        self.ends = tuple([Handoff(self, worker) for worker in range(self.workers)])

    cdef int lay_out(self) except -1:
        """Posts, lanes, frames and chunks, one behind the other, at the beginning of a cache line."""
        cdef size_t n = self.workers * self.workers
        cdef size_t size = self.workers * sizeof(Post) + n * (sizeof(Lane) + LANE * sizeof(Handed) + BACK * sizeof(uint64_t)) + 64
        cdef char *at
        cdef size_t i
        self.memory = calloc(1, size)
        if self.memory == NULL:
            raise MemoryError(f"lanes of {self.workers} workers")
        at = <char *>((<size_t>self.memory + 63) & ~<size_t>63)
        self.post, at = <Post *>at, at + self.workers * sizeof(Post)
        self.lane, at = <Lane *>at, at + n * sizeof(Lane)
        for i in range(n):
            self.lane[i].frame, at = <Handed *>at, at + LANE * sizeof(Handed)
        for i in range(n):
            self.lane[i].chunk, at = <uint64_t *>at, at + BACK * sizeof(uint64_t)
        for i in range(n):
            self.lane[i].place = self.umem.new_place(f"from worker {i // self.workers} to {i % self.workers}")
        for i in range(<size_t>self.workers):
            self.post[i].bell = -1
        for i in range(<size_t>self.workers):
            self.post[i].bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return 0

    def close(self):
        """See handoff.pyi."""
        cdef int i
        if self.lane == NULL:
            return
        for i in range(self.workers * self.workers):
            self.umem.reclaim(i // self.workers, <int>self.lane[i].place)
        for end in self.ends:
            (<Handoff>end).forget()
        for i in range(self.workers):
            if self.post[i].bell >= 0:
                os.close(self.post[i].bell)
                self.post[i].bell = -1
        self.lane = NULL

    def __dealloc__(self):
        free(self.memory)


cdef class Handoff:
    """One worker's end of all lanes. See handoff.pyi."""

    def __init__(self, Exchange exchange not None, int worker):
        self.exchange, self.worker, self.workers = exchange, worker, exchange.workers
        self.lane, self.post, self.pool = exchange.lane, exchange.post, exchange.umem.pool(worker)
        self.gatherer, self.strays = Gatherer(), exchange.strays.all
        memset(&self.counts, 0, sizeof(HandoffCounts))
        self.owed = <uint64_t *>calloc(self.workers, sizeof(uint64_t))
        if self.owed == NULL:
            raise MemoryError("lanes")

    def __dealloc__(self):
        free(self.owed)

    @property
    def bell(self):
        return self.post[self.worker].bell

    def counters(self):
        """See handoff.pyi."""
        cdef const uint64_t *count = <const uint64_t *>&self.counts
        return {**{name: count[i] for i, name in enumerate(COUNTERS)}, **self.gatherer.counters(),
                "strays_full": self.strays.full if self.worker == 0 else 0}  # fmt: skip

    def forget(self):
        """Nobody works any more: what waits for its datagram's first fragment is free."""
        self.gatherer.look(<int64_t>1 << 62)
        self.drop_gathered()
        memset(self.owed, 0, self.workers * sizeof(uint64_t))

    # --- what was received ----------------------------------------------------------------------------------------------------------------

    cdef int sort(self, Frame *rows, int n) noexcept nogil:
        """Frames that were received: those of others are handed over. How many are left; they are in front, in their order."""
        cdef const unsigned char *base = self.pool.memory
        cdef Course course
        cdef int i, own = 0
        for i in range(n):
            prefetch(base + rows[min(i + <int>AHEAD, n - 1)].offset + HEADERS)
            steer(base + rows[i].offset, rows[i].caplen, self.workers, self.strays, &course)
            if unlikely(course.errand == FRAGMENT):
                self.hand(course.gatherer, &rows[i], True)
            elif course.errand == OWNED and course.owner != <uint32_t>self.worker:
                self.hand(course.owner, &rows[i], False)
            else:
                if own != i:
                    rows[own] = rows[i]
                own += 1
        self.publish_all()
        return own

    cdef void hand(self, uint32_t to, const Frame *frame, bint gathers) noexcept nogil:
        """To another worker, or to this one itself, which takes it in its turn."""
        cdef Lane *lane = &self.lane[self.worker * self.workers + to]
        if unlikely(not pool_move(self.pool, frame.offset, HELD, <unsigned short>lane.place)):
            return
        if likely(lane_put(lane, frame, gathers)):
            self.counts.handed += to != <uint32_t>self.worker
            return
        self.counts.lane_full += 1
        pool_give(self.pool, frame.offset, <unsigned short>lane.place)

    cdef void publish_all(self) noexcept nogil:
        """Let the others see what is theirs, and wake those that sleep."""
        cdef Lane *lane = &self.lane[self.worker * self.workers]
        cdef uint64_t one = 1
        cdef uint32_t to
        for to in range(self.workers):
            if not publish(&lane[to].put) or to == <uint32_t>self.worker:
                continue
            full_fence()
            if look(&self.post[to].sleeping) and take_flag(&self.post[to].sleeping):
                write(self.post[to].bell, &one, sizeof(one))

    # --- what others have received --------------------------------------------------------------------------------------------------------

    cdef int take(self, uint32_t source, Frame *rows, int most) noexcept nogil:
        """Frames that a worker has handed over, at most `most`, which is more than WAITING. How many; fragments of others have gone on."""
        cdef Lane *lane = &self.lane[source * self.workers + self.worker]
        cdef const Handed *slot
        cdef uint32_t i, ready = filled(&lane.take, &lane.put.mine)
        cdef int n = 0
        ready = min(ready, <uint32_t>most)
        for i in range(ready):
            slot = &lane.frame[(lane.take.mine + i) & (LANE - 1)]
            prefetch(self.pool.memory + slot.frame.offset + HEADERS)
            if unlikely(not pool_move(self.pool, slot.frame.offset, <unsigned short>lane.place, HELD)):
                continue
            if unlikely(slot.gathers):
                if n + self.gatherer.n_waiting + 1 > most:      # what it lets go may be all that waits
                    pool_move(self.pool, slot.frame.offset, HELD, <unsigned short>lane.place)
                    ready = i
                    break
                n += self.gathered(&slot.frame, rows + n)
            else:
                rows[n] = slot.frame
                n += 1
        if ready == 0:
            return 0
        store_release(&lane.take.mine, lane.take.mine + ready)
        if source != <uint32_t>self.worker:
            self.counts.taken += ready
            self.owed[source] += ready
        self.publish_all()
        return n

    cdef int pressed(self, uint32_t source) noexcept nogil:
        """How full the lane from a worker is: of PRESSED, as Iface.pressed() says it of a ring."""
        cdef Lane *lane = &self.lane[source * self.workers + self.worker]
        return <int>((load_acquire(&lane.put.mine) - lane.take.mine) * PRESSED // LANE)

    cdef int gathered(self, const Frame *frame, Frame *rows) noexcept nogil:
        """A fragment whose gatherer this worker is, and those that waited for it. How many are its own; the others go on, or wait, or are dropped."""
        cdef Course course
        cdef uint32_t owner
        cdef int i, n = 0
        steer(self.pool.memory + frame.offset, frame.caplen, self.workers, self.strays, &course)
        owner = self.gatherer.gather(&course, frame, wall_ns())
        self.drop_gathered()
        if owner == NO_OWNER:
            return 0
        for i in range(self.gatherer.n_released + 1):
            rows[n] = self.gatherer.released[i] if i < self.gatherer.n_released else frame[0]
            if owner == <uint32_t>self.worker:
                n += 1
            else:
                self.hand(owner, &rows[n], False)
        return n

    cdef void drop_gathered(self) noexcept nogil:
        cdef int i
        for i in range(self.gatherer.n_dropped):
            pool_give(self.pool, self.gatherer.dropped[i], HELD)
        self.gatherer.n_dropped = 0

    # --- chunks ---------------------------------------------------------------------------------------------------------------------------

    cdef void settle(self) noexcept nogil:
        """Chunks that come back, and those that are owed. Once a round."""
        cdef Lane *lane
        cdef uint64_t[64] chunks
        cdef uint32_t other, i, n
        for other in range(self.workers):
            lane = &self.lane[other * self.workers + self.worker]
            n = filled(&lane.receive, &lane.pay.mine)
            if n:
                for i in range(n):
                    pool_give(self.pool, lane.chunk[(lane.receive.mine + i) & (BACK - 1)], <unsigned short>lane.place)
                store_release(&lane.receive.mine, lane.receive.mine + n)
            if self.owed[other] == 0:
                continue
            lane = &self.lane[self.worker * self.workers + other]
            n = <uint32_t>min(min(self.owed[other], <uint64_t>64), <uint64_t>min(self.pool.n, room(&lane.pay, &lane.receive.mine, BACK)))
            while n:
                n = <uint32_t>pool_take(self.pool, chunks, <int>n, <unsigned short>lane.place)
                for i in range(n):
                    lane.chunk[(lane.pay.draft + i) & (BACK - 1)] = chunks[i]
                lane.pay.draft += n
                self.owed[other] -= n
                n = <uint32_t>min(min(self.owed[other], <uint64_t>64), <uint64_t>min(self.pool.n, room(&lane.pay, &lane.receive.mine, BACK)))
            publish(&lane.pay)

    # --- time and sleep -------------------------------------------------------------------------------------------------------------------

    cdef void look(self, int64_t now) noexcept nogil:
        """Fragments that have waited too long."""
        if unlikely(self.gatherer.n_waiting and now >= self.gatherer.next_look):
            self.gatherer.look(now)
            self.drop_gathered()

    cdef bint may_sleep(self) noexcept nogil:
        """Say that this worker will sleep. False: something is in a lane to it, and it will not."""
        cdef Lane *lane
        cdef uint32_t other
        put(&self.post[self.worker].sleeping, 1)
        full_fence()
        for other in range(self.workers):
            lane = &self.lane[other * self.workers + self.worker]
            if filled(&lane.take, &lane.put.mine) or filled(&lane.receive, &lane.pay.mine):
                put(&self.post[self.worker].sleeping, 0)
                return False
        return True

    cdef void awake(self) noexcept nogil:
        cdef uint64_t rung
        put(&self.post[self.worker].sleeping, 0)
        read(self.post[self.worker].bell, &rung, sizeof(rung))

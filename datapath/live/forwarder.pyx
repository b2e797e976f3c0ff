"""A plain forwarder: what comes in at one iface goes out at the other, and nothing is looked at. The limit that a datapath is compared with.

It is the worker's loop with everything taken out but the ifaces: the same rings, batches and system calls. With a Null on the other side it receives
only. Both ifaces share memory and worker; frames that cannot be sent are counted by the iface that refused them, and their chunks are free again.
Not here: rules, tracking, several workers.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from ctcore.lowlevel cimport likely
from datapath.frame cimport Frame
from datapath.live.iface cimport Iface, wall_ns
from datapath.live.partial cimport complete
from datapath.live.polling cimport POLLIN, poll, pollfd
from datapath.live.rows cimport Send
from datapath.live.umem cimport HELD, pool_give

cdef enum:
    MOST = 1024                 # frames of a batch
    LOOK = 63                   # rounds between looks at the clock, less one
    WAIT = 10                   # ms of one wait, after which it is asked whether to stop

MACS = 12
STRETCH = 0.1                           # s between looks at signals


cdef class Forwarder:
    """Two ifaces joined. See forwarder.pyi."""
    cdef readonly Iface left
    cdef readonly Iface right
    cdef readonly uint64_t rounds
    cdef readonly uint64_t idle         # of these, those in which nothing came
    cdef readonly uint64_t waits
    cdef readonly uint64_t dropped      # frames that the other side did not take
    cdef Frame[MOST] rows
    cdef Send[MOST] sends
    cdef uint8_t[2][12] macs            # by direction: destination and source of what goes to right, to left
    cdef bint rewrites[2]
    cdef bint partial
    cdef int batch
    cdef uint64_t spin
    cdef bint stopping
    cdef uint64_t quiet                 # rounds without a frame, up to now

    def __init__(self, Iface left not None, Iface right not None, *, int batch=64, to_right=None, to_left=None, bint partial=False, int spin=1000):
        if left.umem is not right.umem or left.worker != right.worker:
            raise ValueError("expected two ifaces of one worker on one memory")
        if not 1 <= batch <= MOST:
            raise ValueError(f"batch = {batch}: expected 1 to {<int>MOST}")
        self.left, self.right, self.batch, self.partial, self.spin = left, right, batch, partial, spin
        for direction, macs in enumerate((to_right, to_left)):
            self.set_macs(direction, macs)

    cdef int set_macs(self, int direction, macs) except -1:
        cdef const uint8_t[::1] data
        self.rewrites[direction] = macs is not None
        if macs is not None:
            if len(macs) != MACS:
                raise ValueError("expected 12 bytes: MAC address of the destination, and of the source")
            data = macs
            memcpy(self.macs[direction], &data[0], MACS)
        return 0

    def stop(self):
        """Have run() return soon, from another thread or a signal handler."""
        self.stopping = True

    def run(self, seconds=None):
        """Forward; see forwarder.pyi."""
        cdef int64_t until, end = wall_ns() + <int64_t>(seconds * 1e9) if seconds is not None else 1 << 62
        self.left.ready()
        self.right.ready()
        self.stopping = False
        while not self.stopping and (until := wall_ns()) < end:
            until = min(until + <int64_t>(STRETCH * 1e9), end)
            with nogil:
                self.stretch(until)

    cdef void stretch(self, int64_t until) noexcept nogil:
        while True:
            if self.carry(self.left, self.right, 0) + self.carry(self.right, self.left, 1):
                self.quiet = 0
            else:
                self.quiet += 1
                self.idle += 1
            self.right.tidy()
            self.left.tidy()
            self.rounds += 1
            if self.quiet > self.spin:
                self.wait()
            elif likely(self.rounds & LOOK):
                continue
            if self.stopping or wall_ns() >= until:
                return

    cdef int carry(self, Iface source, Iface target, int direction) noexcept nogil:
        """One batch. How many frames there were."""
        cdef Frame *rows = self.rows
        cdef Send *sends = self.sends
        cdef int i, taken, n = source.receive(rows, self.batch)
        if n == 0:
            return 0
        if self.partial:
            source.counts.rx_completed += complete(source.pool.memory, rows, n)
        for i in range(n):
            if self.rewrites[direction]:
                memcpy(source.pool.memory + rows[i].offset, self.macs[direction], 12)
            sends[i].offset, sends[i].len, sends[i].flags = rows[i].offset, rows[i].caplen, 0
        taken = target.send(sends, n)
        for i in range(taken, n):
            pool_give(source.pool, sends[i].offset, HELD)
        self.dropped += n - taken
        return n

    cdef void wait(self) noexcept nogil:
        """Sleep until a frame comes, or for a moment: what is on its way out ends without waking anybody."""
        cdef pollfd[2] fds
        cdef int i
        fds[0].fd, fds[1].fd = self.left.fd, self.right.fd
        for i in range(2):
            fds[i].events, fds[i].revents = POLLIN, 0
        self.waits += 1
        poll(fds, 2, WAIT)

    def counters(self):
        """Of the loop itself; see forwarder.pyi."""
        return {"rounds": self.rounds, "idle": self.idle, "waits": self.waits, "dropped": self.dropped}

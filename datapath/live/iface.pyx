"""An iface: where a worker takes frames from and where it sends them, all of them in one memory (umem).

Theory of operation: receive() hands over chunks, which the caller holds from then on; it changes frames where they lie. send() takes the chunks of
the first k frames, in order, and k is what it returns: the rest stay the caller's, who gives them back to the pool or tries again; they are counted
here, by why they were not taken. What was taken may still wait for tidy(), which makes system calls: once for each round of the worker, it has what
is to be sent sent, takes back the chunks that have been, and gives the kernel chunks to receive into.
Invariants: no frame is dropped that is in no counter. An iface whose device is down or gone refuses frames or keeps them, and costs a system call or
two a round; it never raises, for it is called without the GIL.
Not here: what is behind an iface (xsk, packet_socket, tap, null, capture_iface), which one is chosen (drivers), what waits for frames (the worker).
"""

import errno

import numpy as np

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from datapath.live.umem cimport HELD

from datapath.frame import FRAME_DTYPE
from datapath.live.rows import COUNTERS, SEND_DTYPE

cdef extern from "<time.h>" nogil:
    ctypedef struct timespec "struct timespec":
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    enum:
        CLOCK_REALTIME

assert sizeof(Statistics) == 8 * len(COUNTERS) and sizeof(Send) == 16

LARGEST_BATCH = 4096                    # frames of one call from Python
GONE = (errno.ENXIO, errno.ENODEV)


cdef int64_t wall_ns() noexcept nogil:
    """ns since the epoch."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef class Iface:
    """What all ifaces have. See iface.pyi."""

    def __cinit__(self):
        self.fd = -1
        self.driver, self.name = "none", ""

    cdef int setup(self, Umem umem, str name, int worker, int ordinal) except -1:
        if self.umem is not None:
            raise RuntimeError(f"{name}: was set up already")
        if not 0 <= ordinal < 1 << 32:
            raise ValueError(f"ordinal = {ordinal}: expected 0 to 2^32 - 1")
        self.pool = umem.pool(worker)
        self.umem, self.name, self.worker, self.ordinal = umem, name, worker, ordinal
        memset(&self.counts, 0, sizeof(Statistics))
        return 0

    cdef int receive(self, Frame *rows, int most) noexcept nogil:
        return 0

    cdef int pressed(self) noexcept nogil:
        """How full of frames that wait is what they wait in, in 1/PRESSED; 0 where nobody knows."""
        return 0

    cdef int send(self, const Send *rows, int n) noexcept nogil:
        return 0

    cdef int tidy(self) noexcept nogil:
        return 0

    def ready(self):
        """RuntimeError if it cannot be used."""
        if self.closed or self.umem is None:
            raise RuntimeError(f"{self.name or 'iface'}: is {'closed' if self.closed else 'not set up'}")

    def receive_batch(self, int most=64):
        """Frames that have come; see iface.pyi."""
        self.ready()
        if not 1 <= most <= LARGEST_BATCH:
            raise ValueError(f"most = {most}: expected 1 to {LARGEST_BATCH}")
        rows = np.zeros(most, dtype=FRAME_DTYPE)
        cdef Frame *row = <Frame *><size_t>rows.ctypes.data
        cdef int n
        with nogil:
            n = self.receive(row, most)
        return rows[:n]

    def send_batch(self, rows):
        """Hand over frames; see iface.pyi."""
        self.ready()
        if not isinstance(rows, np.ndarray) or rows.dtype != SEND_DTYPE or rows.ndim != 1 or not rows.flags.c_contiguous:
            raise ValueError("rows: expected a one-dimensional contiguous array of SEND_DTYPE")
        if len(rows) > LARGEST_BATCH:
            raise ValueError(f"rows: {len(rows)}: expected at most {LARGEST_BATCH}")
        cdef const Send *row = <const Send *><size_t>rows.ctypes.data
        cdef uint64_t size = self.umem.chunk_size
        cdef int i, taken, n = <int>len(rows)
        for i in range(n):
            if row[i].offset >= self.umem.size or self.pool.place[row[i].offset >> self.pool.shift] != HELD:
                raise ValueError(f"rows[{i}]: expected a frame in a chunk that is held")
            if row[i].len > size - (row[i].offset & (size - 1)):
                raise ValueError(f"rows[{i}]: {row[i].len} bytes go beyond the chunk")
        with nogil:
            taken = self.send(row, n)
        return taken

    def tidy_up(self):
        """See iface.pyi."""
        self.ready()
        cdef int n
        with nogil:
            n = self.tidy()
        return n

    def statistics(self):
        """COUNTERS, by name."""
        cdef const uint64_t *counts = <const uint64_t *>&self.counts
        return {name: counts[i] for i, name in enumerate(COUNTERS)}

    @property
    def condition(self):
        """ "up", "down" or "gone", as the last try to send or look found it."""
        return "up" if self.trouble == 0 else "gone" if self.trouble in GONE else "down"

    def look(self):
        """Ask the kernel whether the device is there; see iface.pyi."""
        return self.condition

    def check(self):
        """Prove what the iface and the ledger both know of its rings. For tests."""

    def close(self):
        """Give everything back; a second time, nothing."""
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

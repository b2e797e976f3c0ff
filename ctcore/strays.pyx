"""Connections that go astray by their hash: announced by helpers, and so the first share's, whatever their tuples are.

Theory of operation: of trackers that share the work, the first one has all connections with helpers (steering). What it expects, and both tuples of
each connection that was expected, stand here as 64-bit hashes, each as often as it is wanted; whoever steers packets asks here first, if there is
anything at all. One thread writes, the first tracker's; all others read without a lock: a hash is one word, and a bucket one cache line.
Invariants: what is expected is entered before the packet that has announced it goes on. A bucket that is full turns hashes away, and counts them:
these connections are then judged by a tracker that knows nothing of their announcement.
Not here: steering itself (datapath.live.steer), expectations (expectations).
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free


cdef void strays_add(Strays *all, uint64_t hash) noexcept nogil:
    cdef int base = <int>(hash >> 40 & (BUCKETS - 1)) * WAYS, i, place = -1
    for i in range(base, base + WAYS):
        if all.hash[i] == hash:
            all.uses[i] += 1
            return
        if all.hash[i] == 0:
            place = i
    if place < 0:
        all.full += 1
        return
    all.uses[place] = 1
    stray_store(&all.hash[place], hash)
    stray_store(&all.n, all.n + 1)


cdef void strays_drop(Strays *all, uint64_t hash) noexcept nogil:
    """One use less; of one that found no place there is none."""
    cdef int base = <int>(hash >> 40 & (BUCKETS - 1)) * WAYS, i
    for i in range(base, base + WAYS):
        if all.hash[i] == hash:
            all.uses[i] -= 1
            if all.uses[i] == 0:
                stray_store(&all.hash[i], 0)
                stray_store(&all.n, all.n - 1)
            return


cdef class StrayTable:
    """The table, for whoever steers. See strays.pyi."""

    def __cinit__(self):
        self.all = <Strays *>calloc(1, sizeof(Strays))
        if self.all == NULL:
            raise MemoryError("strays")

    def __dealloc__(self):
        free(self.all)

    def __len__(self):
        return self.all.n

    @property
    def full(self):
        return self.all.full

    def add(self, uint64_t hash):
        """See strays.pyi."""
        strays_add(self.all, hash | 1)

    def drop(self, uint64_t hash):
        strays_drop(self.all, hash | 1)

    def has(self, uint64_t hash):
        return bool(strays_have(self.all, hash | 1))

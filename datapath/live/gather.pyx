"""Whose fragments are: what the gatherer of a datagram knows of it.

Theory of operation: the first fragment has the ports, and so says who owns the datagram. Fragments behind it follow it; those that come before it
wait, a second at most. When all bytes have been seen, or after as long as fragments are kept elsewhere, the datagram is forgotten, since its id may be
used again. Nothing is put together here: the owner does that, as a worker alone does it.
Invariants: a fragment goes on, waits, or is dropped and counted; all tables are of fixed size, and the oldest datagram of a bucket makes room.
Not here: which frames are fragments (steer), how they are handed over (handoff), reassembly (ctcore.fragments).
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from ctcore.steering cimport share_of, steer_ends
from ctcore.table cimport same_key
from ctcore.types cimport Key
from datapath.frame cimport Frame
from datapath.live.steer cimport NO_OWNER, Course

cdef enum:
    BUCKETS = DATAGRAMS // WAYS

cdef int64_t PATIENCE = 1000000000              # ns that a fragment waits for the first one
cdef int64_t KEPT = 30000000000                 # ns, as fragments wait for each other (ipfrag_time)
cdef int64_t LOOK = 100000000                   # ns between two looks at who has waited too long

COUNTERS = ("fragments_waited", "fragments_late", "fragments_crowded", "fragments_untold")


cdef class Gatherer:
    """One worker's. See gather.pyi."""

    def __cinit__(self):
        cdef int i
        self.datagram = <Datagram *>calloc(DATAGRAMS, sizeof(Datagram))
        if self.datagram == NULL:
            raise MemoryError("datagrams")
        for i in range(WAITING):
            self.next[i] = i + 1
        self.next[WAITING - 1] = NO_FRAME
        self.free = 0

    def __dealloc__(self):
        free(self.datagram)

    def counters(self):
        """By COUNTERS."""
        cdef const uint64_t *count = <const uint64_t *>&self.counts
        return {name: count[i] for i, name in enumerate(COUNTERS)}

    @property
    def n(self):
        """Fragments that wait."""
        return self.n_waiting

    cdef uint32_t gather(self, const Course *course, const Frame *frame, int64_t now) noexcept nogil:
        """Who owns a fragment, or NO_OWNER: it waits, or is in `dropped`. now: ns of the wall clock.   Writes: released, what waited for it; dropped."""
        cdef Datagram *d
        self.n_released = 0
        if course.start == 0 and course.owner == NO_OWNER:
            self.counts.untold += 1
            self.dropped[self.n_dropped] = frame.offset
            self.n_dropped += 1
            return NO_OWNER
        d = self.find(&course.key, now)
        if course.start == 0:
            d.owner = course.owner
        d.seen += course.length
        if not course.more:
            d.whole = course.start + course.length
        if d.owner == NO_OWNER:
            if not self.keep(d, frame):
                self.counts.crowded += 1
                self.dropped[self.n_dropped] = frame.offset
                self.n_dropped += 1
            return NO_OWNER
        while d.first != NO_FRAME:
            self.released[self.n_released] = self.waiting[d.first]
            self.n_released += 1
            self.give(d)
        d.until = now + KEPT
        if d.whole and d.seen >= d.whole:
            d.until = 0
        return course.owner if course.start == 0 else d.owner

    cdef Datagram *find(self, const Key *key, int64_t now) noexcept nogil:
        """A datagram, which is known from now on."""
        cdef uint64_t hash = steer_ends(key.src, key.sport, key.dst, key.dport, key.proto)
        cdef Datagram *bucket = &self.datagram[share_of(hash << 32, BUCKETS) * WAYS]
        cdef Datagram *oldest = bucket
        cdef int i
        for i in range(WAYS):
            if bucket[i].until > now and same_key(&bucket[i].key, key):
                return &bucket[i]
            if bucket[i].until < oldest.until:
                oldest = &bucket[i]
        if oldest.until > 0:
            self.drop_waiting(oldest, &self.counts.late if oldest.until <= now else &self.counts.crowded)
        oldest.key, oldest.until, oldest.owner = key[0], now + PATIENCE, NO_OWNER
        oldest.seen = oldest.whole = 0
        oldest.first = oldest.last = NO_FRAME
        return oldest

    cdef bint keep(self, Datagram *d, const Frame *frame) noexcept nogil:
        cdef int32_t at = self.free
        if at == NO_FRAME:
            return False
        self.free = self.next[at]
        self.waiting[at], self.next[at] = frame[0], NO_FRAME
        if d.first == NO_FRAME:
            d.first = at
        else:
            self.next[d.last] = at
        d.last = at
        self.n_waiting += 1
        self.counts.waited += 1
        return True

    cdef void give(self, Datagram *d) noexcept nogil:
        """The first one that waits waits no more."""
        cdef int32_t at = d.first
        d.first = self.next[at]
        self.next[at], self.free = self.free, at
        self.n_waiting -= 1

    cdef void drop_waiting(self, Datagram *d, uint64_t *count) noexcept nogil:
        if d.owner != NO_OWNER:
            return
        while d.first != NO_FRAME:
            self.dropped[self.n_dropped] = self.waiting[d.first].offset
            self.n_dropped += 1
            count[0] += 1
            self.give(d)

    cdef void look(self, int64_t now) noexcept nogil:
        """Who has waited too long is dropped. Now and then, while anybody waits."""
        cdef int i
        self.next_look = now + LOOK
        for i in range(DATAGRAMS):
            if 0 < self.datagram[i].until <= now:
                self.drop_waiting(&self.datagram[i], &self.counts.late)
                self.datagram[i].until = 0

"""Frames that wait until the MAC address of their next hop is known, or until it is known that nobody has it.

Theory of operation: a short list of next hops, and for each its frames in the order in which they came. Whoever waits is looked for among the
neighbours when those have changed, and every LOOK besides; a frame that has waited for PATIENCE is taken out as well, and its sender is told. That is as long as
Linux asks for a neighbour (three times, a second each). A hop that is not known yet is wanted again every ASK, for the list of those may have been full.
Where there is no room, the oldest gives way: a scan of an empty network fills all that there is here with frames that nobody will ever take, while
the hop that does answer does so within some ms. So frames of a hop that answers wait behind no others.
Invariants (check()): never more than MOST_EACH frames of a hop, MOST_WAITING in all, one chunk in PART of a worker's; each chunk is in the ledger as
held, and leaves by take() or is given back, and then counted. Nothing is read or written in a chunk.
Not here: what becomes of a frame whose wait is over (loop), who asks for neighbours (neighbours), frames to a neighbour that is known not to answer:
they do not wait.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from datapath.live.neighbour_table cimport Neighbours, neighbour_find, neighbour_want
from datapath.live.routes cimport Address
from datapath.live.umem cimport HELD, Umem, pool_give

cdef enum:
    NO_FRAME = -1

cdef int64_t PATIENCE = 3_000_000_000       # ns
cdef int64_t ASK = 1_000_000_000
cdef int64_t LOOK = 50_000_000


cdef class Unresolved:
    """See unresolved.pyi."""

    def __cinit__(self):
        cdef int32_t i
        memset(self.hop, 0, sizeof(self.hop))
        for i in range(MOST_WAITING):
            self.frame[i].next = i + 1 if i + 1 < MOST_WAITING else <int32_t>NO_FRAME

    cdef int begin(self, Umem umem, int worker) except -1:
        """Whose chunks are held here from now on."""
        self.give_up()
        self.umem, self.pool = umem, umem.pool(worker)
        self.room = umem.chunks // umem.workers // PART

    cdef void put(self, const Waiting *one, Address a, uint32_t link, int64_t now) noexcept nogil:
        """A frame waits, and its chunks are held here. Without any room at all, it is dropped."""
        cdef uint32_t chunks = 1 if one.came == one.offset else 2
        cdef Hop *hop = self.place_of(a, link)
        cdef int32_t at
        if hop.n == MOST_EACH:
            self.drop_first(hop)
        if not self.make_room(chunks):
            self.dropped += 1
            self.give(one)
            return
        at = self.free
        self.free = self.frame[at].next
        self.frame[at] = one[0]
        self.frame[at].next = NO_FRAME
        if hop.n == 0:
            hop.address, hop.link, hop.until, hop.again, hop.first = a, link, now + PATIENCE, now + ASK, at
            self.n_hops += 1
        else:
            self.frame[hop.last].next = at
        hop.last = at
        hop.n += 1
        self.chunks += chunks
        self.held += 1

    cdef bint take(self, Neighbours *near, int64_t now, Waiting *one) noexcept nogil:
        """The next frame whose wait is over, in the order of its hop; its chunks are the caller's. A clock that was set back lets nobody wait longer."""
        cdef Hop *hop
        cdef int i
        if self.n_hops == 0 or (near.changes == self.changes and 0 <= now - self.looked < LOOK):
            return False
        for i in range(MOST_HOPS):
            hop = &self.hop[i]
            if hop.n == 0:
                continue
            if not 0 < hop.until - now <= PATIENCE or neighbour_find(near, hop.address, hop.link) != NULL:
                self.pop(hop, one)
                return True
            if now >= hop.again:
                hop.again = now + ASK
                neighbour_want(near, hop.address, hop.link)
        self.changes, self.looked = near.changes, now
        return False

    cdef Hop *place_of(self, Address a, uint32_t link) noexcept nogil:
        """A hop's place, or a free one, or that of the hop that has been waited for longest, whose frames are dropped."""
        cdef Hop *hop
        cdef Hop *unused = NULL
        cdef Hop *oldest = &self.hop[0]
        cdef int i
        for i in range(MOST_HOPS):
            hop = &self.hop[i]
            if hop.n == 0:
                unused = hop
            elif hop.address.lo == a.lo and hop.address.hi == a.hi and hop.link == link:
                return hop
            elif hop.until < oldest.until:
                oldest = hop
        if unused != NULL:
            return unused
        while oldest.n:
            self.drop_first(oldest)
        return oldest

    cdef bint make_room(self, uint32_t chunks) noexcept nogil:
        """For a frame of so many; False if there cannot be any."""
        cdef Hop *oldest
        cdef int i
        while self.free == NO_FRAME or self.chunks + chunks > self.room:
            oldest = NULL
            for i in range(MOST_HOPS):
                if self.hop[i].n and (oldest == NULL or self.hop[i].until < oldest.until):
                    oldest = &self.hop[i]
            if oldest == NULL:
                return False
            self.drop_first(oldest)
        return True

    cdef void pop(self, Hop *hop, Waiting *one) noexcept nogil:
        cdef int32_t at = hop.first
        one[0] = self.frame[at]
        hop.first = one.next
        hop.n -= 1
        if hop.n == 0:
            self.n_hops -= 1
        self.chunks -= 1 if one.came == one.offset else 2
        self.frame[at].next = self.free
        self.free = at

    cdef void drop_first(self, Hop *hop) noexcept nogil:
        cdef Waiting one
        self.pop(hop, &one)
        self.dropped += 1
        self.give(&one)

    cdef void give(self, const Waiting *one) noexcept nogil:
        """Its chunks become free."""
        pool_give(self.pool, one.offset, HELD)
        if one.came != one.offset:
            pool_give(self.pool, one.came, HELD)

    # --- from Python ----------------------------------------------------------------------------------------------------------------------

    def give_up(self):
        """See unresolved.pyi."""
        cdef int i
        for i in range(MOST_HOPS):
            while self.hop[i].n:
                self.drop_first(&self.hop[i])

    def waiting(self):
        """See unresolved.pyi."""
        cdef int i
        return sum([self.hop[i].n for i in range(MOST_HOPS)])

    def counters(self):
        """See unresolved.pyi."""
        return {"held": self.held, "held_dropped": self.dropped}

    def check(self):
        """See unresolved.pyi."""
        cdef int32_t at
        cdef uint32_t chunks = 0
        seen, hops = set(), 0
        for hop in self.hop[:MOST_HOPS]:
            assert 0 <= hop.n <= MOST_EACH
            hops += hop.n > 0
            at = hop.first
            for _ in range(hop.n):
                assert at not in seen, f"place {at} is in use twice"
                seen.add(at)
                for offset in {self.frame[at].offset, self.frame[at].came}:
                    assert self.pool.place[<uint64_t>offset >> self.pool.shift] == HELD, f"offset {offset} is not held"
                    chunks += 1
                at = self.frame[at].next
        assert (hops, chunks) == (self.n_hops, self.chunks)
        assert chunks <= self.room
        at = self.free
        while at != NO_FRAME:
            assert at not in seen, f"place {at} is in use and free"
            seen.add(at)
            at = self.frame[at].next
        assert len(seen) == MOST_WAITING

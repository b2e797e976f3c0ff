"""Neighbours in a hash table: the MAC address behind an interface's next hop, as the kernel has found it out.

Theory of operation: chains of entries from a pool that is allocated once. The hash is keyed, for strangers choose which addresses are looked up. What
is missing, or not sure any more, is put on a short list of wanted ones, and the first of a list rings a bell: whoever hears it (neighbours) takes the
list and has the kernel ask. What no longer fits on the list is counted; its next packet will want it again.
Invariants (check()): each entry is in one chain, that of its hash, once, or free; never more than `capacity`, of which neighbours that do not answer
take three quarters at most, so that a scan of an empty network keeps nobody out.
Not here: ARP and neighbour discovery, which the kernel does.
"""

import os
import secrets

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.unistd cimport write

from datapath.live.routes cimport Address, number_of

from datapath.live.routes import text_of


cdef void neighbour_want(Neighbours *all, Address a, uint32_t link) noexcept nogil:
    """Have somebody ask for a neighbour."""
    cdef uint64_t one = 1
    cdef uint32_t i
    if all.n_wanted == MOST_WANTED:
        all.not_asked += 1
        return
    for i in range(all.n_wanted):
        if all.wanted[i].address.hi == a.hi and all.wanted[i].address.lo == a.lo and all.wanted[i].link == link:
            return
    all.wanted[all.n_wanted].address, all.wanted[all.n_wanted].link = a, link
    all.n_wanted += 1
    all.asked += 1
    if all.n_wanted == 1:
        write(all.bell, &one, sizeof(one))


cdef class NeighbourTable:
    """See neighbour_table.pyi."""

    def __cinit__(self, uint32_t capacity=16384):
        cdef uint32_t i, heads = 16
        memset(&self.all, 0, sizeof(Neighbours))
        self.all.bell = -1
        if not 1 <= capacity <= 1 << 20:
            raise ValueError(f"capacity = {capacity}: expected 1 to {1 << 20}")
        while heads < 2 * capacity:
            heads *= 2
        self.all.head = <uint32_t *>calloc(heads, sizeof(uint32_t))
        self.all.row = <Neighbour *>calloc(capacity, sizeof(Neighbour))
        if self.all.head == NULL or self.all.row == NULL:
            raise MemoryError(f"{capacity} neighbours")
        self.all.mask, self.all.capacity = heads - 1, capacity
        for i in range(3):
            self.all.secret[i] = secrets.randbits(64) | 1
        self.clear()
        self.all.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __dealloc__(self):
        free(self.all.head)
        free(self.all.row)
        if self.all.bell >= 0:
            os.close(self.all.bell)

    @property
    def bell(self):
        return self.all.bell

    def __len__(self):
        return self.all.n

    def clear(self):
        """See neighbour_table.pyi."""
        cdef uint32_t i
        memset(self.all.head, 0xFF, (<size_t>self.all.mask + 1) * sizeof(uint32_t))
        for i in range(self.all.capacity):
            self.all.row[i].next = i + 1 if i + 1 < self.all.capacity else <uint32_t>NO_NEIGHBOUR
        self.all.free, self.all.n = 0, 0

    def put(self, uint32_t iface, address, mac, *, bint stale=False):
        """See neighbour_table.pyi."""
        state = NEIGHBOUR_FAILED if mac is None else NEIGHBOUR_STALE if stale else NEIGHBOUR_KNOWN
        if mac is not None and len(mac) != 6:
            raise ValueError(f"mac: {len(mac)} bytes: expected 6")
        return bool(self.put_one(number_of(address), 2 * iface + (address.version == 6), mac, state))

    cdef int put_one(self, Address a, uint32_t link, object mac, uint8_t state) except -1:
        cdef Neighbour *one = neighbour_find(&self.all, a, link)
        cdef uint32_t at, home
        cdef const uint8_t[::1] data
        if one == NULL:
            if self.all.free == NO_NEIGHBOUR or (state == NEIGHBOUR_FAILED and 4 * self.all.n >= 3 * self.all.capacity):
                self.all.refused += 1
                return 0
            at, home = self.all.free, neighbour_home(&self.all, a, link)
            one = &self.all.row[at]
            self.all.free = one.next
            one.address, one.link, one.next = a, link, self.all.head[home]
            self.all.head[home] = at
            self.all.n += 1
        one.state = state
        self.all.changes += 1
        if mac is not None:
            data = mac
            memcpy(one.mac, &data[0], 6)
        return 1

    def drop(self, uint32_t iface, address):
        """See neighbour_table.pyi."""
        return bool(self.drop_one(number_of(address), 2 * iface + (address.version == 6)))

    cdef bint drop_one(self, Address a, uint32_t link) except -1:
        cdef uint32_t *before = &self.all.head[neighbour_home(&self.all, a, link)]
        cdef Neighbour *one
        cdef uint32_t at
        while before[0] != NO_NEIGHBOUR:
            at = before[0]
            one = &self.all.row[at]
            if one.address.hi == a.hi and one.address.lo == a.lo and one.link == link:
                before[0] = one.next
                one.next, self.all.free = self.all.free, at
                self.all.n -= 1
                return True
            before = &one.next
        return False

    def find(self, uint32_t iface, address):
        """See neighbour_table.pyi."""
        cdef Neighbour *one = neighbour_find(&self.all, number_of(address), 2 * iface + (address.version == 6))
        return None if one == NULL else (NeighbourState(one.state), bytes(one.mac[:6]))

    def want(self, uint32_t iface, address):
        """See neighbour_table.pyi."""
        neighbour_want(&self.all, number_of(address), 2 * iface + (address.version == 6))

    def take_wanted(self):
        """See neighbour_table.pyi."""
        taken = []
        for one in self.all.wanted[:self.all.n_wanted]:
            taken.append((one.link >> 1, text_of(one.address.hi, one.address.lo, one.link & 1)))
        self.all.n_wanted = 0
        return taken

    def counters(self):
        """See neighbour_table.pyi."""
        return {"neighbours": self.all.n, "asked": self.all.asked, "not_asked": self.all.not_asked, "refused": self.all.refused}

    def check(self):
        """See neighbour_table.pyi."""
        cdef uint32_t home, at
        seen = set()
        for home in range(self.all.mask + 1):
            at = self.all.head[home]
            while at != NO_NEIGHBOUR:
                assert at not in seen, f"entry {at} is in two chains"
                seen.add(at)
                assert neighbour_home(&self.all, self.all.row[at].address, self.all.row[at].link) == home, f"entry {at} is in another's chain"
                at = self.all.row[at].next
        assert len(seen) == self.all.n
        at = self.all.free
        while at != NO_NEIGHBOUR:
            assert at not in seen, f"entry {at} is in use and free"
            seen.add(at)
            at = self.all.row[at].next
        assert len(seen) == self.all.capacity

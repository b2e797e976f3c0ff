"""Memory of frames that all ifaces share, so that a frame received by one is sent by another without being copied.

Theory of operation: one anonymous mapping is cut into chunks, each of which holds one frame. A frame is an offset into the mapping, from when it is
received until it has been sent; ifaces, stages and rules pass that on. Each worker has a stack of free chunks of its own and takes none of
another's: nothing is locked. A ledger has two bytes for each chunk that say where it is: free, held, or in which ring of which iface.
Invariants (check()): a chunk is at one place. The free ones, and no others, are on a stack, once. Ifaces count the same chunks as the ledger does.
What the ledger is for besides: of an iface that is closed, or whose device has vanished, the chunks that the kernel still had are found again.
Not here: rings (xsk), what a frame holds.
"""

import numpy as np

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from datapath.live.rows cimport Send

from ctcore.errors import ConfigError
from datapath.errors import KernelError
from datapath.live.rows import SEND_DTYPE

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long long offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    enum:
        PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_HUGEPAGE
    void *MAP_FAILED

cdef size_t HUGE = 1 << 21           # bytes of a huge page: the mapping begins at such a border, or none would be used
CHUNK_SIZES = (2048, 4096)
MOST_CHUNKS = 1 << 24
MOST_PLACES = 0xFFFF


cdef class Umem:
    """Chunks, whoever they belong to at the moment. See umem.pyi."""

    def __cinit__(self, int chunks, *, int chunk_size=2048, int workers=1, bint huge=True):
        if chunk_size not in CHUNK_SIZES:
            raise ConfigError(f"chunk_size = {chunk_size}: expected {' or '.join(map(str, CHUNK_SIZES))} bytes")
        if not 1 <= workers <= 1024:
            raise ConfigError(f"workers = {workers}: expected 1 to 1024")
        if not 1 <= chunks <= MOST_CHUNKS // workers:
            raise ConfigError(f"chunks = {chunks}: expected 1 to {MOST_CHUNKS // workers} for each of {workers} workers")
        self.chunk_size, self.workers, self.chunks = chunk_size, workers, chunks * workers
        self.size = (<uint64_t>self.chunks * chunk_size + 4095) & ~<uint64_t>4095
        self.sharers, self.names, self.spare = [], {}, []
        self.map(huge)
        self.place = <uint16_t *>calloc(self.chunks, sizeof(uint16_t))
        self.stacks = <uint64_t *>calloc(<size_t>self.chunks * workers, sizeof(uint64_t))
        self.pools = <Pool *>calloc(workers, sizeof(Pool))
        if self.place == NULL or self.stacks == NULL or self.pools == NULL:
            raise MemoryError(f"ledger of {self.chunks} chunks")
        for worker in range(workers):
            self.fill(worker, chunks)

    cdef int map(self, bint huge) except -1:
        cdef void *mapped
        self.mapped_size = self.size + HUGE
        mapped = mmap(NULL, self.mapped_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if mapped == MAP_FAILED:
            self.mapped_size = 0
            raise MemoryError(f"memory of frames: {self.size} bytes")
        self.mapped = <uint8_t *>mapped
        self.base = <uint8_t *>((<size_t>mapped + HUGE - 1) & ~(HUGE - 1))
        if huge:
            madvise(self.base, self.size, MADV_HUGEPAGE)    # a wish: without it, more entries of the TLB are used
        memset(self.base, 0, self.size)                     # so that no packet waits for a page
        return 0

    cdef int fill(self, int worker, int chunks) except -1:
        """A worker's stack with its own chunks; it has room for all there are, since those of others may come to it by an iface that both send to."""
        cdef Pool *pool = &self.pools[worker]
        cdef int i
        pool.memory, pool.place = self.base, self.place
        pool.free = self.stacks + <size_t>worker * self.chunks
        pool.mask, pool.chunks = ~<uint64_t>(self.chunk_size - 1), self.chunks
        pool.shift = self.chunk_size.bit_length() - 1
        for i in range(chunks):
            pool.free[i] = <uint64_t>(worker * chunks + chunks - 1 - i) * self.chunk_size
        pool.n = chunks
        return 0

    def __dealloc__(self):
        free(self.place)
        free(self.stacks)
        free(self.pools)
        if self.mapped_size:
            munmap(self.mapped, self.mapped_size)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.shape[0], self.strides[0] = <Py_ssize_t>self.size, 1
        buffer.buf, buffer.obj, buffer.len, buffer.itemsize = self.base, self, <Py_ssize_t>self.size, 1
        buffer.format, buffer.ndim, buffer.readonly = "B", 1, 0
        buffer.shape, buffer.strides, buffer.suboffsets, buffer.internal = self.shape, self.strides, NULL, NULL

    def __releasebuffer__(self, Py_buffer *buffer):
        pass

    @property
    def memory(self):
        return np.frombuffer(self, dtype=np.uint8)

    cdef Pool *pool(self, int worker) except NULL:
        if not 0 <= worker < self.workers:
            raise ValueError(f"worker = {worker}: expected 0 to {self.workers - 1}")
        return &self.pools[worker]

    cdef uint16_t new_place(self, str name) except 0:
        """A number for a ring, for the ledger."""
        cdef int number = self.spare.pop() if self.spare else <int>PLACES + len(self.names)
        if number > MOST_PLACES:
            raise KernelError(f"{name}: expected fewer than {MOST_PLACES} rings on one memory")
        self.names[number] = name
        return <uint16_t>number

    cdef int reclaim(self, int worker, uint16_t place) except -1:
        """A ring is gone: whatever of it the kernel still had is free, and its number can be another's. How many chunks that were."""
        cdef Pool *pool = self.pool(worker)
        cdef int i, found = 0
        for i in range(self.chunks):
            if self.place[i] == place:
                pool_give(pool, <uint64_t>i << pool.shift, place)
                found += 1
        if self.names.pop(<int>place, None) is not None:
            self.spare.append(<int>place)
        return found

    def free(self, int worker=0):
        return self.pool(worker).n

    def put(self, frames, *, int worker=0, int headroom=0):
        """Chunks of a worker with these frames; see umem.pyi."""
        cdef Pool *pool = self.pool(worker)
        cdef uint64_t offset = 0
        cdef Send *row
        cdef const uint8_t[::1] data
        cdef Py_ssize_t i
        if not 0 <= headroom < self.chunk_size:
            raise ValueError(f"headroom = {headroom}: expected 0 to {self.chunk_size - 1}")
        for i, frame in enumerate(frames):
            if len(frame) + headroom > self.chunk_size:
                raise ValueError(f"frames[{i}]: {len(frame)} bytes: expected at most {self.chunk_size - headroom}")
        if len(frames) > pool.n:
            raise MemoryError(f"{len(frames)} frames: {pool.n} free chunks are left to worker {worker}")
        rows = np.zeros(len(frames), dtype=SEND_DTYPE)
        row = <Send *><size_t>rows.ctypes.data
        for i, frame in enumerate(frames):
            data = frame
            pool_take(pool, &offset, 1, HELD)
            row[i].offset, row[i].len = offset + headroom, data.shape[0]
            if data.shape[0]:
                memcpy(self.base + row[i].offset, &data[0], data.shape[0])
        return rows

    def give(self, offsets, *, int worker=0):
        """Chunks that are held, by any offset in each, become free; see umem.pyi."""
        cdef Pool *pool = self.pool(worker)
        for offset in np.asarray(offsets, dtype=np.uint64).tolist():
            if offset >= self.size or self.place[<uint64_t>offset >> pool.shift] != HELD:
                raise ValueError(f"offset {offset}: expected a chunk that is held")
            pool_give(pool, offset, HELD)

    def places(self):
        """How many chunks are where; see umem.pyi."""
        numbers, counts = np.unique(np.asarray(<uint16_t[:self.chunks]>self.place), return_counts=True)
        names = {<int>FREE: "free", <int>HELD: "held", **self.names}
        return {names.get(number, f"place {number}"): count for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)}

    def check(self):
        """Prove the invariants; see umem.pyi."""
        cdef Pool *pool
        cdef uint32_t i
        cdef int total = 0
        seen = set()
        for worker in range(self.workers):
            pool = &self.pools[worker]
            assert pool.wrong == 0, f"worker {worker}: {pool.wrong} chunks were not where they were said to be"
            total += pool.n
            for i in range(pool.n):
                offset = pool.free[i]
                assert offset % self.chunk_size == 0 and offset // self.chunk_size < self.chunks, f"worker {worker}: no chunk begins at {offset}"
                assert offset not in seen, f"worker {worker}: chunk {offset} is free twice"
                assert self.place[offset // self.chunk_size] == FREE, f"worker {worker}: chunk {offset} is free, but the ledger says it is not"
                seen.add(offset)
        places = self.places()
        assert places.get("free", 0) == total, f"the ledger has {places.get('free', 0)} free chunks, the stacks have {total}"
        assert sum(places.values()) == self.chunks
        assert not [name for name in places if name.startswith("place ")], f"chunks at places that are no more: {places}"

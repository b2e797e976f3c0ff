# A worker's free chunks, and the ledger that says of every chunk where it is; see umem.pyx.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.lowlevel cimport unlikely

# Where a chunk is. Places from PLACES on are rings of ifaces.
cdef enum:
    FREE = 0
    HELD = 1                    # by whoever received it or took it, and will send it or give it back
    PLACES = 2

ctypedef struct Pool:
    uint8_t *memory             # of all chunks
    uint16_t *place             # the ledger, of all chunks
    uint64_t *free              # a stack: what was used last is in the cache, and used next
    uint64_t mask               # offset & mask: its chunk's
    uint32_t n                  # free chunks
    uint32_t shift              # offset >> shift: its chunk's number
    uint32_t chunks             # of the whole memory
    uint64_t wrong              # chunks that were not where they were said to be
    uint64_t empty              # chunks that were asked for and not there

cdef inline bint pool_move(Pool *pool, uint64_t offset, uint16_t before, uint16_t after) noexcept nogil:
    """Enter a chunk's new place. False, and nothing is entered, if it was not at the one before."""
    cdef uint64_t chunk = offset >> pool.shift
    if unlikely(chunk >= pool.chunks or pool.place[chunk] != before):
        pool.wrong += 1
        return False
    pool.place[chunk] = after
    return True

cdef inline void pool_give(Pool *pool, uint64_t offset, uint16_t before) noexcept nogil:
    """A chunk, by any offset in it, becomes free. One that was not at the place before is not: it might be in use."""
    if pool_move(pool, offset, before, FREE):
        pool.free[pool.n] = offset & pool.mask
        pool.n += 1

cdef inline int pool_take(Pool *pool, uint64_t *offsets, int n, uint16_t after) noexcept nogil:
    """Up to n free chunks; how many there were."""
    cdef int i, k = n
    if unlikely(<uint32_t>k > pool.n):
        k = <int>pool.n
        pool.empty += n - k
    for i in range(k):
        pool.n -= 1
        offsets[i] = pool.free[pool.n]
        pool.place[offsets[i] >> pool.shift] = after
    return k

cdef class Umem:
    cdef readonly uint64_t size
    cdef readonly int chunk_size
    cdef readonly int chunks
    cdef readonly int workers
    cdef readonly list sharers  # open AF_XDP ifaces, any of which the next one can share the registration of
    cdef uint8_t *base
    cdef uint8_t *mapped
    cdef size_t mapped_size
    cdef uint16_t *place
    cdef uint64_t *stacks
    cdef Pool *pools
    cdef dict names             # of places, by number
    cdef list spare             # numbers of places that were given up
    cdef Py_ssize_t[1] shape    # of the buffer that Python sees
    cdef Py_ssize_t[1] strides

    cdef int map(self, bint huge) except -1
    cdef int fill(self, int worker, int chunks) except -1
    cdef Pool *pool(self, int worker) except NULL
    cdef uint16_t new_place(self, str name) except 0
    cdef int reclaim(self, int worker, uint16_t place) except -1

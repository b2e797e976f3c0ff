from libc.stdint cimport uint32_t

from ctcore.types cimport Entry, NO_CONN

ctypedef struct Pool:
    Entry *entry
    uint32_t capacity
    uint32_t used               # slots ever handed out: entry[used:] was never touched and costs no memory
    uint32_t free               # head of the list of returned slots, linked by wheel_next
    uint32_t carried            # slots that only their packet knows: neither live nor free

cdef void *map_memory(size_t size) noexcept nogil
cdef void unmap_memory(void *memory, size_t size) noexcept nogil
cdef str pool_fault(const Pool *pool)


cdef inline uint32_t pool_take(Pool *pool) noexcept nogil:
    """A slot, or NO_CONN if all are in use. What it holds is left from its last life."""
    cdef uint32_t conn = pool.free
    if conn != NO_CONN:
        pool.free = pool.entry[conn].wheel_next
        return conn
    if pool.used == pool.capacity:
        return NO_CONN
    pool.used += 1
    return pool.used - 1


cdef inline void pool_carry(Pool *pool, uint32_t conn) noexcept nogil:
    """A slot that was taken, and is in no table (any more), is carried by its packet: who stops that counts it out, and gives it back or enters it."""
    pool.entry[conn].live = 0
    pool.carried += 1


cdef inline void pool_give(Pool *pool, uint32_t conn) noexcept nogil:
    """Return a slot. Its generation counts on, so that whoever remembers it can see that it died."""
    cdef Entry *entry = &pool.entry[conn]
    entry.live = 0
    entry.generation += 1
    entry.wheel_next = pool.free
    pool.free = conn

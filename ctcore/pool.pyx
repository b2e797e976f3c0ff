"""The slab of connections: mapped once, handed out slot by slot, most recently returned first (its lines are still in the cache).

The memory is reserved at the start and becomes resident as slots are first used. Huge pages are asked for, since a table of a million
connections spans 60,000 small pages and a lookup would miss the TLB before it misses the cache.
Invariant (check): every slot ever handed out is live, carried by a packet, or in the free list.
Not here: what is in an entry, and when it dies.
"""

from libc.stdint cimport uint32_t

from ctcore.types cimport NO_CONN

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_HUGEPAGE
    void *MAP_FAILED

cdef enum:
    HUGE_PAGE = 1 << 21


cdef void *map_memory(size_t size) noexcept nogil:
    """`size` zero bytes from a huge-page boundary on, or NULL. size is a multiple of 4,096; unmap_memory() takes the same."""
    cdef size_t whole = size + HUGE_PAGE
    cdef char *start = <char *>mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef size_t head
    if start == <char *>MAP_FAILED:
        return NULL
    head = (HUGE_PAGE - <size_t>start % HUGE_PAGE) % HUGE_PAGE
    if head:
        munmap(start, head)
    munmap(start + head + size, HUGE_PAGE - head)
    if size >= HUGE_PAGE:
        madvise(start + head, size, MADV_HUGEPAGE)
    return start + head


cdef void unmap_memory(void *memory, size_t size) noexcept nogil:
    if memory != NULL:
        munmap(memory, size)


cdef str pool_fault(const Pool *pool):
    """What breaks the pool's invariant, or an empty string."""
    cdef uint32_t conn = pool.free
    free = set()
    while conn != NO_CONN:
        if conn in free or pool.entry[conn].live:
            return f"slot {conn} is in the free list twice, or lives"
        free.add(conn)
        conn = pool.entry[conn].wheel_next
    live = sum([pool.entry[conn].live != 0 for conn in range(pool.used)])
    if live + len(free) + pool.carried == pool.used:
        return ""
    return f"{live} slots live, {len(free)} are free and {pool.carried} carried, {pool.used} were handed out"

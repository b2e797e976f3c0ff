# A ring of AF_XDP, shared with the kernel: one side produces, the other consumes, and each publishes only its own index.
#
# Our index is kept here and published with a release; the kernel's is read with an acquire, and only when what was seen of it last is used up. So
# what is written to or read from descriptors is ordered on machines that are not x86, too. Indices run freely through 2^32; a slot is index & mask.
# The layouts are those of linux/if_xdp.h, written down here since headers of older distributions lack parts of it.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    struct ct_xdp_address { uint16_t family, flags; uint32_t index, queue, shared_fd; };
    struct ct_xdp_offset { uint64_t producer, consumer, desc, flags; };
    struct ct_xdp_offsets { struct ct_xdp_offset rx, tx, fill, completion; };
    struct ct_xdp_memory { uint64_t address, length; uint32_t chunk_size, headroom; };
    struct ct_xdp_desc { uint64_t address; uint32_t length, options; };
    struct ct_xdp_counts { uint64_t rx_dropped, rx_invalid, tx_invalid, rx_ring_full, fill_empty, tx_empty; };
    static inline uint32_t ct_load_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void ct_store_release(uint32_t *p, uint32_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }
    """
    ctypedef struct Address "struct ct_xdp_address":
        uint16_t family
        uint16_t flags
        uint32_t index
        uint32_t queue
        uint32_t shared_fd
    ctypedef struct Offset "struct ct_xdp_offset":
        uint64_t producer
        uint64_t consumer
        uint64_t desc
        uint64_t flags
    ctypedef struct Offsets "struct ct_xdp_offsets":
        Offset rx
        Offset tx
        Offset fill
        Offset completion
    ctypedef struct Memory "struct ct_xdp_memory":
        uint64_t address
        uint64_t length
        uint32_t chunk_size
        uint32_t headroom
    ctypedef struct Desc "struct ct_xdp_desc":
        uint64_t address
        uint32_t length
        uint32_t options
    ctypedef struct Counts "struct ct_xdp_counts":
        uint64_t rx_dropped
        uint64_t rx_invalid
        uint64_t tx_invalid
        uint64_t rx_ring_full
        uint64_t fill_empty
        uint64_t tx_empty
    uint32_t load_acquire "ct_load_acquire"(const uint32_t *p) noexcept nogil
    void store_release "ct_store_release"(uint32_t *p, uint32_t value) noexcept nogil

cdef enum:
    NEED_WAKEUP = 1             # in a ring's flags: the kernel sleeps until a system call

ctypedef struct Ring:
    uint32_t *producer
    uint32_t *consumer
    uint32_t *flags
    void *slots                 # Desc of rx and tx, uint64_t of fill and completion
    uint32_t mine               # our index
    uint32_t theirs             # the kernel's, as it was seen last
    uint32_t size
    uint32_t mask
    void *map
    size_t length

cdef inline uint32_t ring_filled(Ring *ring, uint32_t wanted) noexcept nogil:
    """Where we consume: how many slots can be read, at most `wanted`."""
    cdef uint32_t n = ring.theirs - ring.mine
    if n < wanted:
        ring.theirs = load_acquire(ring.producer)
        n = ring.theirs - ring.mine
    return n if n < wanted else wanted

cdef inline uint32_t ring_room(Ring *ring, uint32_t wanted) noexcept nogil:
    """Where we produce: how many slots can be written, at most `wanted`."""
    cdef uint32_t n = ring.size - (ring.mine - ring.theirs)
    if n < wanted:
        ring.theirs = load_acquire(ring.consumer)
        n = ring.size - (ring.mine - ring.theirs)
    return n if n < wanted else wanted

cdef inline uint32_t ring_waiting(Ring *ring) noexcept nogil:
    """Where we produce: what the kernel has not taken yet."""
    ring.theirs = load_acquire(ring.consumer)
    return ring.mine - ring.theirs

# Connections that go astray by their hash: announced by helpers, and so the first share's, whatever their tuples are; see strays.pyx.

from libc.stdint cimport uint32_t, uint64_t

from ctcore.lowlevel cimport mul_fold
from ctcore.steering cimport STEER_PROTO, steer_end, steer_ends
from ctcore.types cimport Key

cdef enum:
    WAYS = 8                    # of a bucket: one cache line of hashes
    BUCKETS = 1024              # a power of two

cdef extern from *:
    """
    static inline uint64_t ct_stray_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void ct_stray_store(uint64_t *p, uint64_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }
    """
    uint64_t stray_load "ct_stray_load"(const uint64_t *p) noexcept nogil
    void stray_store "ct_stray_store"(uint64_t *p, uint64_t value) noexcept nogil

ctypedef struct Strays:
    uint64_t n                  # entries; nobody looks while it is 0
    uint64_t full               # that found no place
    uint64_t pad[6]
    uint64_t hash[BUCKETS * WAYS]   # 0: free
    uint32_t uses[BUCKETS * WAYS]   # of the writer

cdef void strays_add(Strays *all, uint64_t hash) noexcept nogil
cdef void strays_drop(Strays *all, uint64_t hash) noexcept nogil

cdef class StrayTable:
    cdef Strays *all

cdef inline uint64_t stray_expected(const Key *key) noexcept nogil:
    """Of what is announced: destination, port and protocol, which are never left open."""
    return mul_fold(steer_end(key.dst, key.dport) ^ key.proto, STEER_PROTO) | 1

cdef inline uint64_t stray_tuple(const Key *key) noexcept nogil:
    """Of a tuple and its answers."""
    return steer_ends(key.src, key.sport, key.dst, key.dport, key.proto) | 1

cdef inline bint strays_have(const Strays *all, uint64_t hash) noexcept nogil:
    cdef const uint64_t *bucket = &all.hash[(hash >> 40 & (BUCKETS - 1)) * WAYS]
    cdef int i
    for i in range(WAYS):
        if stray_load(&bucket[i]) == hash:
            return True
    return False

cdef inline bint is_stray(const Strays *all, const Key *key) noexcept nogil:
    """Whether a packet's tuple is announced, or that of a connection which was."""
    return strays_have(all, stray_expected(key)) or strays_have(all, stray_tuple(key))

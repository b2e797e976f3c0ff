from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ctcore.types cimport Key

ctypedef struct Expectation:
    Key key                     # src, dst, proto, family, zone and dport must fit; sport too, unless it is 0
    int64_t master              # ordinal
    uint64_t deadline           # tick
    uint32_t master_conn        # slot of the master; it outlives the expectation
    uint32_t next               # in the chain, or in the free list
    uint8_t permanent
    uint8_t live

ctypedef struct Expectations:
    Expectation *row
    uint32_t *head              # chains by hash of destination and protocol; not written while used is 0
    uint32_t size
    uint32_t used               # rows ever handed out
    uint32_t free
    uint32_t count
    uint32_t n_heads            # a power of two
    uint64_t next_due           # tick before which none expires
    uint64_t created
    uint64_t deleted
    uint64_t matched

cdef uint32_t expect_find(Expectations *all, const Key *key, uint64_t tick) noexcept nogil
cdef void expect_init(Expectations *all) noexcept nogil
cdef uint32_t expect_add(Expectations *all, const Key *key, int64_t master, uint64_t tick, uint64_t deadline) noexcept nogil
cdef void expect_remove(Expectations *all, uint32_t row) noexcept nogil
cdef void expect_remove_of(Expectations *all, int64_t master) noexcept nogil
cdef void expect_expire(Expectations *all, uint64_t tick) noexcept nogil
cdef str expect_fault(const Expectations *all)

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.extensions cimport Extension
from ctcore.strays cimport Strays
from ctcore.types cimport Key

# What its child's addresses become.
cdef enum Follow:
    FOLLOW_NONE
    FOLLOW_MASTER               # as the master is translated
    FOLLOW_PPTP                 # the same, and the other direction of the tunnel is expected no more
    FOLLOW_SIP                  # the destination as it was before; the source as the master's, if it is the master's

# How an expectation fares that a helper announces.
cdef enum Announced:
    ANNOUNCED
    EXPECT_BUSY                 # it clashes with another one
    EXPECT_ALREADY              # the very same is there, as another kind or, if it is shared, of another connection
    EXPECT_REFUSED              # too many of them

ctypedef struct Expectation:
    Key key                     # dst, dport, proto, family and zone must fit; src and sport too, unless they are open
    uint64_t saved[2]           # the destination address its packets had if nobody translated them; of FOLLOW_SIP
    int64_t master              # ordinal
    uint64_t deadline           # tick
    uint32_t master_conn        # slot of the master; it outlives the expectation
    uint32_t next               # in the chain, or in the free list
    uint32_t older              # of the same master's helper, or NO_CONN
    uint32_t owner              # the master's extension, or 0 if no helper has announced it
    uint16_t saved_port         # as saved, of all that follow
    uint8_t kind                # class: each has limits of its own
    uint8_t dir                 # of the master, in which its packets go
    uint8_t any_src
    uint8_t any_sport
    uint8_t follow              # Follow
    uint8_t helper              # HELPER_* that its connection gets, or 0
    uint8_t permanent
    uint8_t inactive            # does not fit anything yet
    uint8_t shared              # whoever announces it first
    uint8_t live

ctypedef struct Expectations:
    Expectation *row
    Extension *extension        # rows of the masters' extensions
    uint32_t *head              # chains by hash of destination and protocol; not written while used is 0
    uint32_t size
    uint32_t used               # rows ever handed out
    uint32_t free
    uint32_t count
    uint32_t n_heads            # a power of two
    uint64_t secret             # of the chains' hash
    Strays *strays              # where to enter what is expected; NULL: nobody asks
    uint64_t next_due           # tick before which none expires
    uint64_t created
    uint64_t deleted
    uint64_t matched

cdef uint32_t expect_find(Expectations *all, const Key *key, uint64_t tick) noexcept nogil
cdef uint32_t expect_match(Expectations *all, const Key *key) noexcept nogil
cdef void expect_init(Expectations *all) noexcept nogil
cdef uint32_t expect_add(Expectations *all, const Expectation *draft, uint64_t tick) noexcept nogil
cdef uint32_t expect_enter(Expectations *all, const Expectation *draft) noexcept nogil
cdef Announced expect_announce(Expectations *all, const Expectation *draft, uint32_t most, uint64_t tick) noexcept nogil
cdef uint32_t expect_same(Expectations *all, const Expectation *draft) noexcept nogil
cdef void expect_remove(Expectations *all, uint32_t row) noexcept nogil
cdef void expect_remove_of(Expectations *all, int64_t master) noexcept nogil
cdef void expect_remove_owned(Expectations *all, uint32_t owner) noexcept nogil
cdef void expect_expire(Expectations *all, uint64_t tick) noexcept nogil
cdef str expect_fault(const Expectations *all)

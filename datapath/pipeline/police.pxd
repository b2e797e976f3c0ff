# A policer's tokens, as ns that may be spent (act_police): a packet costs as long as its bytes take at the rate. The twin of interpret.Bucket.
#
# Invariant: what is left never exceeds what a full bucket has. Beyond 2^62 ns (146 years) all times are the same.

from libc.stdint cimport int64_t, uint8_t, uint64_t

from ctcore.lowlevel cimport likely, unlikely

cdef enum:
    SECOND = 1000000000

cdef extern from * nogil:
    """
    #include <sched.h>
    /* a * b / c, of 128 bits on the way; what is larger than 64 bits is the largest number of these. */
    static inline uint64_t ct_mul_div(uint64_t a, uint64_t b, uint64_t c) {
        unsigned __int128 quotient = (unsigned __int128)a * b / c;
        return quotient >> 64 ? UINT64_MAX : (uint64_t)quotient;
    }
    #define CT_FOREVER (1ULL << 62)
    /* Held for some ns. Who holds it may have lost its CPU: then whoever waits leaves its own, too. */
    static inline void ct_bucket_lock(uint8_t *lock) {
        for (int tries = 1; __atomic_test_and_set(lock, __ATOMIC_ACQUIRE); tries++)
            if (tries % 1000 == 0)
                sched_yield();
    }
    static inline void ct_bucket_unlock(uint8_t *lock) { __atomic_clear(lock, __ATOMIC_RELEASE); }
    """
    void bucket_lock "ct_bucket_lock"(uint8_t *lock)
    void bucket_unlock "ct_bucket_unlock"(uint8_t *lock)
    uint64_t mul_div "ct_mul_div"(uint64_t a, uint64_t b, uint64_t c)
    const uint64_t FOREVER "CT_FOREVER"

ctypedef struct Bucket:
    int64_t last                # ns: when tokens were last spent
    uint64_t bytes_left         # ns
    uint64_t packets_left
    uint64_t bytes_full         # what a full bucket has
    uint64_t packets_full
    uint64_t rate               # bits a second; 0: bytes cost nothing
    uint64_t packet_cost        # ns
    uint64_t mtu                # bytes; longer packets never conform
    uint8_t begun               # it is full when the first packet comes
    uint8_t shared              # several workers spend its tokens
    uint8_t lock

cdef inline uint64_t refilled(uint64_t left, uint64_t passed, uint64_t full) noexcept nogil:
    """Safe: neither is above FOREVER."""
    return min(left + passed, full)

cdef inline bint conforms(Bucket *b, uint64_t length, uint64_t free, int64_t now) noexcept nogil:
    """Whether a packet of so many bytes, of which so many are free, has a token; if so it is spent."""
    cdef uint64_t passed, cost, of_bytes, of_packets
    if unlikely(not b.begun):
        b.begun = True
        b.last = now
        b.bytes_left, b.packets_left = b.bytes_full, b.packets_full
    if length > b.mtu:
        return False
    passed = <uint64_t>now - <uint64_t>b.last if now > b.last else 0
    passed = min(passed, FOREVER)
    cost = mul_div(length - min(length, free), 8 * <uint64_t>SECOND, b.rate) if b.rate else 0
    of_bytes = refilled(b.bytes_left, passed, b.bytes_full)
    of_packets = refilled(b.packets_left, passed, b.packets_full)
    if of_bytes < cost or of_packets < b.packet_cost:
        return False
    b.last = max(now, b.last)
    b.bytes_left = of_bytes - cost
    b.packets_left = of_packets - b.packet_cost
    return True

cdef inline bint spent(Bucket *b, uint64_t length, uint64_t free, int64_t now) noexcept nogil:
    """The same, whoever else spends its tokens."""
    cdef bint found
    if likely(not b.shared):
        return conforms(b, length, free, now)
    bucket_lock(&b.lock)
    found = conforms(b, length, free, now)
    bucket_unlock(&b.lock)
    return found

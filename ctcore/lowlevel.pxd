# What C offers and Cython has no word for: prefetch, branch hints, 64x64 -> 128 bit products, bit scans, unaligned loads and stores.
# GCC and Clang builtins only, so x86-64 and aarch64 alike.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline void ct_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }
    static inline void ct_prefetch_write(const void *p) { __builtin_prefetch(p, 1, 3); }
    static inline int ct_likely(int x) { return __builtin_expect(x != 0, 1); }
    static inline int ct_unlikely(int x) { return __builtin_expect(x != 0, 0); }
    static inline uint64_t ct_mul_fold(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    static inline int ct_first_bit(uint64_t x) { return __builtin_ctzll(x); }
    static inline uint16_t ct_be16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
    static inline uint32_t ct_be32(const uint8_t *p) { uint32_t x; memcpy(&x, p, 4); return __builtin_bswap32(x); }
    static inline void ct_put_be16(uint8_t *p, uint32_t x) { p[0] = (uint8_t)(x >> 8); p[1] = (uint8_t)x; }
    static inline void ct_put_be32(uint8_t *p, uint32_t x) { x = __builtin_bswap32(x); memcpy(p, &x, 4); }
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "ctmirror supports little-endian machines"
    #endif
    """
    void prefetch "ct_prefetch"(const void *p) noexcept nogil
    void prefetch_write "ct_prefetch_write"(const void *p) noexcept nogil
    bint likely "ct_likely"(bint x) noexcept nogil
    bint unlikely "ct_unlikely"(bint x) noexcept nogil
    uint64_t mul_fold "ct_mul_fold"(uint64_t a, uint64_t b) noexcept nogil
    int first_bit "ct_first_bit"(uint64_t x) noexcept nogil
    uint16_t be16 "ct_be16"(const uint8_t *p) noexcept nogil
    uint32_t be32 "ct_be32"(const uint8_t *p) noexcept nogil
    void put_be16 "ct_put_be16"(uint8_t *p, uint32_t x) noexcept nogil  # the lower half
    void put_be32 "ct_put_be32"(uint8_t *p, uint32_t x) noexcept nogil

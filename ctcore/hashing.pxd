from libc.stdint cimport uint32_t, uint64_t

from ctcore.lowlevel cimport mul_fold
from ctcore.types cimport Key

ctypedef struct HashKey:
    uint64_t word[7]

cdef void hash_seed(HashKey *k, uint64_t seed) noexcept nogil


cdef inline uint32_t hash_of(const HashKey *k, const Key *key) noexcept nogil:
    """32 bits of a tuple under a secret key; see hashing.pyx."""
    cdef const uint64_t *w = <const uint64_t *>key
    cdef uint64_t h = (mul_fold(w[0] ^ k.word[0], w[2] ^ k.word[1]) + mul_fold(w[1] ^ k.word[2], w[3] ^ k.word[3]))
    h = mul_fold(h ^ k.word[4], w[4] ^ k.word[5])
    return <uint32_t>(((h ^ (h >> 32)) * (k.word[6] | 1)) >> 32)

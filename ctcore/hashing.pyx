"""The keyed hash of tuples.

Three 64x64 -> 128 bit products over the five words of a Key, each input masked by a secret word: the construction of the NH family (RFC 4418
5.2.1) with folded products. Strangers choose the tuples, so the key must be unknown to them and must never leave the process; Config.seed
fixes it where a replay has to be reproducible. A last multiplication breaks up what is left of the order of ports between two fixed hosts,
which pass only one of the products. The words of the key are drawn from the seed by splitmix64.
Not here: how the 32 bits are used (table: the upper ones choose the bucket, the lower 16 are the tag).
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from ctcore.types cimport Key


cdef void hash_seed(HashKey *k, uint64_t seed) noexcept nogil:
    """Expand a seed into the secret words."""
    cdef uint64_t z
    cdef int i
    for i in range(7):
        seed += <uint64_t>0x9E3779B97F4A7C15
        z = seed
        z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
        k.word[i] = z ^ (z >> 31)


def key_hash(bytes key not None, seed):
    """The hash the engine gives to a tuple.   key: the 40 bytes of a Key (KEY_DTYPE); seed: Config.seed. Returns an int of 32 bits."""
    cdef HashKey k
    cdef Key tuple
    if len(key) != sizeof(Key):
        raise ValueError(f"key: {len(key)} bytes: expected {sizeof(Key)}")
    memcpy(&tuple, <const char *>key, sizeof(Key))
    hash_seed(&k, seed)
    return hash_of(&k, &tuple)

# Connections by their original source: chains of references; see nat_chain.pyx.

from libc.stdint cimport uint32_t, uint64_t

from ctcore.engine cimport Engine
from ctcore.lowlevel cimport mul_fold
from ctcore.nat_table cimport Nat
from ctcore.types cimport Key

# A reference in a chain: the slot of a connection, a few bits of its source's hash, and whether it is the chain's last.
cdef enum:
    REF_SLOT = 0x03FFFFFF       # config.CAPACITY_LIMIT, and what packets carry on top of it (act.MOST_CARRIED), is what this holds
    REF_TAG = 0x7C000000
    REF_TAG_SHIFT = 26
    REF_TAGS = 31               # the 32nd is NO_REF's alone
    REF_LAST = 0x80000000
    NO_REF = 0xFFFFFFFF

cdef void nat_link(Engine *ct, uint32_t conn) noexcept nogil
cdef void nat_unlink(Engine *ct, uint32_t conn) noexcept nogil
cdef str nat_fault(const Engine *ct)


cdef inline uint64_t source_hash(const Nat *nat, const Key *original) noexcept nogil:
    """Of source address, protocol and port, under a secret: sources are whatever strangers write into a packet, and a chain is read to its end."""
    cdef uint64_t port = <uint64_t>original.sport << 8 | original.proto
    cdef uint64_t address = mul_fold(original.src[0] ^ nat.secret[0], original.src[1] ^ nat.secret[1])
    return mul_fold(address ^ port, nat.secret[2])


cdef inline uint32_t *chain_of(const Nat *nat, uint64_t hash) noexcept nogil:
    return &nat.head[hash & (nat.n_heads - 1)]


cdef inline uint32_t tag_bits(uint64_t hash) noexcept nogil:
    """What a reference to a connection says of its source: most strangers in a chain are known by it, and none of their memory is read."""
    return <uint32_t>((hash >> 58) % REF_TAGS) << REF_TAG_SHIFT

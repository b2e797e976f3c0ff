from libc.stdint cimport uint8_t, uint32_t, uint64_t

from datapath.pipeline.flower cimport FLOWER_WORDS, FlowerKey

cdef enum:
    NO_PLACE = 0xFFFFFFFF

# All entries of a chain with the same mask. word: those of its words that are not zero, of which alone a packet is read.
ctypedef struct Group:
    uint64_t mask[FLOWER_WORDS]
    uint8_t word[FLOWER_WORDS]
    uint32_t n_words
    uint32_t first              # lowest and highest place of its entries
    uint32_t last
    uint32_t slots              # where its hash table begins, in Classifier.slot
    uint32_t size               # a power of two

# A rule, or a part of one. place: in the chain's order, lower is earlier.
ctypedef struct Slot:
    uint32_t place
    uint32_t next               # another entry with the same mask and value, of a later place, in Table.more; NO_PLACE: none
    uint64_t value[FLOWER_WORDS]

ctypedef struct Table:
    Group *group                # by chain, each chain's in order of `first`
    uint32_t *start             # by chain: its first group, and behind the last chain the end
    uint32_t *tag               # by slot: a part of its value's hash; 0: free. What does not match, mostly, costs no look at the slot itself
    Slot *slot
    Slot *more
    uint32_t n_chains
    uint64_t secret[FLOWER_WORDS]

cdef uint32_t classify(const Table *table, uint32_t chain, const FlowerKey *key, uint32_t least) noexcept nogil

cdef class Classifier:
    cdef Table table
    cdef readonly object arrays         # that the table points into

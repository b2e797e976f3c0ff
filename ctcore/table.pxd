from libc.stdint cimport uint16_t, uint32_t, uint64_t

from ctcore.lowlevel cimport first_bit
from ctcore.types cimport Entry, Key, NO_FLOW

cdef enum:
    SLOTS = 10
    FARTHEST = 64               # buckets, its home included, in which a flow may lie: a flood of collisions costs this much, not more

ctypedef struct Bucket:
    uint16_t tag[10]            # 0: free
    uint32_t flow[10]
    uint32_t passed             # flows that found this bucket full on their way and lie further on

ctypedef struct Table:
    Bucket *bucket
    uint32_t n_buckets
    uint32_t n_flows

cdef uint32_t table_find(const Table *table, const Entry *entry, uint32_t hash, const Key *key) noexcept nogil
cdef bint table_insert(Table *table, uint32_t hash, uint32_t flow) noexcept nogil
cdef bint table_erase(Table *table, uint32_t hash, uint32_t flow) noexcept nogil
# A search for all flows whose hashes lie in a range. Flows may be erased meanwhile, but none inserted.
ctypedef struct Walk:
    uint32_t low                # the range, both ends included
    uint32_t high
    uint32_t at                 # the bucket and the slot to look at next
    uint32_t left               # buckets of the table not looked at yet
    int slot
    int beyond                  # buckets behind the last one that is home to such hashes; -1: not there yet

cdef void walk_start(const Table *table, Walk *walk, uint32_t low, uint32_t high) noexcept nogil
cdef uint32_t walk_next(const Table *table, const Entry *entry, Walk *walk) noexcept nogil
cdef str table_fault(const Table *table, const Entry *entry)


cdef inline uint32_t bucket_of(const Table *table, uint32_t hash) noexcept nogil:
    return <uint32_t>((<uint64_t>hash * table.n_buckets) >> 32)


cdef inline uint16_t tag_of(uint32_t hash) noexcept nogil:
    """The lower 16 bits; the bucket takes the upper ones. 0 marks a free slot, so it becomes 1."""
    cdef uint16_t tag = <uint16_t>hash
    return tag if tag else 1


cdef inline bint same_key(const Key *a, const Key *b) noexcept nogil:
    """Keys have no padding: five words say all."""
    cdef const uint64_t *x = <const uint64_t *>a
    cdef const uint64_t *y = <const uint64_t *>b
    return ((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) | (x[4] ^ y[4])) == 0


cdef inline const Key *key_of(const Entry *entry, uint32_t flow) noexcept nogil:
    return &entry[flow >> 1].flow[flow & 1].key


cdef inline uint64_t zero_lanes(uint64_t x) noexcept nogil:
    """The top bit of every 16-bit lane that is zero. A lane above a zero one may be set too: only the lowest is to be believed."""
    return (x - <uint64_t>0x0001000100010001) & ~x & <uint64_t>0x8000800080008000


cdef inline int first_slot(const Bucket *bucket, uint16_t tag) noexcept nogil:
    """The first slot with this tag (0: the first free one), or -1."""
    cdef const uint64_t *word = <const uint64_t *>bucket.tag
    cdef uint64_t wanted = <uint64_t>tag * <uint64_t>0x0001000100010001
    cdef uint64_t hit = zero_lanes(word[0] ^ wanted)
    if hit:
        return first_bit(hit) >> 4
    hit = zero_lanes(word[1] ^ wanted)
    if hit:
        return 4 + (first_bit(hit) >> 4)
    if bucket.tag[8] == tag:
        return 8
    return 9 if bucket.tag[9] == tag else -1


cdef inline uint32_t table_candidate(const Table *table, uint32_t hash) noexcept nogil:
    """The first flow in the home bucket with the right tag, unverified, or NO_FLOW."""
    cdef const Bucket *bucket = &table.bucket[bucket_of(table, hash)]
    cdef int slot = first_slot(bucket, tag_of(hash))
    return bucket.flow[slot] if slot >= 0 else NO_FLOW

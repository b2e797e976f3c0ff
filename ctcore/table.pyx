"""The hash table: from a tuple to its flow.

Theory of operation: a bucket is one cache line with ten tags of 16 bits and ten flow ids. A flow lies in the first free slot at or after its
home bucket; every full bucket it passed counts it in `passed`, so a search ends at the first bucket nobody passed, and erasing needs no
tombstones. No flow lies farther than 64 buckets from home: whoever finds tuples that collide can fill these, and no more.
At most seven flows a bucket are meant on average, so most lookups touch one line here and one in the entry.
Example: home bucket 7 is full, the flow goes to 8 and bucket 7 counts one passer-by. A lookup reads 7 (no tag fits, passed = 1), then 8.
Invariants (check): the flows in the buckets are those of live entries, each in one slot, with its hash's tag; `passed` is exact.
Not here: the keys themselves (they are in the entries), and what a miss means.
"""

from libc.stdint cimport uint16_t, uint32_t

from ctcore.types cimport Entry, Key, NO_FLOW


cdef inline uint32_t next_bucket(const Table *table, uint32_t at) noexcept nogil:
    return at + 1 if at + 1 < table.n_buckets else 0


cdef uint32_t table_find(const Table *table, const Entry *entry, uint32_t hash, const Key *key) noexcept nogil:
    """The flow with this key, or NO_FLOW."""
    cdef uint32_t at = bucket_of(table, hash)
    cdef uint16_t tag = tag_of(hash)
    cdef const Bucket *bucket
    cdef int slot, distance
    for distance in range(FARTHEST):
        bucket = &table.bucket[at]
        slot = first_slot(bucket, tag)
        if slot >= 0:
            for slot in range(slot, SLOTS):
                if bucket.tag[slot] == tag and same_key(key_of(entry, bucket.flow[slot]), key):
                    return bucket.flow[slot]
        if bucket.passed == 0:
            break
        at = next_bucket(table, at)
    return NO_FLOW


cdef bint table_insert(Table *table, uint32_t hash, uint32_t flow) noexcept nogil:
    """Put a flow that is not there yet. False, and nothing has changed, if all buckets in its reach are full."""
    cdef uint32_t home = bucket_of(table, hash)
    cdef uint32_t at = home
    cdef int slot, distance
    for distance in range(FARTHEST):
        slot = first_slot(&table.bucket[at], 0)
        if slot >= 0:
            table.bucket[at].tag[slot] = tag_of(hash)
            table.bucket[at].flow[slot] = flow
            table.n_flows += 1
            while home != at:
                table.bucket[home].passed += 1
                home = next_bucket(table, home)
            return True
        at = next_bucket(table, at)
        if at == home:
            break
    return False


cdef bint table_erase(Table *table, uint32_t hash, uint32_t flow) noexcept nogil:
    """Take a flow out. False if it was not there: then nothing has changed."""
    cdef uint32_t home = bucket_of(table, hash)
    cdef uint32_t at = home
    cdef Bucket *bucket
    cdef int slot, distance
    for distance in range(FARTHEST):
        bucket = &table.bucket[at]
        for slot in range(SLOTS):
            if bucket.tag[slot] and bucket.flow[slot] == flow:
                bucket.tag[slot] = 0
                table.n_flows -= 1
                while home != at:
                    table.bucket[home].passed -= 1
                    home = next_bucket(table, home)
                return True
        if bucket.passed == 0:
            break
        at = next_bucket(table, at)
    return False


cdef void walk_start(const Table *table, Walk *walk, uint32_t low, uint32_t high) noexcept nogil:
    """Begin a walk over the flows with hashes from low to high."""
    walk.low, walk.high = low, high
    walk.at = bucket_of(table, low)
    walk.left = table.n_buckets
    walk.slot = 0
    walk.beyond = 0 if walk.at == bucket_of(table, high) else -1


cdef uint32_t walk_next(const Table *table, const Entry *entry, Walk *walk) noexcept nogil:
    """The next flow of a walk, or NO_FLOW: the home buckets of the range, then those where its flows may lie that found them full."""
    cdef const Bucket *bucket
    cdef uint32_t flow, hash
    while walk.left:
        bucket = &table.bucket[walk.at]
        while walk.slot < SLOTS:
            flow = bucket.flow[walk.slot]
            walk.slot += 1
            if bucket.tag[walk.slot - 1]:
                hash = entry[flow >> 1].hash[flow & 1]
                if walk.low <= hash <= walk.high:
                    return flow
        if walk.beyond >= 0:
            walk.beyond += 1
            if bucket.passed == 0 or walk.beyond == FARTHEST:
                break
        walk.slot = 0
        walk.left -= 1
        walk.at = next_bucket(table, walk.at)
        if walk.at == bucket_of(table, walk.high):
            walk.beyond = 0
    walk.left = 0
    return NO_FLOW


cdef str table_fault(const Table *table, const Entry *entry):
    """What breaks an invariant of the table, or an empty string."""
    cdef uint32_t at, home, flow, n = 0
    cdef int slot
    passed = [0] * table.n_buckets
    seen = set()
    for at in range(table.n_buckets):
        for slot in range(SLOTS):
            if table.bucket[at].tag[slot] == 0:
                continue
            flow = table.bucket[at].flow[slot]
            n += 1
            if flow in seen:
                return f"flow {flow} lies in two slots"
            seen.add(flow)
            if not entry[flow >> 1].live >> (flow & 1) & 1:
                return f"flow {flow} in bucket {at} is of a dead connection, or should not lie there"
            if tag_of(entry[flow >> 1].hash[flow & 1]) != table.bucket[at].tag[slot]:
                return f"flow {flow} in bucket {at} has a wrong tag"
            home = bucket_of(table, entry[flow >> 1].hash[flow & 1])
            while home != at:
                passed[home] += 1
                home = next_bucket(table, home)
    if n != table.n_flows:
        return f"{n} flows lie in the buckets, {table.n_flows} are counted"
    for at in range(table.n_buckets):
        if passed[at] != table.bucket[at].passed:
            return f"bucket {at} was passed by {passed[at]} flows and counts {table.bucket[at].passed}"
    return ""

"""Shortcuts: what the rules said of an established flow's last packet is what they say of the next one.

Theory of operation: a flow is a tuple that arrives at a hook. Once all connections its packets are tracked as are in the flow table, nothing that
rules look at can change but for what is compared here: the tuple, fields beside it that some rule looks at, and an epoch, which counts changes of
rules and of marks and labels. A shortcut leads to a plan: verdict, device, and the rules whose counters go up. Few plans serve all flows.
One flow: 10.0.0.2:40000 > 192.0.2.9:80 at eth0: chain 0, rule 1 (ct), chain 1, rule 4 (+est: redirect eth1): plan 7. The next packet finds plan 7.
Invariants: a shortcut is in one of two buckets, its home or the one behind it; one that is out of date stays until it is overwritten, and is never
used. It is a cache: when it is full the oldest goes.
Not here: when a flow may have one (ruled), the rules (walk), whether its connections are alive (flowtable).
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ctcore.hashing cimport hash_of
from ctcore.lowlevel cimport likely
from ctcore.table cimport SLOTS, Bucket, first_slot, same_key, tag_of
from ctcore.types cimport Key
from datapath.pipeline.flower cimport FlowerKey

cdef enum:
    N_CHAINS = 1024


cdef inline uint32_t home_of(const Shortcuts *all, uint32_t hash) noexcept nogil:
    return <uint32_t>((<uint64_t>hash * all.n_buckets) >> 32)


cdef inline uint32_t behind(const Shortcuts *all, uint32_t bucket) noexcept nogil:
    return bucket + 1 if bucket + 1 < all.n_buckets else 0


cdef uint32_t shortcut_candidate(const Shortcuts *all, uint32_t hash) noexcept nogil:
    """The first one in the home bucket with the right tag, whose key is still to be compared, or NO_SHORTCUT."""
    cdef const Bucket *bucket = &all.bucket[home_of(all, hash)]
    cdef int slot = first_slot(bucket, tag_of(hash))
    return bucket.flow[slot] if slot >= 0 else NO_SHORTCUT


cdef uint32_t in_bucket(const Shortcuts *all, const Bucket *bucket, uint16_t tag, const Key *key) noexcept nogil:
    cdef int slot
    for slot in range(SLOTS):
        if bucket.tag[slot] == tag and same_key(&all.one[bucket.flow[slot]].key, key):
            return bucket.flow[slot]
    return NO_SHORTCUT


cdef uint32_t shortcut_find(const Shortcuts *all, uint32_t hash, const Key *key) noexcept nogil:
    cdef uint32_t home = home_of(all, hash)
    cdef uint32_t found = in_bucket(all, &all.bucket[home], tag_of(hash), key)
    if likely(found != NO_SHORTCUT or not all.bucket[home].passed):
        return found
    return in_bucket(all, &all.bucket[behind(all, home)], tag_of(hash), key)


cdef void forget(Shortcuts *all, uint32_t number, uint32_t hash) noexcept nogil:
    """Out of its bucket, if it is still in one."""
    cdef uint32_t home = home_of(all, hash), at = home
    cdef Bucket *bucket
    cdef int slot, step
    for step in range(2):
        bucket = &all.bucket[at]
        for slot in range(SLOTS):
            if bucket.tag[slot] and bucket.flow[slot] == number:
                bucket.tag[slot] = 0
                all.bucket[home].passed -= step
                return
        at = behind(all, home)


cdef void enter(Shortcuts *all, uint32_t number, uint32_t hash) noexcept nogil:
    """Into its home, or the bucket behind it, or in place of another one."""
    cdef uint32_t home = home_of(all, hash)
    cdef Bucket *bucket = &all.bucket[home]
    cdef int slot = first_slot(bucket, 0)
    if slot < 0:
        bucket = &all.bucket[behind(all, home)]
        slot = first_slot(bucket, 0)
        if slot >= 0:
            all.bucket[home].passed += 1
        else:
            # Whose place is taken may have passed its own home: then that is looked into once too often.
            bucket, slot = &all.bucket[home], <int>(number % <uint32_t>SLOTS)
    bucket.tag[slot] = tag_of(hash)
    bucket.flow[slot] = number


cdef void shortcut_set(Shortcuts *all, uint32_t hash, const Shortcut *draft, const FlowerKey *fields) noexcept nogil:
    """Remember a flow, or what is new about it. fields: under the mask; only read if the draft is SHORTCUT_EXACT."""
    cdef uint32_t number = shortcut_find(all, hash, &draft.key)
    if number == NO_SHORTCUT:
        if all.used < all.size:
            number = all.used
            all.used += 1
        else:
            number = all.hand
            all.hand = all.hand + 1 if all.hand + 1 < all.size else 0
            forget(all, number, hash_of(all.secret, &all.one[number].key))
        enter(all, number, hash)
    all.one[number] = draft[0]
    if draft.flags & SHORTCUT_EXACT:
        memcpy(&all.fields[number], fields, sizeof(FlowerKey))


cdef inline bint same_plan(const Plan *a, const Plan *b) noexcept nogil:
    return (
        a.n_hits == b.n_hits and a.device == b.device and a.verdict == b.verdict and a.reason == b.reason and a.n_cts == b.n_cts
        and a.translates[0] == b.translates[0] and a.translates[1] == b.translates[1] and a.plain == b.plain
        and memcmp(a.hits, b.hits, a.n_hits * sizeof(uint32_t)) == 0
    )


cdef uint32_t plan_intern(Shortcuts *all, const Plan *draft) noexcept nogil:
    """The number of the plan that says the same, a new one if there is none, or NO_PLAN if there are too many."""
    cdef uint32_t hash = draft.n_hits, number
    cdef int i
    for i in range(draft.n_hits):
        hash = (hash ^ draft.hits[i]) * <uint32_t>0x9E3779B1
    hash = hash >> 16 & (N_CHAINS - 1)
    number = all.chain[hash]
    while number != NO_PLAN:
        if same_plan(&all.plan[number], draft):
            return number
        number = all.plan[number].next
    if all.n_plans == MOST_PLANS:
        return NO_PLAN
    number = all.n_plans
    all.n_plans += 1
    all.plan[number] = draft[0]
    all.plan[number].packets = all.plan[number].bytes = 0
    all.plan[number].next = all.chain[hash]
    all.chain[hash] = number
    return number

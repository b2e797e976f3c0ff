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
from libc.string cimport memcmp, memcpy, memset

from ctcore.hashing cimport hash_of
from ctcore.lowlevel cimport likely, unlikely
from ctcore.pool cimport map_memory, unmap_memory
from ctcore.table cimport SLOTS, Bucket, first_slot, same_key, tag_of
from ctcore.types cimport Key
from ctcore.tracker cimport Tracker
from datapath.pipeline.classify cimport Table
from datapath.pipeline.flower cimport FLOWER_WORDS, FlowerKey
from datapath.pipeline.level cimport Result
from datapath.pipeline.program cimport Program

cdef enum:
    N_CHAINS = 1024
    MEAN_LOAD = 5               # shortcuts to a bucket of ten: few have to lie in the bucket behind


cdef inline uint32_t behind(const Shortcuts *all, uint32_t bucket) noexcept nogil:
    return bucket + 1 if bucket + 1 < all.n_buckets else 0


cdef uint32_t shortcut_candidate(const Shortcuts *all, uint32_t hash) noexcept nogil:
    """The first one with the right tag in the home bucket, or in the one behind, whose key is still to be compared, or NO_SHORTCUT."""
    cdef uint32_t home = home_of(all, hash)
    cdef const Bucket *bucket = &all.bucket[home]
    cdef int slot = first_slot(bucket, tag_of(hash))
    if unlikely(slot < 0 and bucket.passed):
        bucket = &all.bucket[behind(all, home)]
        slot = first_slot(bucket, tag_of(hash))
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


cdef uint32_t fresh(Shortcuts *all) noexcept nogil:
    """A number that is in no bucket: one never used, or else the oldest."""
    cdef uint32_t number = all.used
    if number < all.size:
        all.used += 1
        return number
    number = all.hand
    all.hand = all.hand + 1 if all.hand + 1 < all.size else 0
    forget(all, number, hash_of(all.secret, &all.one[number].key))
    return number


cdef uint32_t enter(Shortcuts *all, uint32_t hash) noexcept nogil:
    """A number for a new one, entered into its home or the bucket behind. If both are full it is another one's there, lest that be nobody's any more:
    among as many flows as there is room for, each would then cost another one its place, again and again."""
    cdef uint32_t home = home_of(all, hash), number
    cdef Bucket *bucket = &all.bucket[home]
    cdef int slot = first_slot(bucket, 0)
    if slot < 0:
        bucket = &all.bucket[behind(all, home)]
        slot = first_slot(bucket, 0)
        if slot >= 0:
            all.bucket[home].passed += 1
    if slot >= 0:
        number = fresh(all)
    else:
        # Whose number it is may have passed its own home: then that is looked into once too often.
        bucket, slot = &all.bucket[home], <int>(hash % <uint32_t>SLOTS)
        number = bucket.flow[slot]
    bucket.tag[slot] = tag_of(hash)
    bucket.flow[slot] = number
    return number


cdef void shortcut_set(Shortcuts *all, uint32_t hash, const Shortcut *draft, const FlowerKey *fields) noexcept nogil:
    """Remember a flow, or what is new about it. fields: under the mask; only read if the draft is SHORTCUT_EXACT."""
    cdef uint32_t number = shortcut_find(all, hash, &draft.key)
    if number == NO_SHORTCUT:
        number = enter(all, hash)
    all.one[number] = draft[0]
    if draft.flags & SHORTCUT_EXACT:
        memcpy(&all.fields[number], fields, sizeof(FlowerKey))


cdef inline bint same_result(const Result *a, const Result *b) noexcept nogil:
    return (
        a.n_hits == b.n_hits and a.rule == b.rule and a.mark == b.mark and a.priority == b.priority and a.device == b.device and a.egress == b.egress
        and a.hops == b.hops and a.verdict == b.verdict and a.reason == b.reason and memcmp(a.hit, b.hit, a.n_hits * sizeof(uint32_t)) == 0
    )


cdef inline bint same_plan(const Plan *a, const Plan *b) noexcept nogil:
    return (
        a.n_steps == b.n_steps and a.plain == b.plain and a.untouched == b.untouched and a.whole == b.whole
        and same_result(&a.result, &b.result)
        and memcmp(a.step, b.step, a.n_steps * sizeof(uint32_t)) == 0
    )


cdef uint32_t plan_intern(Shortcuts *all, const Plan *draft) noexcept nogil:
    """The number of the plan that says the same, a new one if there is none, or NO_PLAN if there are too many."""
    cdef uint32_t hash = draft.result.device, number
    cdef int i
    for i in range(<int>draft.result.n_hits):
        hash = (hash ^ draft.result.hit[i]) * <uint32_t>0x9E3779B1
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
    all.plan[number].packets = all.plan[number].bytes = all.plan[number].behind = 0
    all.plan[number].next = all.chain[hash]
    all.chain[hash] = number
    return number


# --- from Python ------------------------------------------------------------------------------------------------------------------------


cdef class Cuts:
    """The shortcuts of a pipeline, for so many flows at a time. Memory becomes resident as they are used."""

    def __cinit__(self, size_t size, Tracker tracker not None):
        cdef Shortcuts *all = &self.all
        cdef size_t ones = size * sizeof(Shortcut), fields = size * sizeof(FlowerKey), buckets
        memset(all, 0, sizeof(Shortcuts))
        self.tracker = tracker
        all.size = size
        all.n_buckets = max(<size_t>2, size // <size_t>MEAN_LOAD)
        buckets = all.n_buckets * sizeof(Bucket)
        self.size = (ones + fields + buckets + MOST_PLANS * sizeof(Plan) + 4095) & ~<size_t>4095
        all.one = <Shortcut *>map_memory(self.size)
        if all.one == NULL:
            raise MemoryError(f"no memory for shortcuts of {size} flows")
        all.bucket = <Bucket *>(all.one + size)
        all.fields = <FlowerKey *>(all.bucket + all.n_buckets)
        all.plan = <Plan *>(all.fields + size)
        all.secret = &tracker.ct.hash_key

    def __dealloc__(self):
        unmap_memory(self.all.one, self.size)

    cdef int look_at(self, Program program) except -1:
        """New rules: which fields they look at. Old plans are nobody's any more, and their counters go with their rules."""
        cdef Shortcuts *all = &self.all
        cdef uint64_t *word = <uint64_t *>&all.mask
        cdef const Table *table = &program.code.table
        cdef FlowerKey rest
        cdef uint32_t i
        cdef int j
        memset(&all.mask, 0, sizeof(FlowerKey))
        for i in range(table.start[table.n_chains] if table.n_chains else 0):
            for j in range(FLOWER_WORDS):
                word[j] |= table.group[i].mask[j]
        # What a tag hides shows when it is popped.
        all.mask.vlan_tci = all.mask.cvlan_tci = all.mask.vlan_tci | all.mask.cvlan_tci
        all.mask.eth_type = all.mask.eth_type | all.mask.vlan_ethtype | all.mask.cvlan_ethtype
        all.mask.vlan_ethtype = all.mask.cvlan_ethtype = all.mask.eth_type
        all.mask.indev = all.mask.src_port = all.mask.dst_port = all.mask.ct_mark = all.mask.ct_zone = 0
        all.mask.ip_proto = all.mask.ct_state = 0
        all.mask.ct_label[0] = all.mask.ct_label[1] = 0
        memset(all.mask.src_ip, 0, sizeof(all.mask.src_ip))
        memset(all.mask.dst_ip, 0, sizeof(all.mask.dst_ip))
        rest = all.mask
        # What an untagged TCP, UDP or GRE packet that is no fragment cannot differ in from another one of its family.
        rest.eth_type = rest.vlan_tci = rest.vlan_ethtype = rest.cvlan_tci = rest.cvlan_ethtype = 0
        rest.ip_flags = rest.icmp_type = rest.icmp_code = rest.arp_op = 0
        memset(rest.arp_sip, 0, 20)
        all.exact = any([(<uint64_t *>&rest)[j] != 0 for j in range(FLOWER_WORDS)])
        all.n_plans = 0
        for j in range(N_CHAINS):
            all.chain[j] = NO_PLAN
        return 0

    def add_to(self, counts):
        """Add to the rules' counters (COUNT_DTYPE) what went through them by shortcut."""
        cdef const Plan *plan
        cdef uint32_t i, k
        for i in range(self.all.n_plans):
            plan = &self.all.plan[i]
            if not plan.packets:
                continue
            for k in range(plan.result.n_hits):
                count = counts[plan.result.hit[k]]
                count["packets"] += plan.packets
                count["bytes"] += plan.bytes - (plan.behind if k >= plan.whole else 0)
                count["last"] = max(int(count["last"]), plan.last)

    def counters(self):
        return {"plans": self.all.n_plans, "flows": self.all.used, "hits": self.all.hits}

    def check(self):
        """Raises AssertionError if a bucket holds what is not there, or where it does not belong."""
        cdef const Shortcuts *all = &self.all
        cdef uint32_t i, home, number
        cdef int slot
        for i in range(all.n_buckets):
            for slot in range(SLOTS):
                if not all.bucket[i].tag[slot]:
                    continue
                number = all.bucket[i].flow[slot]
                if number >= all.used:
                    raise AssertionError(f"bucket {i}: shortcut {number} of {all.used}")
                home = home_of(all, hash_of(all.secret, &all.one[number].key))
                if all.one[number].plan >= MOST_PLANS or (home != i and (behind(all, home) != i or not all.bucket[home].passed)):
                    raise AssertionError(f"bucket {i}: shortcut {number} is at home in bucket {home}")

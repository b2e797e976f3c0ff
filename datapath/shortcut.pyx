"""Shortcuts: what the rules said of an established flow's last packet is what they say of the next one.

Theory of operation: a flow is a tuple that arrives at a hook. Once all connections its packets are tracked as are in the flow table, nothing that
rules look at can change but for what is compared here: the tuple, fields beside it that some rule looks at, and an epoch, which counts changes of
rules and of marks and labels. A shortcut leads to a plan: verdict, device, and the rules whose counters go up. Few plans serve all flows.
A plan lives as long as a shortcut names it, so that there is always room for one more; what it has counted goes to its rules then.
One flow: 10.0.0.2:40000 > 192.0.2.9:80 at eth0: chain 0, rule 1 (ct), chain 1, rule 4 (+est: redirect eth1): plan 7. The next packet finds plan 7.
Invariants: a shortcut is in one of two buckets, its home or the one behind it; one that is out of date stays until it is overwritten, and is never
used. It is a cache: when it is full the oldest goes. A plan is free, or named by as many shortcuts as it says; those of the rules at work are in the
chain of their hash, and no two of them say the same.
Not here: when a flow may have one (ruled), the rules (walk), whether its connections are alive (flowtable).
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from ctcore.hashing cimport hash_of
from ctcore.lowlevel cimport likely, mul_fold, unlikely
from ctcore.pool cimport map_memory, unmap_memory
from ctcore.table cimport SLOTS, Bucket, first_slot, same_key, tag_of
from ctcore.types cimport DROP, Key
from ctcore.tracker cimport Tracker
from datapath.pipeline.classify cimport Table
from datapath.pipeline.flower cimport FLOWER_WORDS, FlowerKey
from datapath.pipeline.level cimport Result
from datapath.pipeline.program cimport NO_RULE, Count, Program

cdef enum:
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
        all.one[number].plan = <uint32_t>NO_PLAN
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
    """Remember a flow, or what is new about it. fields: under the mask; only read if they are to be compared."""
    cdef uint32_t number = shortcut_find(all, hash, &draft.key), before
    if number == NO_SHORTCUT:
        number = enter(all, hash)
    before = all.one[number].plan
    all.one[number] = draft[0]
    all.plan[draft.plan >> 1].named += 1
    if before != NO_PLAN:
        plan_release(all, before >> 1)
    if draft.plan & 1:
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


cdef inline uint32_t hash_of_plan(const Shortcuts *all, const Plan *plan) noexcept nogil:
    """Secret, since who sends packets chooses which rules they match."""
    cdef uint64_t hash = all.secret.word[0] ^ plan.result.device
    cdef uint32_t i
    for i in range(plan.result.n_hits):
        hash = mul_fold(hash ^ plan.result.hit[i], all.secret.word[1] | 1)
    return <uint32_t>(hash ^ hash >> 32)


cdef inline uint32_t *chain_of(const Shortcuts *all, uint32_t hash) noexcept nogil:
    return &all.chain[hash & (all.n_chains - 1)]


cdef uint32_t plan_find(const Shortcuts *all, uint32_t hash, const Plan *draft) noexcept nogil:
    """The number of the plan that says the same, or NO_PLAN."""
    cdef uint32_t number = chain_of(all, hash)[0]
    while number != NO_PLAN and not (all.plan[number].hash == hash and same_plan(&all.plan[number], draft)):
        number = all.plan[number].next
    return number


cdef uint32_t plan_intern(Shortcuts *all, const Plan *draft) noexcept nogil:
    """The number of the plan that says the same, a new one if there is none. It is for the next shortcut_set(), which makes it named.

    Safe: every other plan is named by one of `size` shortcuts at least, and there are `size` + 1 plans.
    """
    cdef uint32_t hash = hash_of_plan(all, draft), number = plan_find(all, hash, draft)
    cdef Plan *plan
    if number != NO_PLAN:
        return number
    number = all.free_plan
    if number != NO_PLAN:
        all.free_plan = all.plan[number].next
    else:
        number = all.plans_used
        all.plans_used += 1
    plan = &all.plan[number]
    plan[0] = draft[0]
    plan.packets = plan.bytes = plan.behind = 0
    plan.last = -1
    plan.named, plan.rules, plan.hash = 0, all.rules, hash
    plan.next = chain_of(all, hash)[0]
    chain_of(all, hash)[0] = number
    all.n_plans += 1
    return number


cdef void plan_count(const Plan *plan, Count *count) noexcept nogil:
    """Add to the rules' counters what went through them by a plan."""
    cdef Count *c
    cdef uint32_t k
    if not plan.packets:
        return
    for k in range(plan.result.n_hits):
        c = &count[plan.result.hit[k]]
        c.packets += plan.packets
        c.bytes += plan.bytes - (plan.behind if k >= plan.whole else 0)
        c.last = max(c.last, plan.last)
    if plan.result.verdict == DROP and plan.result.rule != NO_RULE:
        count[plan.result.rule].drops += plan.packets


cdef void plan_release(Shortcuts *all, uint32_t number) noexcept nogil:
    """A shortcut names it no more. The last one's gives it up, and nothing that it has counted is lost."""
    cdef Plan *plan = &all.plan[number]
    cdef uint32_t *link
    plan.named -= 1
    if plan.named:
        return
    if plan.rules == all.rules:
        plan_count(plan, all.count)
        link = chain_of(all, plan.hash)
        while link[0] != number:
            link = &all.plan[link[0]].next
        link[0] = plan.next
        all.n_plans -= 1
    plan.next = all.free_plan
    all.free_plan = number


# --- from Python ------------------------------------------------------------------------------------------------------------------------


cdef class Cuts:
    """The shortcuts of a pipeline, for so many flows at a time. Memory becomes resident as they are used."""

    def __cinit__(self, size_t size, Tracker tracker not None):
        cdef Shortcuts *all = &self.all
        cdef size_t plans = (size + 1) * sizeof(Plan), chains, buckets
        memset(all, 0, sizeof(Shortcuts))
        self.tracker = tracker
        all.size = size
        all.n_buckets = max(<size_t>2, size // <size_t>MEAN_LOAD)
        all.n_chains = 1 << (size - 1).bit_length()
        buckets, chains = all.n_buckets * sizeof(Bucket), all.n_chains * sizeof(uint32_t)
        self.size = (size * (sizeof(Shortcut) + sizeof(FlowerKey)) + buckets + plans + chains + 4095) & ~<size_t>4095
        all.one = <Shortcut *>map_memory(self.size)
        if all.one == NULL:
            raise MemoryError(f"no memory for shortcuts of {size} flows")
        all.bucket = <Bucket *>(all.one + size)
        all.plan = <Plan *>(all.bucket + all.n_buckets)
        all.fields = <FlowerKey *>(all.plan + size + 1)
        all.chain = <uint32_t *>(all.fields + size)
        all.free_plan = NO_PLAN
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
        # What a tag hides shows when it is popped. Types are looked at by `ct` itself: to it, IP behind MPLS or PPPoE is none.
        all.mask.vlan_tci = all.mask.cvlan_tci = all.mask.vlan_tci | all.mask.cvlan_tci
        all.mask.eth_type = all.mask.vlan_ethtype = all.mask.cvlan_ethtype = 0xFFFF
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
        self.program, all.count = program, program.code.count
        all.rules += 1
        all.n_plans = 0
        memset(all.chain, 0xFF, all.n_chains * sizeof(uint32_t))
        return 0

    def add_to(self, counts):
        """Add to the rules' counters (COUNT_DTYPE, writable) what went through them by shortcut."""
        cdef Count *count = <Count *><size_t>counts.ctypes.data
        cdef uint32_t i
        for i in range(self.all.plans_used):
            if self.all.plan[i].named and self.all.plan[i].rules == self.all.rules:
                plan_count(&self.all.plan[i], count)

    def counters(self):
        return {"plans": self.all.n_plans, "flows": self.all.used, "hits": self.all.hits}

    def check(self):
        """Raises AssertionError if a bucket holds what is not there, or where it does not belong, or if a plan is not what the shortcuts say of it."""
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
                if all.one[number].plan >> 1 >= all.plans_used or (home != i and (behind(all, home) != i or not all.bucket[home].passed)):
                    raise AssertionError(f"bucket {i}: shortcut {number} is at home in bucket {home}")
        self.check_plans()

    def check_plans(self):
        cdef const Shortcuts *all = &self.all
        cdef const Plan *plan
        cdef uint32_t i, at_work = 0, given_up = 0
        named = [0] * all.plans_used
        for i in range(all.used):
            named[all.one[i].plan >> 1] += 1
        for i in range(all.plans_used):
            plan = &all.plan[i]
            if plan.named != <uint32_t>named[i]:
                raise AssertionError(f"plan {i}: named by {named[i]} shortcuts, {plan.named} are counted")
            if plan.named and plan.rules == all.rules:
                at_work += 1
                if plan_find(all, plan.hash, plan) != i:
                    raise AssertionError(f"plan {i}: not in its chain, or another one says the same")
        i = all.free_plan
        while i != NO_PLAN:
            given_up += 1
            if all.plan[i].named or given_up > all.plans_used:
                raise AssertionError(f"plan {i}: free, and named by {all.plan[i].named} shortcuts")
            i = all.plan[i].next
        if at_work != all.n_plans or given_up != <uint32_t>named.count(0):
            raise AssertionError(f"{at_work} plans of the rules at work, {all.n_plans} are counted; {given_up} free of {named.count(0)}")

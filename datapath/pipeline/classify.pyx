"""The classifier: which rule of a chain is the first to match a packet, with many rules as fast as with few.

Theory of operation: tuple-space search. Entries with the same mask form a group, which is a hash table: the packet's fields under the group's mask are
hashed, and one comparison tells whether an entry has just these values. Groups of a chain are tried in the order of their first entries, and none is
tried that cannot have an entry before the one found already. Of each mask only the words that are not zero are read.
A slot is looked at only if its tag, kept apart with those of many others in a cache line, is that of the packet.
One packet: two groups, ports of servers (places 0-99) and networks (place 100): a packet to a server's port hits the first group at place 7, and the
second one is not asked, since 100 is later.
Invariants (check): every entry is found by its own value; a group's first and last are those of its entries; chains of equal entries rise.
Not here: what a rule's matches are as masks (layout), the order of rules (program), what they do.
"""

import numpy as np

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from ctcore.lowlevel cimport likely, mul_fold
from datapath.pipeline.flower cimport FLOWER_WORDS, FlowerKey

from datapath.pipeline.flower import FLOWER_DTYPE

GROUP_DTYPE = np.dtype([
    ("mask", "u8", FLOWER_WORDS), ("word", "u1", FLOWER_WORDS), ("n_words", "u4"), ("first", "u4"), ("last", "u4"), ("slots", "u4"), ("size", "u4"),
], align=True)
SLOT_DTYPE = np.dtype([("place", "u4"), ("next", "u4"), ("value", "u8", FLOWER_WORDS)], align=True)
NOTHING = 0xFFFFFFFF            # NO_PLACE for NumPy
assert GROUP_DTYPE.itemsize == sizeof(Group) and SLOT_DTYPE.itemsize == sizeof(Slot)


cdef inline uint64_t hash_under(const Table *table, const Group *group, const uint64_t *words) noexcept nogil:
    """Under a secret: whoever writes packets must not find those that all lie in one slot's neighbourhood."""
    cdef uint64_t h = group.n_words
    cdef uint32_t i, at
    for i in range(group.n_words):
        at = group.word[i]
        h = mul_fold(h ^ (words[at] & group.mask[at]) ^ table.secret[at], table.secret[0] | 1)
    return h


cdef inline uint32_t tag_of(uint64_t hash) noexcept nogil:
    return <uint32_t>hash | 1


cdef inline bint is_entry(const Group *group, const Slot *slot, const uint64_t *words) noexcept nogil:
    cdef uint64_t differs = 0
    cdef uint32_t i, at
    for i in range(group.n_words):
        at = group.word[i]
        differs |= (words[at] & group.mask[at]) ^ slot.value[at]
    return differs == 0


cdef uint32_t find_in(const Table *table, const Group *group, const uint64_t *words, uint32_t least) noexcept nogil:
    """The place of the group's first entry from `least` on that matches, or NO_PLACE."""
    cdef uint64_t hash = hash_under(table, group, words)
    cdef const uint32_t *tag = table.tag + group.slots
    cdef uint32_t at = <uint32_t>(hash >> 32) & (group.size - 1), wanted = tag_of(hash)
    cdef const Slot *slot
    while True:
        if likely(tag[at] == 0):
            return NO_PLACE
        slot = &table.slot[group.slots + at]
        if tag[at] == wanted and likely(is_entry(group, slot, words)):
            break
        at = (at + 1) & (group.size - 1)
    while slot.place < least:
        if slot.next == NO_PLACE:
            return NO_PLACE
        slot = &table.more[slot.next]
    return slot.place


cdef uint32_t classify(const Table *table, uint32_t chain, const FlowerKey *key, uint32_t least) noexcept nogil:
    """The place of the first rule of a chain, from `least` on, that matches; NO_PLACE if none does."""
    cdef const uint64_t *words = <const uint64_t *>key
    cdef uint32_t best = NO_PLACE, found, i
    cdef const Group *group
    for i in range(table.start[chain], table.start[chain + 1]):
        group = &table.group[i]
        if group.first >= best:
            break
        if likely(group.last >= least):
            found = find_in(table, group, words, least)
            if found < best:
                best = found
    return best


cdef class Classifier:
    """See classify.pyi."""

    def __init__(self, chains, seed=0):
        """chains: of each chain the list of its entries (place, value, mask), the last two as FLOWER_DTYPE lies."""
        secret = np.random.default_rng(seed).integers(0, 1 << 64, FLOWER_WORDS, dtype=np.uint64)
        memcpy(self.table.secret, <const void *><size_t>secret.ctypes.data, sizeof(self.table.secret))
        by_mask = [grouped(entries) for entries in chains]
        groups = np.zeros(sum(map(len, by_mask)), dtype=GROUP_DTYPE)
        start = np.zeros(len(chains) + 1, dtype=np.uint32)
        start[1:] = np.cumsum([len(each) for each in by_mask])
        sizes = [table_size(len(values)) for each in by_mask for _, values in each]
        slots = np.zeros(sum(sizes), dtype=SLOT_DTYPE)
        slots["place"] = slots["next"] = NOTHING
        tags = np.zeros(sum(sizes), dtype=np.uint32)
        more = np.zeros(sum([len(places) - 1 for each in by_mask for _, values in each for places in values.values()]), dtype=SLOT_DTYPE)
        self.arrays = (groups, start, slots, more, tags)
        self.table.group = <Group *><size_t>groups.ctypes.data
        self.table.start = <uint32_t *><size_t>start.ctypes.data
        self.table.tag = <uint32_t *><size_t>tags.ctypes.data
        self.table.slot = <Slot *><size_t>slots.ctypes.data
        self.table.more = <Slot *><size_t>more.ctypes.data
        self.table.n_chains = len(chains)
        self._fill([group for each in by_mask for group in each], sizes)

    def _fill(self, groups, sizes):
        cdef uint32_t at = 0, more = 0
        for i, (mask, values) in enumerate(groups):
            row = self.arrays[0][i]
            words = np.frombuffer(mask, dtype=np.uint64)
            used = np.flatnonzero(words)
            row["mask"], row["n_words"] = words, len(used)
            row["word"][:len(used)] = used
            row["first"], row["last"] = min(min(places) for places in values.values()), max(max(places) for places in values.values())
            row["slots"], row["size"] = at, sizes[i]
            at += sizes[i]
            for value, places in values.items():
                more = self._enter(i, value, sorted(places), more)

    def _enter(self, int group, bytes value, places, uint32_t more):
        """Entries with one mask and one value. more: free rows of Table.more from here on; returns the next."""
        cdef Group *g = &self.table.group[group]
        cdef uint64_t hash = hash_under(&self.table, g, <const uint64_t *><const char *>value)
        cdef uint32_t at = <uint32_t>(hash >> 32) & (g.size - 1)
        cdef Slot *slot
        while self.table.tag[g.slots + at]:
            at = (at + 1) & (g.size - 1)
        self.table.tag[g.slots + at] = tag_of(hash)
        slot = &self.table.slot[g.slots + at]
        for i, place in enumerate(places):
            if i:
                slot.next = more
                slot = &self.table.more[more]
                more += 1
            slot.place, slot.next = place, NO_PLACE
            memcpy(slot.value, <const char *>value, sizeof(FlowerKey))
        return more

    def lookup(self, keys not None, uint32_t chain=0, uint32_t least=0):
        cdef Py_ssize_t n = len(keys), i
        cdef uint32_t[::1] found
        cdef const FlowerKey *key
        if not isinstance(keys, np.ndarray) or keys.dtype != FLOWER_DTYPE or not keys.flags.c_contiguous:
            raise ValueError("keys: expected a contiguous array of FLOWER_DTYPE")
        if chain >= self.table.n_chains:
            raise ValueError(f"chain = {chain}: expected one of {self.table.n_chains}")
        places = np.empty(n, dtype=np.uint32)
        found = places
        key = <const FlowerKey *><size_t>keys.ctypes.data
        with nogil:
            for i in range(n):
                found[i] = classify(&self.table, chain, key + i, least)
        return places

    def check(self):
        groups, start, slots, more, tags = self.arrays
        for chain in range(self.table.n_chains):
            firsts = groups["first"][start[chain]:start[chain + 1]]
            if (np.diff(firsts.astype(np.int64)) < 0).any():
                raise AssertionError(f"chain {chain}: its groups are not in order")
        for i, group in enumerate(groups):
            table = slots[group["slots"]:group["slots"] + group["size"]]
            used = table[table["place"] != NOTHING]
            if ((table["place"] != NOTHING) != (tags[group["slots"]:group["slots"] + group["size"]] != 0)).any():
                raise AssertionError(f"group {i}: tags and slots differ in what is free")
            if len(used) == group["size"]:
                raise AssertionError(f"group {i}: no slot is free, so a search would not end")
            for slot in used:
                self._check_entry(i, slot)

    def _check_entry(self, int group, slot):
        cdef bytes value = slot["value"].tobytes()
        cdef uint32_t found = find_in(&self.table, &self.table.group[group], <const uint64_t *><const char *>value, 0)
        if found != slot["place"]:
            raise AssertionError(f"group {group}: the entry at place {slot['place']} is found at {found}")
        while slot["next"] != NOTHING:
            later = self.arrays[3][slot["next"]]
            if later["place"] <= slot["place"]:
                raise AssertionError(f"group {group}: place {later['place']} comes behind {slot['place']}")
            slot = later


def table_size(n):
    """Slots for n values: at least half of them free."""
    return 1 << max(1, (2 * n - 1).bit_length())


def grouped(entries):
    """Entries by mask: a list of (mask, {value: places}), the group with the earliest entry first."""
    groups = {}
    for place, value, mask in entries:
        groups.setdefault(mask, {}).setdefault(value, set()).add(place)
    return sorted(groups.items(), key=lambda group: min(min(places) for places in group[1].values()))

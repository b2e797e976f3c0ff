# A Filter as the engine reads it: bits that have to be so, and which ones are looked at.
#
# A connection fits if its two keys, status, mark and label agree with the values wherever the masks have a bit. Networks, ports, protocols and
# zones of tuples are all bits of a key. Not here: what a user may ask for (filter.py).

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from ctcore.types cimport ORIG, REPLY, Entry, Key
from ctcore.zones cimport zone_of

cdef enum:
    ANY_ZONE = 0x10000
    KEY_WORDS = 5

ctypedef struct Sieve:
    Key value[2]
    Key mask[2]
    uint64_t label[2]
    uint64_t label_mask[2]
    uint32_t mark
    uint32_t mark_mask
    uint32_t zone               # the connection's, or ANY_ZONE
    uint16_t status             # bits that are set
    uint16_t not_status         # bits that are not


cdef inline bint fits_key(const Key *value, const Key *mask, const Key *key) noexcept nogil:
    cdef const uint64_t *v = <const uint64_t *>value
    cdef const uint64_t *m = <const uint64_t *>mask
    cdef const uint64_t *k = <const uint64_t *>key
    cdef int i
    cdef uint64_t wrong = 0
    for i in range(KEY_WORDS):
        wrong |= (k[i] ^ v[i]) & m[i]
    return wrong == 0


cdef inline bint fits(const Sieve *s, const Entry *entry) noexcept nogil:
    """Is the connection one of those asked for?"""
    if s.zone != ANY_ZONE and s.zone != zone_of(entry):
        return False
    if (entry.status & s.status) != s.status or entry.status & s.not_status or (entry.mark ^ s.mark) & s.mark_mask:
        return False
    if (entry.label[0] ^ s.label[0]) & s.label_mask[0] or (entry.label[1] ^ s.label[1]) & s.label_mask[1]:
        return False
    return fits_key(&s.value[ORIG], &s.mask[ORIG], &entry.flow[ORIG].key) and fits_key(&s.value[REPLY], &s.mask[REPLY], &entry.flow[REPLY].key)


cdef inline bint whole(const Key *mask) noexcept nogil:
    """Does a mask leave nothing of the key open?"""
    cdef const uint64_t *m = <const uint64_t *>mask
    return (m[0] & m[1] & m[2] & m[3] & m[4]) == <uint64_t>-1

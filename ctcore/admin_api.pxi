"""What an administrator asks of the connections: those that fit a Filter, read, changed or deleted. Part of tracker.pyx, for
class Tracker lives there.

The slab is read once, in order, without a Python object per connection; a filter that names a tuple whole needs one lookup only.
Changes follow ctnetlink: status bits are set and never taken back, and a fixed timeout stays as it is.
Not here: the filters' fields and their checks (filter.py), the methods' interface (tracker.pyi).
"""

from ctcore.filter import CHANGEABLE, Filter
from ctcore.sieve cimport ANY_ZONE, Sieve, fits
from ctcore.sieve cimport whole as whole_key
from ctcore.zones cimport N_ZONES, Zones

# What update() does to each connection.
ctypedef struct Amendment:
    uint64_t label[2]
    uint64_t label_mask[2]
    uint32_t mark
    uint32_t mark_mask
    uint32_t timeout            # ticks
    uint16_t status             # bits to set
    bint timed                  # timeout, mark, label: is it to be set?
    bint marked
    bint labelled

ctypedef bint (*Deed)(Engine *, uint32_t, void *) noexcept nogil


cdef int fill_sieve(const Engine *ct, Sieve *s, object filter) except -1:
    """A Filter as the engine reads it. A zone is in both tuples what it is in that direction."""
    cdef int dir
    cdef bytes value, mask
    if not isinstance(filter, Filter):
        raise ConfigError(f"filter = {filter!r}: expected a Filter")
    memset(s, 0, sizeof(Sieve))
    for dir, (value, mask) in enumerate(filter.keys()):
        memcpy(&s.value[dir], <const char *>value, sizeof(Key))
        memcpy(&s.mask[dir], <const char *>mask, sizeof(Key))
        if filter.zone is not None and s.mask[dir].zone == 0:
            s.value[dir].zone = zone_id(&ct.zones, filter.zone, dir)
            s.mask[dir].zone = 0xFFFF
    split_label(s.label, filter.label)
    split_label(s.label_mask, 0 if filter.label is None else filter.label_mask)
    s.mark = filter.mark or 0
    s.mark_mask = 0 if filter.mark is None else filter.mark_mask
    s.zone = ANY_ZONE if filter.zone is None else filter.zone
    s.status = filter.status
    s.not_status = filter.not_status


cdef int split_label(uint64_t *words, object label) except -1:
    """128 bits as two words, the low one first."""
    number = label or 0
    words[0] = number & 0xFFFFFFFFFFFFFFFF
    words[1] = number >> 64


cdef uint32_t for_each(Engine *ct, const Sieve *s, uint32_t first, uint32_t past, Deed deed, void *what) noexcept nogil:
    """Do something to each connection that fits and lies in slots first to past - 1; says to how many it was done."""
    cdef uint32_t conn, flow, done = 0
    cdef int dir
    for dir in range(2):
        if whole_key(&s.mask[dir]):
            flow = table_find(&ct.table, ct.pool.entry, hash_of(&ct.hash_key, &s.value[dir]), &s.value[dir])
            conn = flow >> 1
            return flow != NO_FLOW and first <= conn < past and fits(s, &ct.pool.entry[conn]) and deed(ct, conn, what)
    for conn in range(first, min(past, ct.pool.used)):
        if ct.pool.entry[conn].live and fits(s, &ct.pool.entry[conn]):
            done += deed(ct, conn, what)
    return done


cdef int bounds_of(object slots, uint32_t *first, uint32_t *past) except -1:
    """A range of slots, or None for all of them."""
    first[0], past[0] = 0, 0xFFFFFFFF
    if slots is None:
        return 0
    if not isinstance(slots, range) or slots.step != 1:
        raise ConfigError(f"slots = {slots!r}: expected a range of step 1")
    first[0] = whole("slots: from", slots.start, 0, 0xFFFFFFFF)
    past[0] = whole("slots: to", slots.stop, 0, 0xFFFFFFFF)


cdef bint count_it(Engine *ct, uint32_t conn, void *what) noexcept nogil:
    return True


cdef bint copy_it(Engine *ct, uint32_t conn, void *what) noexcept nogil:
    """what: where to put the next one."""
    cdef Entry **next = <Entry **>what
    copy_out(next[0], &ct.pool.entry[conn], ticks_left(ct, &ct.pool.entry[conn]))
    next[0] += 1
    return True


cdef bint kill_it(Engine *ct, uint32_t conn, void *what) noexcept nogil:
    kill(ct, conn, END_FLUSHED, ct.now)
    return True


cdef bint change_it(Engine *ct, uint32_t conn, void *what) noexcept nogil:
    """what: a Amendment. False, and nothing has changed, if a timeout is to be set that is fixed. A timeout of 0 ends the connection."""
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef const Amendment *c = <const Amendment *>what
    cdef uint16_t added = c.status & ~entry.status
    if c.timed and entry.status & FIXED_TIMEOUT:
        return False
    if c.timed and c.timeout == 0:
        set_deadline(ct, entry, 0)
        kill(ct, conn, END_TIMEOUT, deadline_time(ct, entry, ct.tick))
        ct.count.expired += 1
        return True
    ct.changes = CHANGE_TIMEOUT if added & FIXED_TIMEOUT or (c.timed and <uint32_t>ticks_left(ct, entry) != c.timeout) else 0
    ct.changes |= (CHANGE_ASSURED if added & ASSURED else 0) | (CHANGE_REPLY if added & SEEN_REPLY else 0)
    if c.timed:
        set_deadline(ct, entry, c.timeout)
    entry.status |= added
    if c.marked:
        put_mark(ct, entry, c.mark, c.mark_mask)
    if c.labelled:
        put_label(ct, entry, c.label, c.label_mask)
    say_changes(ct, entry)
    return True


cdef int fill_change(const Engine *ct, Amendment *c, object config, dict asked) except -1:
    """asked: update()'s arguments. Raises ConfigError for what cannot be, or is no change at all."""
    memset(c, 0, sizeof(Amendment))
    c.marked, c.labelled, c.timed = (asked[name] is not None for name in ("mark", "label", "timeout"))
    if c.marked:
        c.mark = whole("mark", asked["mark"], 0, 0xFFFFFFFF)
        c.mark_mask = whole("mark_mask", asked["mark_mask"], 0, 0xFFFFFFFF)
    if c.labelled:
        split_label(c.label, whole("label", asked["label"], 0, ALL_LABELS))
        split_label(c.label_mask, whole("label_mask", asked["label_mask"], 0, ALL_LABELS))
    if c.timed:
        c.timeout = whole("timeout", asked["timeout"], 0, TICKS_LIMIT // config.hz, " whole seconds") * config.hz
    status = whole("status", asked["status"], 0, 0xFFFF)
    if status & ~CHANGEABLE:
        raise ConfigError(f"status {status:#x}: expected bits of seen-reply, assured and fixed-timeout: Linux lets no others be set")
    c.status = status


cdef uint32_t census_of(const Engine *ct, uint32_t first, uint32_t past, uint32_t *out) noexcept nogil:
    """A number for each connection in these slots: what census() says. How many they are."""
    cdef const Entry *entry
    cdef uint32_t conn, n = 0, state
    cdef uint8_t proto
    for conn in range(first, min(past, ct.pool.used)):
        entry = &ct.pool.entry[conn]
        if not entry.live:
            continue
        proto = entry.flow[ORIG].key.proto
        if proto == PROTO_TCP:
            state = entry.l4.tcp.state
        elif proto == PROTO_SCTP:
            state = entry.l4.sctp.state
        else:
            state = 2 if entry.status & ASSURED else 1 if entry.status & SEEN_REPLY else 0
        out[n] = <uint32_t>max(entry.flow[ORIG].key.zone, entry.flow[REPLY].key.zone) << 16 | <uint32_t>proto << 8 | state
        n += 1
    return n


cdef object counts_of(const Zones *zones):
    """{zone: connections}, of those that have any."""
    cdef uint32_t zone
    return {zone: zones.row[zone].count for zone in range(<uint32_t>N_ZONES) if zones.row[zone].count}

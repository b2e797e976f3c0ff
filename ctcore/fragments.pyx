"""Reassembly: fragments in, whole datagrams out, as Linux does it before connection tracking.

Theory of operation: a datagram's fragments wait in a queue of their own (fragment_queues). Each is placed (is its end possible, has the last one told
the length?), stored (fragment_store), and when the first and the last one are here and their bytes add up, the datagram is written in one piece into
memory that stays until fragments_release() (fragment_whole).
One datagram: [24,40) last -> HELD, length 40; [0,24) -> 16 + 24 bytes are here and 40 is the length: WHOLE.
Where the two versions differ, it is since the kernel has two implementations (ip_fragment, nf_conntrack_reasm); each difference has a line in RULES.
Invariants (check): those of the queues and of the store.
Not here: reading packets (datapath.defragment), time (callers bring it).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ctcore.fragment_queues cimport (
    FRAGMENT_CHARGE, FragmentCounters, Queue, Side, charge, heed_distance, queue_die, queue_end, queue_of, queues_expire, side_fault, side_init,
)
from ctcore.fragment_store cimport ACROSS, FIXED, INSIDE, LARGEST, LINK, link_keep, piece_take, runs_insert, runs_place, unmap
from ctcore.fragment_whole cimport (
    BAD_ECN, Part, Whole, captured, datagram_at, finished_release, finished_reserve, fragments_room, joint_ecn, mend4, mend6,
    write_datagram,
)
from ctcore.hashing cimport hash_seed
from ctcore.types cimport R_FRAGMENT_DUPLICATE, R_FRAGMENT_MALFORMED, R_FRAGMENT_MEMORY, R_FRAGMENT_OVERLAP, R_OK

from ctcore.config import Config, whole as whole_number
from ctcore.errors import ConfigError
from ctcore.fragment_values import Answer

cdef enum:
    FIRST_IN = 1
    LAST_IN = 2

# What a fault costs: the fragment only, or the datagram as well. By IP version.
ctypedef struct Rules:
    bint trims                  # a fragment that is not the last is cut to a multiple of 8; else its queue dies and it passes
    bint contradiction_kills    # its end contradicts the known length
    bint empty_kills            # it has no payload
    uint32_t furthest           # where a fragment may end

cdef Rules[2] RULES = [Rules(True, True, True, 0xFFFFFFFF), Rules(False, False, False, LARGEST)]


# --- one fragment -----------------------------------------------------------------------------------------------------------------------


cdef inline uint8_t drop(Fragments *all, uint8_t reason, Whole *whole) noexcept nogil:
    """The fragment is lost. whole.reason says why."""
    whole.reason = reason
    if reason == R_FRAGMENT_DUPLICATE:
        all.waiting.count.duplicate += 1
    elif reason == R_FRAGMENT_OVERLAP:
        all.waiting.count.overlap += 1
    elif reason == R_FRAGMENT_MEMORY:
        all.waiting.count.memory += 1
    else:
        all.waiting.count.malformed += 1
    return FRAGMENT_DROPPED


cdef inline bint learn_end(Queue *q, uint32_t end, bint more) noexcept nogil:
    """What a fragment says of the datagram's length. False if that contradicts what is known."""
    if not more:
        if end < q.length or (q.flags & LAST_IN and end != q.length):
            return False
        q.flags |= LAST_IN
        q.length = end
    elif end > q.length:
        if q.flags & LAST_IN:
            return False
        q.length = end
    return True


cdef uint8_t fragment_add(Fragments *all, const Fragment *f, uint64_t tick, Whole *whole) noexcept nogil:
    """Take a fragment; what becomes of it. Before, fragments_reserve() has to have been called for it.

    FRAGMENT_WHOLE: *whole is the datagram; FRAGMENT_DROPPED: whole.reason says why. tick never goes back.
    """
    cdef bint six = f.key.family == 6
    cdef Side *s = &all.waiting.side[six]
    cdef const Rules *rules = &RULES[six]
    cdef uint32_t end = f.offset + f.length
    cdef Queue *q
    queues_expire(&all.waiting, tick)
    if s.limit == 0 or s.charge > s.limit:
        return drop(all, R_FRAGMENT_MEMORY, whole)
    q = queue_of(&all.waiting, s, &f.key, tick)
    if s.max_dist:
        heed_distance(&all.waiting, s, q, tick)
    if end > rules.furthest:
        return drop(all, R_FRAGMENT_MALFORMED, whole)
    if f.more and end & 7:
        if not rules.trims:
            queue_die(&all.waiting, s, q, &all.waiting.count.died_malformed)
            return FRAGMENT_PASSED
        end &= ~<uint32_t>7
    if not learn_end(q, end, f.more):
        if rules.contradiction_kills:
            queue_die(&all.waiting, s, q, &all.waiting.count.died_malformed)
        return drop(all, R_FRAGMENT_MALFORMED, whole)
    if end == f.offset:
        if rules.empty_kills:
            queue_die(&all.waiting, s, q, &all.waiting.count.died_malformed)
        return drop(all, R_FRAGMENT_MALFORMED, whole)
    return store(all, s, q, f, end - f.offset, whole)


cdef uint8_t store(Fragments *all, Side *s, Queue *q, const Fragment *f, uint32_t length, Whole *whole) noexcept nogil:
    """Put the first `length` bytes of the payload into the queue, and finish it if it is whole."""
    cdef uint32_t before, piece, size = f.size - (f.length - length)
    cdef uint8_t where = runs_place(&s.store, &q.runs, f.offset, f.offset + length, &before)
    if where == INSIDE:
        return drop(all, R_FRAGMENT_DUPLICATE, whole)
    if where == ACROSS:
        queue_die(&all.waiting, s, q, &all.waiting.count.died_overlap)
        return drop(all, R_FRAGMENT_OVERLAP, whole)
    piece = piece_take(&s.store, f.head, f.head_length if f.offset == 0 else 0, f.data, min(f.have, length))
    s.store.piece[piece].offset = f.offset
    s.store.piece[piece].length = length
    s.store.piece[piece].number = f.number
    if f.offset == 0 and f.first_link:
        link_keep(&s.store, piece, f.link, f.link_length)
    runs_insert(&s.store, &q.runs, piece, before)
    charge(s, q, FRAGMENT_CHARGE + f.size)
    q.come += length
    q.pieces += 1
    q.ecn |= 1 << f.ecn
    q.largest = max(q.largest, size)
    if f.dont:
        q.largest_dont = max(q.largest_dont, size)
    if f.offset == 0:
        q.flags |= FIRST_IN
        q.next_at = f.next_at
        q.next_type = f.next
    if q.flags == FIRST_IN | LAST_IN and q.come == q.length:
        return finish(all, s, q, f, whole)
    return FRAGMENT_HELD


cdef uint8_t finish(Fragments *all, Side *s, Queue *q, const Fragment *f, Whole *whole) noexcept nogil:
    """All is here: write the datagram, and end its queue."""
    cdef uint8_t ecn = joint_ecn(q.ecn)
    cdef bint six = q.key.family == 6
    cdef const uint8_t *link = s.store.link + <size_t>q.runs.first * LINK
    if ecn == BAD_ECN or s.store.piece[q.runs.first].head + q.length - (FIXED if six else 0) > LARGEST:
        queue_die(&all.waiting, s, q, &all.waiting.count.died_malformed)
        return drop(all, R_FRAGMENT_MALFORMED, whole)
    whole.link_length = f.link_length
    if f.first_link and link[0]:
        whole.link_length = link[0]
    whole.length = s.store.piece[q.runs.first].head + q.length
    whole.have = captured(&s.store, q.runs.first)
    whole.largest = q.largest
    whole.dont = not six and q.largest_dont == q.largest
    whole.n_parts = q.pieces
    whole.number = f.number
    whole.ident = <uint32_t>f.key.sport << 16 | f.key.dport
    whole.reason = R_OK
    if not write_datagram(&all.finished, &s.store, q.runs.first, link + 1 if f.first_link and link[0] else f.link, whole):
        queue_die(&all.waiting, s, q, &all.waiting.count.died_malformed)
        return drop(all, R_FRAGMENT_MEMORY, whole)
    if six:
        mend6(datagram_at(&all.finished, whole), q.next_at, q.next_type, whole.length, ecn)
    else:
        mend4(datagram_at(&all.finished, whole), s.store.piece[q.runs.first].head, whole.length, ecn, whole.dont)
    queue_end(&all.waiting, s, q)
    all.waiting.count.datagrams += 1
    return FRAGMENT_WHOLE


cdef void fragments_expire(Fragments *all, uint64_t tick) noexcept nogil:
    """Give up what has waited for too long by now."""
    queues_expire(&all.waiting, tick)


cdef void fragments_reserve(Fragments *all, size_t coming) noexcept nogil:
    """Make room for all datagrams that can be finished before the next release. coming: what fragments_room() says of all fragments until then.

    What is stored now can be finished as well: it was charged for more than it takes. Call it once between two releases.
    """
    finished_reserve(&all.finished, <size_t>(all.waiting.side[0].charge + all.waiting.side[1].charge) + coming)


cdef void fragments_release(Fragments *all) noexcept nogil:
    """The finished datagrams are needed no longer."""
    finished_release(&all.finished)


# --- from Python ------------------------------------------------------------------------------------------------------------------------


cdef Fragment fragment_from(object f) except *:
    """The struct of a value; its pointers are into the value's own bytes."""
    cdef Fragment c
    cdef bytes src = f.src, dst = f.dst, head = f.head, payload = f.payload
    memset(&c, 0, sizeof(Fragment))
    if len(src) not in (4, 16) or len(dst) != len(src):
        raise ConfigError(f"fragment: addresses of {len(src)} and {len(dst)} bytes: expected both of 4 or of 16")
    memcpy(c.key.src, <const char *>src, len(src))
    memcpy(c.key.dst, <const char *>dst, len(dst))
    c.key.family = f.family
    c.key.proto = f.proto
    c.key.zone = f.zone
    c.key.sport = f.ident >> 16
    c.key.dport = f.ident & 0xFFFF
    c.link = c.head = <const uint8_t *><const char *>head
    c.head_length = len(head)
    c.data = <const uint8_t *><const char *>payload
    c.have = len(payload)
    c.offset = whole_number("fragment: offset =", f.offset, 0, 65528)
    c.length = whole_number("fragment: length =", f.length, len(payload), LARGEST)
    c.size = whole_number("fragment: size =", f.size, len(head) + f.length, LARGEST + FIXED)
    c.next_at = whole_number("fragment: next_at =", f.next_at, 0, max(0, len(head) - 1))
    c.next = f.next
    c.more = f.more
    c.dont = f.dont
    c.ecn = whole_number("fragment: ecn =", f.ecn, 0, 3)
    c.number = f.number
    if f.offset % 8 or len(head) < (20 if f.family == 4 else FIXED) or len(head) % 2:
        raise ConfigError(f"fragment: offset = {f.offset}, {len(head)} bytes of headers: expected a multiple of 8, and whole headers")
    return c


cdef class Reassembler:
    """Reassembly with its settings. See fragments.pyi."""

    def __cinit__(self, config=None):
        config = Config() if config is None else config
        if not isinstance(config, Config):
            raise ConfigError(f"config = {config!r}: expected a Config")
        self.config = config
        hash_seed(&self.all.waiting.hash_key, config.seed)
        self.all.tick_ns = 1_000_000_000 // config.hz
        secret = self.all.waiting.hash_key.word[2]
        side_init(&self.all.waiting.side[0], config.ipfrag_high_thresh, config.ticks("ipfrag_time"), config.ipfrag_max_dist, secret)
        side_init(&self.all.waiting.side[1], config.frag6_high_thresh, config.ticks("frag6_timeout"), 0, secret)

    def __dealloc__(self):
        unmap(self.all.waiting.side[0].memory, self.all.waiting.side[0].size)
        unmap(self.all.waiting.side[1].memory, self.all.waiting.side[1].size)
        unmap(self.all.finished.memory, self.all.finished.size)

    def add(self, fragment, now):
        cdef Fragment f = fragment_from(fragment)
        cdef Whole w
        cdef const Part *part
        cdef uint32_t i
        cdef uint8_t outcome
        self.now = max(self.now, <int64_t>whole_number("now:", now, 0, (1 << 63) - 1, " ns"))
        fragments_release(&self.all)
        fragments_reserve(&self.all, fragments_room(f.size))
        outcome = fragment_add(&self.all, &f, <uint64_t>(self.now // self.all.tick_ns), &w)
        if outcome == FRAGMENT_DROPPED:
            return Answer("dropped", w.reason)
        if outcome != FRAGMENT_WHOLE:
            return Answer("held" if outcome == FRAGMENT_HELD else "passed")
        part = <const Part *>(self.all.finished.memory + w.parts)
        parts = tuple([(part[i].number, part[i].offset, part[i].length) for i in range(w.n_parts)])
        data = PyBytes_FromStringAndSize(<const char *>datagram_at(&self.all.finished, &w), w.have)
        return Answer("whole", 0, data, w.length, w.largest, bool(w.dont), parts)

    def expire(self, now):
        self.now = max(self.now, <int64_t>whole_number("now:", now, 0, (1 << 63) - 1, " ns"))
        fragments_expire(&self.all, <uint64_t>(self.now // self.all.tick_ns))

    def counters(self):
        cdef FragmentCounters *c = &self.all.waiting.count
        return {
            "datagrams": c.datagrams, "duplicate": c.duplicate, "malformed": c.malformed, "overlap": c.overlap, "memory": c.memory,
            "died_timeout": c.died_timeout, "died_overlap": c.died_overlap, "died_malformed": c.died_malformed, "died_too_far": c.died_too_far,
            "lost": c.lost,
        }

    def waiting(self):
        return self.all.waiting.side[0].live, self.all.waiting.side[1].live

    def charged(self):
        return self.all.waiting.side[0].charge, self.all.waiting.side[1].charge

    def check(self):
        fault = side_fault(&self.all.waiting, &self.all.waiting.side[0]) or side_fault(&self.all.waiting, &self.all.waiting.side[1])
        if fault:
            raise AssertionError(fault)

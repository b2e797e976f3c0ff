"""Reassembly: fragments in, whole datagrams out, as Linux does it before connection tracking.

Theory of operation: a datagram's fragments wait in a queue of their own, found by addresses, identification, zone and (IPv4 only) protocol. Each is
placed (place: is its end possible, has the last one told the length?), stored (fragment_store), and when the first and the last one are here and
their bytes add up, the datagram is written in one piece into memory that stays until fragments_release(): the first fragment's headers with new
lengths, then all payloads. A queue lives for its timeout from its first fragment on, whatever comes; so the queues are a list in the order of
their deadlines.
One datagram: [24,40) last -> HELD, length 40; [0,24) -> 16 + 24 bytes are here and 40 is the length: WHOLE.
Memory: all of it is mapped at the start and costs nothing until it is used. A fragment is charged for its bytes and for what the kernel's struct
sk_buff and its data's end take (576), a queue for 256; while more than the limit is charged, every fragment is refused, and nothing is evicted for
it: both as in Linux. So each Side is made for the limit and one fragment more.
Where the two versions differ, it is since the kernel has two implementations (ip_fragment, nf_conntrack_reasm); each difference has a line in RULES.
Invariants (check): each queue is in one chain, once in the list of deadlines, which rise; charges and bytes add up; so do those of the store.
Not here: reading packets (datapath.defragment), time (callers bring it).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ctcore.fragment_store cimport (
    ACROSS, BLOCK, INSIDE, NONE, Piece, Store, piece_copy, piece_take, runs_fault, runs_give, runs_insert, runs_place, store_fault,
)
from ctcore.hashing cimport hash_of, hash_seed
from ctcore.lowlevel cimport mul_fold, unlikely
from ctcore.table cimport same_key
from ctcore.types cimport Key, R_FRAGMENT_DUPLICATE, R_FRAGMENT_MALFORMED, R_FRAGMENT_MEMORY, R_FRAGMENT_OVERLAP, R_OK

from ctcore.config import Config, whole as whole_number
from ctcore.errors import ConfigError
from ctcore.fragment_values import Answer

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTNEED
    void *MAP_FAILED

cdef enum:
    FIRST_IN = 1
    LAST_IN = 2
    LARGEST = 65535             # bytes of a datagram; IPv6: behind its fixed header
    FIXED = 40                  # IPv6: that header
    FRAGMENT_CHARGE = 576
    QUEUE_CHARGE = 256
    KEPT = 8 << 20              # bytes of finished memory that stay resident
    BAD_ECN = 0xFF

# What a fault costs: the fragment only, or the datagram as well. By IP version.
ctypedef struct Rules:
    bint trims                  # a fragment that is not the last is cut to a multiple of 8; else its queue dies and it passes
    bint contradiction_kills    # its end contradicts the known length
    bint empty_kills            # it has no payload
    uint32_t furthest           # where a fragment may end

cdef Rules[2] RULES = [Rules(True, True, True, 0xFFFFFFFF), Rules(False, False, False, LARGEST)]


# --- queues -----------------------------------------------------------------------------------------------------------------------------


cdef inline void list_append(Side *s, uint32_t number) noexcept nogil:
    """To the end of the list of deadlines."""
    cdef Queue *q = &s.queue[number]
    q.older = s.youngest
    q.younger = NONE
    if s.youngest == NONE:
        s.oldest = number
    else:
        s.queue[s.youngest].younger = number
    s.youngest = number


cdef inline void list_remove(Side *s, uint32_t number) noexcept nogil:
    cdef Queue *q = &s.queue[number]
    if q.older == NONE:
        s.oldest = q.younger
    else:
        s.queue[q.older].younger = q.younger
    if q.younger == NONE:
        s.youngest = q.older
    else:
        s.queue[q.younger].older = q.older


cdef inline uint32_t *peer_link(const Fragments *all, Side *s, uint32_t source) noexcept nogil:
    """Where in its chain a source is linked, or would be."""
    cdef uint64_t mixed = mul_fold(source ^ all.hash_key.word[0], all.hash_key.word[1])
    cdef uint32_t *link = &s.peer_chain[<uint32_t>(mixed >> 32) & (s.n_chains - 1)]
    while link[0] and s.peer[link[0] - 1].source != source:
        link = &s.peer[link[0] - 1].next
    return link


cdef uint32_t peer_join(const Fragments *all, Side *s, uint32_t source) noexcept nogil:
    """A source has one datagram more."""
    cdef uint32_t *link = peer_link(all, s, source)
    cdef uint32_t number
    if link[0] == 0:
        number = s.peers_free
        if number == NONE:
            number = s.peers_used
            s.peers_used += 1
        else:
            s.peers_free = s.peer[number].next
        s.peer[number].source = source
        s.peer[number].sent = s.peer[number].datagrams = s.peer[number].next = 0
        link[0] = number + 1
    s.peer[link[0] - 1].datagrams += 1
    return link[0] - 1


cdef void peer_leave(const Fragments *all, Side *s, uint32_t number) noexcept nogil:
    cdef Peer *peer = &s.peer[number]
    cdef uint32_t *link
    peer.datagrams -= 1
    if peer.datagrams == 0:
        link = peer_link(all, s, peer.source)
        link[0] = peer.next
        peer.next = s.peers_free
        s.peers_free = number


cdef void charge(Side *s, Queue *q, uint32_t amount) noexcept nogil:
    q.charge += amount
    s.charge += amount


cdef Queue *queue_of(Fragments *all, Side *s, const Key *key, uint64_t tick) noexcept nogil:
    """The datagram's queue; a new one if there is none. There is room: a queue's charge is below the limit."""
    cdef uint32_t hash = hash_of(&all.hash_key, key)
    cdef uint32_t *head = &s.chain[hash & (s.n_chains - 1)]
    cdef uint32_t number = head[0]
    cdef Queue *q
    while number:
        q = &s.queue[number - 1]
        if same_key(&q.key, key):
            return q
        number = q.next
    number = s.free
    if number == NONE:
        number = s.used
        s.used += 1
    else:
        s.free = s.queue[number].next
    q = &s.queue[number]
    memset(q, 0, sizeof(Queue))
    q.key = key[0]
    q.hash = hash
    q.runs.root = q.runs.first = q.runs.last = NONE
    q.deadline = tick + s.timeout
    q.next = head[0]
    head[0] = number + 1
    list_append(s, number)
    q.peer = peer_join(all, s, <uint32_t>key.src[0]) if s.max_dist else NONE
    charge(s, q, QUEUE_CHARGE)
    s.live += 1
    return q


cdef uint32_t queue_end(Fragments *all, Side *s, Queue *q) noexcept nogil:
    """It is whole, or dies. Says how many fragments it had."""
    cdef uint32_t number = <uint32_t>(q - s.queue)
    cdef uint32_t *link = &s.chain[q.hash & (s.n_chains - 1)]
    while link[0] != number + 1:
        link = &s.queue[link[0] - 1].next
    link[0] = q.next
    list_remove(s, number)
    if q.peer != NONE:
        peer_leave(all, s, q.peer)
    s.charge -= q.charge
    s.live -= 1
    q.next = s.free
    s.free = number
    return runs_give(&s.store, &q.runs)


cdef void queue_die(Fragments *all, Side *s, Queue *q, uint64_t *counter) noexcept nogil:
    """Give a datagram up, and count it and what was held of it."""
    counter[0] += 1
    all.count.lost += queue_end(all, s, q)


cdef inline void expire(Fragments *all, Side *s, uint64_t tick) noexcept nogil:
    while s.oldest != NONE and s.queue[s.oldest].deadline <= tick:
        queue_die(all, s, &s.queue[s.oldest], &all.count.died_timeout)


cdef void fragments_expire(Fragments *all, uint64_t tick) noexcept nogil:
    """Give up what has waited for too long by now."""
    expire(all, &all.side[0], tick)
    expire(all, &all.side[1], tick)


cdef void heed_distance(Fragments *all, Side *s, Queue *q, uint64_t tick) noexcept nogil:
    """A source that has sent too many other fragments since the last one of this datagram may have used its identification anew: begin again."""
    cdef Peer *peer = &s.peer[q.peer]
    cdef uint32_t before = q.seen
    peer.sent += 1
    q.seen = peer.sent
    if q.runs.first == NONE or peer.sent - before <= s.max_dist:
        return
    all.count.died_too_far += 1
    all.count.lost += runs_give(&s.store, &q.runs)
    s.charge -= q.charge - QUEUE_CHARGE
    q.charge = QUEUE_CHARGE
    q.length = q.come = q.pieces = 0
    q.flags = q.ecn = 0
    q.deadline = tick + s.timeout
    list_remove(s, <uint32_t>(q - s.queue))
    list_append(s, <uint32_t>(q - s.queue))


# --- one fragment -----------------------------------------------------------------------------------------------------------------------


cdef inline uint8_t drop(Fragments *all, uint8_t reason, Whole *whole) noexcept nogil:
    """The fragment is lost. whole.reason says why."""
    whole.reason = reason
    if reason == R_FRAGMENT_DUPLICATE:
        all.count.duplicate += 1
    elif reason == R_FRAGMENT_OVERLAP:
        all.count.overlap += 1
    elif reason == R_FRAGMENT_MEMORY:
        all.count.memory += 1
    else:
        all.count.malformed += 1
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
    cdef Side *s = &all.side[six]
    cdef const Rules *rules = &RULES[six]
    cdef uint32_t end = f.offset + f.length
    cdef Queue *q
    fragments_expire(all, tick)
    if s.limit == 0 or s.charge > s.limit:
        return drop(all, R_FRAGMENT_MEMORY, whole)
    q = queue_of(all, s, &f.key, tick)
    if s.max_dist:
        heed_distance(all, s, q, tick)
    if end > rules.furthest:
        return drop(all, R_FRAGMENT_MALFORMED, whole)
    if f.more and end & 7:
        if not rules.trims:
            queue_die(all, s, q, &all.count.died_malformed)
            return FRAGMENT_PASSED
        end &= ~<uint32_t>7
    if not learn_end(q, end, f.more):
        if rules.contradiction_kills:
            queue_die(all, s, q, &all.count.died_malformed)
        return drop(all, R_FRAGMENT_MALFORMED, whole)
    if end == f.offset:
        if rules.empty_kills:
            queue_die(all, s, q, &all.count.died_malformed)
        return drop(all, R_FRAGMENT_MALFORMED, whole)
    return store(all, s, q, f, end - f.offset, whole)


cdef uint8_t store(Fragments *all, Side *s, Queue *q, const Fragment *f, uint32_t length, Whole *whole) noexcept nogil:
    """Put the first `length` bytes of the payload into the queue, and finish it if it is whole."""
    cdef uint32_t before, piece, size = f.size - (f.length - length)
    cdef uint8_t where = runs_place(&s.store, &q.runs, f.offset, f.offset + length, &before)
    if where == INSIDE:
        return drop(all, R_FRAGMENT_DUPLICATE, whole)
    if where == ACROSS:
        queue_die(all, s, q, &all.count.died_overlap)
        return drop(all, R_FRAGMENT_OVERLAP, whole)
    piece = piece_take(&s.store, f.head, f.head_length if f.offset == 0 else 0, f.data, min(f.have, length))
    s.store.piece[piece].offset = f.offset
    s.store.piece[piece].length = length
    s.store.piece[piece].number = f.number
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


# --- a whole datagram -------------------------------------------------------------------------------------------------------------------


cdef inline uint8_t joint_ecn(uint8_t seen) noexcept nogil:
    """What to set in the datagram's ECN field, by the values its fragments had (RFC 3168 5.3); BAD_ECN if these cannot be of one datagram.

    seen: bit 0 is "not capable", 1 and 2 are the two of capable senders, 3 is "congestion experienced".
    """
    if seen & 1:
        return 0 if seen == 1 else BAD_ECN
    return 3 if seen & 8 and seen & 6 else 0


cdef uint8_t finish(Fragments *all, Side *s, Queue *q, const Fragment *f, Whole *whole) noexcept nogil:
    """All is here: write the datagram, and end its queue."""
    cdef uint8_t ecn = joint_ecn(q.ecn)
    cdef uint32_t head = s.store.piece[q.runs.first].head
    cdef uint32_t total = head + q.length
    cdef uint8_t *ip
    if ecn == BAD_ECN or total - (FIXED if q.key.family == 6 else 0) > LARGEST:
        queue_die(all, s, q, &all.count.died_malformed)
        return drop(all, R_FRAGMENT_MALFORMED, whole)
    whole.link_length = f.link_length
    whole.length = total
    whole.have = captured(&s.store, q.runs.first)
    whole.largest = q.largest
    whole.dont = q.key.family == 4 and q.largest_dont == q.largest
    whole.n_parts = q.pieces
    whole.number = f.number
    whole.ident = <uint32_t>f.key.sport << 16 | f.key.dport
    whole.reason = R_OK
    if not lay_out(all, whole):
        queue_die(all, s, q, &all.count.died_malformed)
        return drop(all, R_FRAGMENT_MEMORY, whole)
    ip = all.finished + whole.frame + f.link_length
    memcpy(all.finished + whole.frame, f.link, f.link_length)
    write(&s.store, q.runs.first, ip, whole.have, <Part *>(all.finished + whole.parts))
    if q.key.family == 6:
        mend6(q, ip, total, ecn)
    else:
        mend4(ip, head, total, ecn, whole.dont)
    (<Whole *>(all.finished + whole.parts - sizeof(Whole)))[0] = whole[0]
    queue_end(all, s, q)
    all.count.datagrams += 1
    return FRAGMENT_WHOLE


cdef uint32_t captured(const Store *s, uint32_t run) noexcept nogil:
    """How many bytes of the datagram are there before the first that was not captured."""
    cdef uint32_t have = s.piece[run].head, piece
    while run != NONE:
        piece = run
        while piece != NONE:
            have += s.piece[piece].have
            if s.piece[piece].have < s.piece[piece].length:
                return have
            piece = s.piece[piece].next
        run = s.piece[run].after
    return have


cdef bint lay_out(Fragments *all, Whole *whole) noexcept nogil:
    """Room for a datagram in the finished memory. False only if the system had none when that was reserved."""
    cdef size_t parts = finished_next(all.finished_used) + sizeof(Whole)
    cdef size_t frame = parts + whole.n_parts * sizeof(Part)
    cdef size_t end = frame + whole.link_length + whole.have
    if end > all.finished_size:
        return False
    whole.parts = parts
    whole.frame = frame
    all.finished_used = end
    return True


cdef void write(const Store *s, uint32_t run, uint8_t *ip, uint32_t have, Part *part) noexcept nogil:
    """The first fragment's headers and all payloads, `have` bytes of them, and where they came from."""
    cdef const Piece *one
    cdef uint32_t piece, length
    while run != NONE:
        piece = run
        while piece != NONE:
            one = &s.piece[piece]
            length = min(one.head + one.have, have)
            piece_copy(s, piece, 0, length, ip)
            ip += length
            have -= length
            part.number = one.number
            part.offset = one.offset
            part.length = one.length
            part += 1
            piece = one.next
        run = s.piece[run].after


cdef void mend4(uint8_t *ip, uint32_t head, uint32_t total, uint8_t ecn, bint dont) noexcept nogil:
    """The first fragment's header becomes the datagram's (RFC 791 3.2): lengths, ECN, no fragment any more, and their checksum."""
    cdef uint32_t total_sum = 0, at
    ip[1] |= ecn
    ip[2] = <uint8_t>(total >> 8)
    ip[3] = <uint8_t>total
    ip[6] = 0x40 if dont else 0
    ip[7] = ip[10] = ip[11] = 0
    for at in range(0, head, 2):
        total_sum += <uint32_t>ip[at] << 8 | ip[at + 1]
    while total_sum >> 16:
        total_sum = (total_sum & 0xFFFF) + (total_sum >> 16)
    ip[10] = <uint8_t>(~total_sum >> 8)
    ip[11] = <uint8_t>~total_sum


cdef void mend6(const Queue *q, uint8_t *ip, uint32_t total, uint8_t ecn) noexcept nogil:
    """The same of IPv6 (RFC 8200 4.5): the header before the fragment header names what came behind that.

    Where that header stands is kept in a byte by Linux: beyond 255, it spoils another one.
    """
    ip[q.next_at & 0xFF] = q.next_type
    ip[1] |= ecn << 4
    ip[4] = <uint8_t>((total - FIXED) >> 8)
    ip[5] = <uint8_t>(total - FIXED)


# --- memory -----------------------------------------------------------------------------------------------------------------------------


cdef void *map_lazily(size_t size) noexcept nogil:
    """`size` zero bytes that cost nothing until they are touched, or NULL. Small pages: what is touched is scattered."""
    cdef void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if memory == MAP_FAILED else memory


cdef void fragments_reserve(Fragments *all, size_t coming) noexcept nogil:
    """Make room for all datagrams that can be finished before the next release. coming: what fragments_room() says of all fragments until then.

    What is stored now can be finished as well: it was charged for more than it takes. Call it once between two releases.
    """
    cdef size_t need = <size_t>(all.side[0].charge + all.side[1].charge) + coming
    all.reserved = True
    if need <= all.finished_size:
        return
    need = (need + KEPT) & ~<size_t>4095
    if all.finished != NULL:
        munmap(all.finished, all.finished_size)
    all.finished = <uint8_t *>map_lazily(need)
    all.finished_size = need if all.finished != NULL else 0


cdef void fragments_release(Fragments *all) noexcept nogil:
    """The finished datagrams are needed no longer."""
    if unlikely(all.finished_used > KEPT):
        madvise(all.finished + KEPT, all.finished_size - KEPT, MADV_DONTNEED)
    all.finished_used = 0
    all.reserved = False


cdef size_t aligned(size_t size):
    return (size + 63) & ~<size_t>63


cdef int side_init(Side *s, uint64_t limit, uint64_t timeout, uint32_t max_dist, uint64_t secret) except -1:
    """One mapping for all of it: what the limit allows, and one fragment more."""
    cdef size_t most = limit + FRAGMENT_CHARGE + LARGEST + FIXED
    cdef size_t n_blocks = most // BLOCK + 1, n_queues = most // QUEUE_CHARGE + 1, n_chains = 16
    while 2 * n_chains < n_queues:
        n_chains *= 2
    sizes = [n_blocks * BLOCK, n_blocks * sizeof(Piece), n_blocks * 4, n_queues * sizeof(Queue), n_queues * sizeof(Peer), n_chains * 4, n_chains * 4]
    s.size = sum([aligned(size) for size in sizes])
    s.memory = <uint8_t *>map_lazily(s.size)
    if s.memory == NULL:
        raise MemoryError(f"no memory for {limit} bytes of fragments")
    places = [sum([aligned(size) for size in sizes[:i]]) for i in range(len(sizes))]
    s.store.block = s.memory
    s.store.piece = <Piece *>(s.memory + <size_t>places[1])
    s.store.behind = <uint32_t *>(s.memory + <size_t>places[2])
    s.queue = <Queue *>(s.memory + <size_t>places[3])
    s.peer = <Peer *>(s.memory + <size_t>places[4])
    s.chain = <uint32_t *>(s.memory + <size_t>places[5])
    s.peer_chain = <uint32_t *>(s.memory + <size_t>places[6])
    s.store.n_blocks = n_blocks
    s.store.free = s.free = s.peers_free = s.oldest = s.youngest = NONE
    s.store.secret = secret
    s.n_queues = n_queues
    s.n_chains = n_chains
    s.limit = limit
    s.timeout = timeout
    s.max_dist = max_dist


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
        hash_seed(&self.all.hash_key, config.seed)
        self.all.tick_ns = 1_000_000_000 // config.hz
        secret = self.all.hash_key.word[2]
        side_init(&self.all.side[0], config.ipfrag_high_thresh, config.ticks("ipfrag_time"), config.ipfrag_max_dist, secret)
        side_init(&self.all.side[1], config.frag6_high_thresh, config.ticks("frag6_timeout"), 0, secret)

    def __dealloc__(self):
        cdef int i
        for i in range(2):
            if self.all.side[i].memory != NULL:
                munmap(self.all.side[i].memory, self.all.side[i].size)
        if self.all.finished != NULL:
            munmap(self.all.finished, self.all.finished_size)

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
        part = <const Part *>(self.all.finished + w.parts)
        parts = tuple([(part[i].number, part[i].offset, part[i].length) for i in range(w.n_parts)])
        data = PyBytes_FromStringAndSize(<const char *>(self.all.finished + w.frame + w.link_length), w.have)
        return Answer("whole", 0, data, w.length, w.largest, bool(w.dont), parts)

    def expire(self, now):
        self.now = max(self.now, <int64_t>whole_number("now:", now, 0, (1 << 63) - 1, " ns"))
        fragments_expire(&self.all, <uint64_t>(self.now // self.all.tick_ns))

    def counters(self):
        cdef FragmentCounters *c = &self.all.count
        return {
            "datagrams": c.datagrams, "duplicate": c.duplicate, "malformed": c.malformed, "overlap": c.overlap, "memory": c.memory,
            "died_timeout": c.died_timeout, "died_overlap": c.died_overlap, "died_malformed": c.died_malformed, "died_too_far": c.died_too_far,
            "lost": c.lost,
        }

    def waiting(self):
        return self.all.side[0].live, self.all.side[1].live

    def charged(self):
        return self.all.side[0].charge, self.all.side[1].charge

    def check(self):
        fault = side_fault(&self.all, &self.all.side[0]) or side_fault(&self.all, &self.all.side[1])
        if fault:
            raise AssertionError(fault)


cdef str side_fault(const Fragments *all, Side *s):
    """What breaks an invariant of one IP version's queues, or an empty string."""
    cdef uint32_t number = s.oldest, at
    cdef uint64_t deadline = 0, charged = 0
    cdef Queue *q
    taken, seen, fault = set(), set(), ""
    while number != NONE and number not in seen:
        seen.add(number)
        q = &s.queue[number]
        at = s.chain[q.hash & (s.n_chains - 1)]
        while at and at != number + 1:
            at = s.queue[at - 1].next
        if not at:
            fault = fault or f"datagram {number} is in no chain"
        if q.deadline < deadline or (q.younger != NONE and s.queue[q.younger].older != number):
            fault = fault or f"datagram {number} stands at a wrong place in the list of deadlines"
        deadline = q.deadline
        charged += q.charge
        fault = fault or runs_fault(&s.store, &q.runs, taken)
        number = q.younger
    fault = fault or store_fault(&s.store, taken)
    if len(seen) != s.live or charged != s.charge:
        fault = fault or f"{len(seen)} datagrams wait with {charged} bytes charged, {s.live} and {s.charge} are counted"
    return fault

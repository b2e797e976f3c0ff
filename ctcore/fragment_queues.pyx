"""The datagrams that are not whole yet: how they are found, what they are charged for, and when they are given up.

Theory of operation: a datagram's queue is found by addresses, identification, zone and (IPv4 only) protocol, in a hash table with chains. A queue
lives for its timeout from its first fragment on, whatever comes; so the queues are a list in the order of their deadlines. IPv4's sources are
counted, for a source that has sent too much since may have used an identification anew.
Memory: all of it is mapped at the start and costs nothing until it is used. A fragment is charged for its bytes and for what the kernel's struct
sk_buff and its data's end take (576), a queue for 256; while more than the limit is charged, every fragment is refused, and nothing is evicted for
it: both as in Linux. So each Side is made for the limit and one fragment more.
Invariants (side_fault): each queue is in one chain, once in the list of deadlines, which rise; charges and bytes add up; so do those of the store.
Not here: whether a fragment fits (fragments), where its bytes lie (fragment_store).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from ctcore.fragment_store cimport BLOCK, FIXED, LARGEST, LINK, NONE, Piece, map_lazily, runs_fault, runs_give, store_fault
from ctcore.hashing cimport hash_of
from ctcore.lowlevel cimport mul_fold
from ctcore.table cimport same_key
from ctcore.types cimport Key

# --- the list of deadlines --------------------------------------------------------------------------------------------------------------


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


# --- sources ----------------------------------------------------------------------------------------------------------------------------


cdef inline uint32_t *peer_link(const Waiting *all, Side *s, uint32_t source) noexcept nogil:
    """Where in its chain a source is linked, or would be."""
    cdef uint64_t mixed = mul_fold(source ^ all.hash_key.word[0], all.hash_key.word[1])
    cdef uint32_t *link = &s.peer_chain[<uint32_t>(mixed >> 32) & (s.n_chains - 1)]
    while link[0] and s.peer[link[0] - 1].source != source:
        link = &s.peer[link[0] - 1].next
    return link


cdef uint32_t peer_join(const Waiting *all, Side *s, uint32_t source) noexcept nogil:
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


cdef void peer_leave(const Waiting *all, Side *s, uint32_t number) noexcept nogil:
    cdef Peer *peer = &s.peer[number]
    cdef uint32_t *link
    peer.datagrams -= 1
    if peer.datagrams == 0:
        link = peer_link(all, s, peer.source)
        link[0] = peer.next
        peer.next = s.peers_free
        s.peers_free = number


# --- a queue ----------------------------------------------------------------------------------------------------------------------------


cdef Queue *queue_of(Waiting *all, Side *s, const Key *key, uint64_t tick) noexcept nogil:
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


cdef uint32_t queue_end(Waiting *all, Side *s, Queue *q) noexcept nogil:
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


cdef void queue_die(Waiting *all, Side *s, Queue *q, uint64_t *counter) noexcept nogil:
    """Give a datagram up, and count it and what was held of it."""
    counter[0] += 1
    all.count.lost += queue_end(all, s, q)


cdef inline void expire(Waiting *all, Side *s, uint64_t tick) noexcept nogil:
    while s.oldest != NONE and s.queue[s.oldest].deadline <= tick:
        queue_die(all, s, &s.queue[s.oldest], &all.count.died_timeout)


cdef void queues_expire(Waiting *all, uint64_t tick) noexcept nogil:
    """Give up what has waited for too long by now."""
    expire(all, &all.side[0], tick)
    expire(all, &all.side[1], tick)


cdef void heed_distance(Waiting *all, Side *s, Queue *q, uint64_t tick) noexcept nogil:
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


# --- memory -----------------------------------------------------------------------------------------------------------------------------


cdef size_t aligned(size_t size):
    return (size + 63) & ~<size_t>63


cdef int side_init(Side *s, uint64_t limit, uint64_t timeout, uint32_t max_dist, uint64_t secret) except -1:
    """One mapping for all of it: what the limit allows, and one fragment more."""
    cdef size_t most = limit + FRAGMENT_CHARGE + LARGEST + FIXED
    cdef size_t n_blocks = most // BLOCK + 1, n_queues = most // QUEUE_CHARGE + 1, n_chains = 16
    while 2 * n_chains < n_queues:
        n_chains *= 2
    sizes = [
        n_blocks * BLOCK, n_blocks * sizeof(Piece), n_blocks * 4, n_queues * sizeof(Queue), n_queues * sizeof(Peer), n_chains * 4, n_chains * 4,
        n_blocks * LINK,
    ]
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
    s.store.link = s.memory + <size_t>places[7]
    s.store.n_blocks = n_blocks
    s.store.free = s.free = s.peers_free = s.oldest = s.youngest = NONE
    s.store.secret = secret
    s.n_queues = n_queues
    s.n_chains = n_chains
    s.limit = limit
    s.timeout = timeout
    s.max_dist = max_dist


# --- invariants -------------------------------------------------------------------------------------------------------------------------


cdef str side_fault(const Waiting *all, Side *s):
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

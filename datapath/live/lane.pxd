# A lane: from one worker to one other, frames that belong to the other, and free chunks on their way back to whoever gave some away.
#
# One thread produces and one consumes: each publishes its own index with a release and reads the other's with an acquire, and only when what was seen
# of it last is used up. What either of them writes has cache lines of its own. Indices run freely through 2^32; a slot is index & mask.

from libc.stdint cimport uint32_t, uint64_t

from datapath.frame cimport Frame
from datapath.live.ring cimport load_acquire, store_release

cdef extern from *:
    """
    #include <stdint.h>
    struct ct_lane_end { uint32_t mine __attribute__((aligned(64))); uint32_t theirs; uint32_t draft; uint64_t count; };
    struct ct_post { uint32_t sleeping __attribute__((aligned(64))); int bell; };
    static inline void ct_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline uint32_t ct_take_flag(uint32_t *p) { return __atomic_exchange_n(p, 0, __ATOMIC_SEQ_CST); }
    static inline uint32_t ct_look(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void ct_set(uint32_t *p, uint32_t value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }
    """
    # Of a ring: the producer's end counts what found it full, the consumer's what it took.
    ctypedef struct End "struct ct_lane_end":
        uint32_t mine           # published
        uint32_t theirs         # as it was seen last
        uint32_t draft          # the producer's: filled, not published yet
        uint64_t count
    # Of a worker, for those who have something for it.
    ctypedef struct Post "struct ct_post":
        uint32_t sleeping
        int bell                # an eventfd
    void full_fence "ct_full_fence"() noexcept nogil
    uint32_t take_flag "ct_take_flag"(uint32_t *p) noexcept nogil
    uint32_t look "ct_look"(const uint32_t *p) noexcept nogil
    void put "ct_set"(uint32_t *p, uint32_t value) noexcept nogil

cdef enum:
    LANE = 1024                 # frames in a lane
    BACK = 1024                 # chunks on their way back

# What is handed over. gathers: it is a fragment, for whoever gathers its datagram; or else the worker owns it.
ctypedef struct Handed:
    Frame frame
    uint64_t gathers

ctypedef struct Lane:
    End put                     # of frames
    End take
    End pay                     # of chunks
    End receive
    Handed *frame
    uint64_t *chunk
    uint64_t place              # of the chunks in it, in the ledger

cdef inline uint32_t room(End *producer, const uint32_t *consumer, uint32_t size) noexcept nogil:
    """Slots that can be filled."""
    if producer.draft - producer.theirs == size:
        producer.theirs = load_acquire(consumer)
    return size - (producer.draft - producer.theirs)

cdef inline uint32_t filled(End *consumer, const uint32_t *producer) noexcept nogil:
    """Slots that can be read."""
    if consumer.theirs == consumer.mine:
        consumer.theirs = load_acquire(producer)
    return consumer.theirs - consumer.mine

cdef inline bint lane_put(Lane *lane, const Frame *frame, bint gathers) noexcept nogil:
    """Hand a frame over; it is seen once the lane is published. False: the lane is full."""
    cdef Handed *slot
    if room(&lane.put, &lane.take.mine, LANE) == 0:
        lane.put.count += 1
        return False
    slot = &lane.frame[lane.put.draft & (LANE - 1)]
    slot.frame, slot.gathers = frame[0], gathers
    lane.put.draft += 1
    return True

cdef inline bint publish(End *producer) noexcept nogil:
    """Let the other end see what is new. Whether there is anything."""
    if producer.draft == producer.mine:
        return False
    store_release(&producer.mine, producer.draft)
    return True

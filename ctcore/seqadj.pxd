# Sequence adjustment: a payload that was made longer or shorter moves all later sequence numbers of its direction, and the acknowledgements of
# the other one back.
#
# Two offsets are known of each direction: before and after the segment that last changed its length. A retransmission of that segment, changed
# once more, adds nothing. Positions and offsets count in the sender's own numbers.
# Inline: the window check asks for connections that have an extension. Not here: who changes payload (helpers), who applies it (the rewrite).

from libc.stdint cimport int32_t, uint32_t

from ctcore.extensions cimport SeqAdjust


cdef inline int32_t offset_at(const SeqAdjust *a, uint32_t seq) noexcept nogil:
    """What is added to the sequence number `seq`."""
    return a.after if <int32_t>(a.position - seq) < 0 else a.before


cdef inline int32_t offset_of_ack(const SeqAdjust *a, uint32_t ack) noexcept nogil:
    """What has been added to what `ack` acknowledges, which is a number as its sender saw it: with the offset in it."""
    return offset_at(a, ack - <uint32_t>a.before)


cdef inline void adjust_more(SeqAdjust *a, uint32_t seq, int32_t by) noexcept nogil:
    """The segment at `seq` becomes longer by `by`. If it is not later than the last one that did, it has been counted."""
    if a.before == a.after or <int32_t>(a.position - seq) < 0:
        a.position = seq
        a.before = a.after
        a.after += by

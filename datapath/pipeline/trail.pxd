# What a walk leaves behind, so that the next packet of its flow need not be classified again; and what it is told of such a walk before.
#
# Not here: the flow table (flowtable), who remembers trails by flow (shortcut, ruled).

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from datapath.flowtable cimport FlowTable

cdef enum:
    MOST_CTS = 2                # connections that a packet may be of, one a zone
    MOST_STEPS = 16             # look-ups in chains

# flows: NULL: no flow table, and nothing is noted. Of the walk at hand, copies included:
ctypedef struct Trail:
    FlowTable *flows
    uint32_t[MOST_CTS] row      # of the connections in the flow table, << 1 | direction
    uint8_t n_cts
    uint8_t lasting             # the next packet of the flow will go the same way
    uint8_t plain               # nothing was done but to track, to mark and to send
    uint8_t untouched           # the frame leaves with the bytes it came with
    uint32_t whole              # rules that had matched when the first `ct` cut off what lies behind the IP packet
    uint16_t n_steps
    uint32_t[MOST_STEPS] step   # what each look-up found: a place in its chain, or NO_PLACE
    # what it follows
    const uint32_t *script      # the steps of an earlier walk, or NULL
    uint16_t n_script
    uint16_t at


cdef inline void trail_begin(Trail *t) noexcept nogil:
    t.n_cts = 0
    t.n_steps = t.at = 0
    t.whole = 0
    t.lasting = t.plain = t.flows != NULL


cdef inline void trail_step(Trail *t, uint32_t place) noexcept nogil:
    if t.n_steps < MOST_STEPS:
        t.step[t.n_steps] = place
        t.n_steps += 1
    else:
        t.lasting = False


cdef inline void trail_leaves_script(Trail *t) noexcept nogil:
    """Something was decided otherwise than before (police): from here on chains are looked at again."""
    t.script = NULL
    t.lasting = False


cdef inline bint trail_follows(const Trail *t) noexcept nogil:
    return t.script != NULL and t.at < t.n_script


cdef inline uint32_t trail_next(Trail *t) noexcept nogil:
    t.at += 1
    return t.script[t.at - 1]

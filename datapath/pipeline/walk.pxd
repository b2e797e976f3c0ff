# One packet's walk through rules: its state, what comes out, and the memory that it takes.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.types cimport N_REASONS, Packet
from datapath.frame cimport Frame
from datapath.pipeline.draft cimport Draft
from datapath.pipeline.flower cimport FlowerKey
from datapath.pipeline.outputs cimport Outputs
from datapath.pipeline.program cimport Program, Rules
from datapath.wire cimport ParseSettings

cdef enum:
    MOST_TURNS = 16             # chains that a packet goes through at a hook (max_reclassify_loop)
    MOST_HOPS = 4               # times that it is sent on (MIRRED_NEST_LIMIT)
    MOST_SENT = 64              # times that it and its copies are sent on; Linux has no such limit
    MOST_HITS = 32              # rules that a Result has room for

# What became of a frame: where and how it ended, itself, whatever copies were mirrored.
ctypedef struct Result:
    uint32_t rule               # whose control that is; NO_RULE: no rule matched at the end
    uint32_t mark               # of skbedit
    uint32_t priority
    uint32_t n_hits             # rules that matched, copies included; the first MOST_HITS of them stand in hit
    uint16_t device             # where it ended: Program.devices
    uint8_t egress
    uint8_t hops                # redirects until then
    uint8_t verdict             # Verdict
    uint8_t reason              # Reason
    uint8_t[2] pad
    uint32_t[MOST_HITS] hit

# A frame at a hook. A frame that is sent on is on the next level, while this one waits.
ctypedef struct Level:
    Draft draft
    const Packet *packet        # the draft, parsed; in own once it has changed
    Packet own
    FlowerKey key
    uint32_t hook
    uint32_t mark
    uint32_t priority
    uint32_t rule
    uint8_t in_place            # the draft is the caller's frame as it came
    uint8_t parsed              # packet tells what is there now
    uint8_t keyed               # and key as well
    uint8_t verdict
    uint8_t reason
    uint8_t end                 # the level where the frame of this one ended: another one if it was redirected

ctypedef struct Walking:
    const Rules *rules
    Outputs *outputs            # NULL: nobody wants to know what leaves
    Result *result
    const Frame *frame          # at work
    uint32_t sent               # it and its copies, so far
    uint32_t row                # which one it is for who takes the outputs
    ParseSettings settings
    Level[MOST_HOPS + 1] level
    uint64_t[N_REASONS] lost    # copies that did not come through, by reason

cdef void walk(Walking *w, const uint8_t *memory, const Frame *frame, const Packet *packet, uint32_t hook, Result *result) noexcept nogil

cdef class Walker:
    cdef readonly Program program
    cdef Walking walking
    cdef Outputs all
    cdef object rooms

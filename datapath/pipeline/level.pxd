# A packet on its walk through rules: what is known of it, what it carries, what comes out.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.act cimport Carried
from ctcore.engine cimport Engine
from ctcore.fragments cimport Fragments
from ctcore.types cimport N_REASONS, Decision, Key, Packet
from datapath.frame cimport Frame
from datapath.pipeline.cut cimport Origin
from datapath.pipeline.draft cimport Draft
from datapath.pipeline.flower cimport FlowerKey
from datapath.pipeline.outputs cimport Outputs
from datapath.pipeline.program cimport Resume, Rules
from datapath.pipeline.trail cimport Trail
from datapath.wire cimport ParseSettings

cdef enum:
    MOST_TURNS = 17             # chains that a packet goes through at a hook: the first, and max_reclassify_loop of goto and reclassify
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
    uint8_t tracked             # there was a `ct` action that tracked; `ct clear` does not, and takes nothing back
    uint8_t pad
    Decision decision           # of the last such one
    uint32_t[MOST_HITS] hit

# What the last `ct` action said, as rules match it (flower.FlowerKey).
ctypedef struct Said:
    uint64_t[2] label
    uint32_t mark
    uint16_t zone
    uint8_t state

# A frame at a hook. A frame that is sent on is on the next level, while this one waits.
ctypedef struct Level:
    Draft draft
    Origin origin               # of a draft that was put together from fragments here
    const Packet *packet        # the draft, parsed; in own once it has changed
    Packet own
    FlowerKey key
    Carried carried
    Decision decision           # of the last `ct` action that tracked, here or where it was redirected from
    Said said
    uint32_t hook
    uint32_t mark
    uint32_t priority
    uint32_t rule
    uint32_t billed             # bytes that policers count: when it came to the hook, or was put together (qdisc_pkt_len); 0: not known yet
    uint8_t in_place            # the draft is the caller's frame as it came
    uint8_t parsed              # packet tells what is there now
    uint8_t keyed               # and key as well
    uint8_t tracked
    uint8_t verdict
    uint8_t reason
    uint8_t end                 # the level where the frame of this one ended: another one if it was redirected
    uint8_t copy                # of a frame that went on itself
    uint8_t *piece              # memory for a fragment of the draft

ctypedef struct Walking:
    const Rules *rules
    Engine *ct                  # NULL: no rule tracks
    Fragments *fragments        # NULL: likewise
    Outputs *outputs            # NULL: nobody wants to know what leaves
    Result *result
    const Resume *resume        # NULL: the frame at work begins at the hook's chain 0
    const Frame *frame          # at work
    int64_t gathered            # ns: the latest time of a packet that came to `ct`
    uint32_t sent               # it and its copies, so far
    uint32_t row                # which one it is for who takes the outputs
    uint8_t gathers             # the packet at work was put together from fragments
    ParseSettings settings
    Trail trail
    Level[MOST_HOPS + 1] level
    Key datagram                # where it gathers: its tuple, before anything was changed
    uint64_t[N_REASONS] lost    # copies that did not come through, by reason
    uint64_t *mirrored          # those that did, by device

cdef void read_draft(Walking *w, Level *v) noexcept nogil
cdef void look(Walking *w, Level *v) noexcept nogil
cdef void put_said(Level *v) noexcept nogil

# A worker's loop over its ifaces; see loop.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from datapath.frame cimport Frame
from datapath.live.iface cimport Iface
from datapath.live.handoff cimport Handoff
from datapath.live.router cimport Router, Step
from datapath.live.rows cimport Send
from datapath.live.umem cimport Pool, Umem
from datapath.pipeline.outputs cimport Output
from datapath.ruled cimport RulePipeline, Wanted

cdef enum:
    ROUND = 256                 # frames of an iface in a round
    MOST_OUT = 2048             # that may leave because of them
    MOST_IFACES = 64
    N_BUCKETS = 32              # of the histogram: powers of two, ns
    NOBODY = -1
    ROUTED = -2
    ONWARD = MOST_IFACES        # exits from here on: routed, by iface exit - ONWARD
    MOST_ONWARD = 4096          # frames of a round that a router sends, pieces and errors included

# What the loop counts itself; packets that rules drop are in the pipeline's summary, what ifaces refuse in their statistics.
ctypedef struct LoopCounts:
    uint64_t rounds
    uint64_t frames
    uint64_t waits              # rounds that found nothing often enough to sleep
    uint64_t sent               # frames that ifaces took
    uint64_t nobody             # passed at a device where nobody takes what passes
    uint64_t no_chunk           # copies for which there was no free chunk
    uint64_t too_long           # changed frames that fit in no chunk
    uint64_t too_many           # more frames than a round has places for
    uint64_t not_sent           # frames that ifaces did not take
    uint64_t frame_ns           # of each frame, how long its batch took: the sum of the histogram

cdef class Loop:
    cdef readonly RulePipeline pipeline
    cdef readonly tuple ifaces
    cdef readonly Umem umem
    cdef readonly int bell      # an eventfd: wakes it
    cdef void *iface[MOST_IFACES]
    cdef uint64_t *unsummed[MOST_IFACES]    # counts those completed here: AF_XDP does not say whose checksums were left to a NIC; others: NULL
    cdef int n_ifaces
    cdef Pool *pool
    cdef Wanted wanted
    cdef LoopCounts counts
    cdef int[::1] leaves        # by device: the iface that sends what leaves there, or NOBODY
    cdef int[::1] enters        # by device: who takes what passes at its ingress: an iface, NOBODY, ROUTED
    cdef Frame[ROUND] frame
    cdef uint8_t[ROUND] claimed # the frame's own chunk leaves
    cdef uint64_t[MOST_OUT] place
    cdef int[MOST_OUT] exit
    cdef Send[MOST_OUT] ready
    cdef uint64_t[N_BUCKETS] took
    cdef volatile bint asked    # somebody wants a turn

    # Of who comes before the rules, and who wants a turn; never looked at without them.
    cdef readonly object front  # None: frames come to the rules
    cdef readonly object turn
    cdef bint fronted
    cdef bint turns
    cdef object memory          # the umem's, and `frame`, as arrays
    cdef object rows
    cdef int64_t turn_at        # ns: when the next one is due
    cdef object failed          # what one of them has raised, for run()

    # Of several workers; never looked at where there is one.
    cdef readonly Handoff handoff   # None: this worker is alone
    cdef bint shares
    cdef bint routes            # there is a router

    # Of a router; never looked at without one.
    cdef readonly Router router # None: nothing is routed
    cdef int[MOST_IFACES] sends # by ordinal: the iface that sends what leaves there
    cdef uint8_t[MOST_IFACES] ruled     # by ordinal: there are rules at its egress
    cdef uint32_t n_devices     # that have ifaces
    cdef int n_routed           # frames of the batch at work that the router has decided about
    cdef bint again             # what is at work has been routed
    cdef Step[MOST_OUT] step    # by output
    cdef Frame[MOST_ONWARD] onward
    cdef int n_onward

    cdef int put(self, int i, Iface iface) except -1
    cdef int round(self) noexcept nogil
    cdef int from_others(self) noexcept nogil
    cdef uint32_t may_walk(self, int pressed) noexcept nogil
    cdef void forward(self, int n) noexcept nogil
    cdef void through(self, int n) noexcept nogil
    cdef size_t place_all(self, int n) noexcept nogil
    cdef uint64_t own(self, const Output *out) noexcept nogil
    cdef uint64_t fresh(self, const uint8_t *data, uint32_t size) noexcept nogil
    cdef void send_all(self, size_t n) noexcept nogil
    cdef void flush(self, int iface, int n) noexcept nogil
    cdef int exit_of(self, const Output *out) noexcept nogil
    cdef void meet_front(self, int n) noexcept nogil
    cdef int take_outputs(self, rows, data, uint32_t n) except -1
    cdef void give_turn(self, int64_t now) noexcept nogil
    cdef int fail(self, error) except -1
    cdef void wait(self, int64_t most, int64_t now) noexcept nogil
    cdef int still(self) except -1
    cdef void go(self, int64_t until) noexcept nogil

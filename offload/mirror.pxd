# The mirror of what hardware holds; see mirror.pyx.

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.flow_changes cimport FlowAnswer
from ctcore.types cimport Key

cdef enum:
    NONE = 0xFFFFFFFF
    BOTH = 3                    # directions, as bits
    # What of a flow
    KNOWN = 1                   # the flow table has asked for it, and has not been told that it is gone
    GOING = 2                   # it shall leave hardware, and its row the flow table
    BIDIRECTIONAL = 4
    SEEN_REPLY = 8
    LEAVING = 16                # it makes room for another one, and stays in the flow table
    WAITING = 32                # another one makes room for it
    EVICTED = 64                # it has made room for another one
    FRESH = 128                 # hardware has it, and has not been asked for its counters since: nobody knows what it is worth
    STUCK = 256                 # hardware has refused to destroy a rule of it

# Python: Job. What is on its way for a flow: one of these, or nothing.
cpdef enum:
    NO_JOB = 0
    JOB_ADD = 1
    JOB_DEL = 2
    JOB_STATS = 3
    N_JOBS = 4

# Python: Policy. Who has to go where hardware is full.
cpdef enum:
    FIRST_COME = 0
    BY_RATE = 1
    BY_BYTES = 2

# What comes of a command. Python: OUTCOMES.
cdef enum:
    DONE = 0
    EXISTED = 1
    MISSING = 2
    FULL = 3
    UNSUPPORTED = 4
    OTHER = 5
    LOST = 6
    N_OUTCOMES = 7

# A flow, by its row of the flow table: 160 bytes. What is desired (flags, key) and what is installed (held, doubt).
ctypedef struct Mirrored:
    Key key[2]
    int64_t conn
    uint64_t label[2]
    int64_t due                 # ns: of a job: when its answers are overdue; else nothing is tried before
    uint64_t bytes              # that it has carried
    uint32_t measured           # ms: when its rate was
    float rate                  # bytes/s
    uint32_t mark
    uint32_t serial
    uint32_t next               # in the list it is in, if any: of jobs that hardware has, oldest first; of those that wait for room; or place()
    uint32_t prev
    int16_t error               # why hardware refused it last
    uint16_t flags
    uint16_t epoch              # resets of hardware that it knows of
    uint8_t job
    uint8_t waits               # directions whose command is not answered
    uint8_t queued              # of these, those whose command hardware has not taken yet
    uint8_t doubt               # directions of which nobody knows whether hardware has a rule
    uint8_t held[2]             # by direction: the Ctinfo of its rule in hardware; 0: none
    uint8_t tries               # refusals in a row
    uint8_t lost                # answers in a row that did not come
    uint8_t pad[2]

# Commands of one kind of job that hardware has not taken.
ctypedef struct Ring:
    uint32_t *row               # each once, the one that has waited longest first; which directions says the row
    uint32_t first
    uint32_t count              # rows
    uint32_t commands

ctypedef struct Links:
    uint32_t head
    uint32_t tail

ctypedef struct Tally:
    uint64_t accepted           # rules
    uint64_t existed            # rules that were there already
    uint64_t destroyed          # rules
    uint64_t missing            # rules that were to be destroyed or counted, and hardware knew of none
    uint64_t refused_full
    uint64_t refused_unsupported
    uint64_t refused_other
    uint64_t undestroyed        # refusals to destroy
    uint64_t uncounted          # refusals to count
    uint64_t lost               # commands without an answer
    uint64_t dropped[N_JOBS]    # jobs asked for while another one was pending
    uint64_t held_back          # installs that came before the back-off was over
    uint64_t kept_out           # installs that were not tried, since hardware had just said that it is full
    uint64_t called_off         # installs that hardware had not heard of when their flow went
    uint64_t evictions
    uint64_t spared             # installs into full hardware that nobody made room for
    uint64_t strays             # replies to nothing that was asked
    uint64_t withdrawn          # rules that went unasked
    uint64_t strange            # asks that contradict what was asked before
    uint64_t resets
    uint64_t commands[N_JOBS]   # that hardware has taken
    uint64_t came[N_JOBS][N_OUTCOMES]   # of these

ctypedef struct State:
    Mirrored *row
    Ring ring[N_JOBS]
    uint64_t *holding           # a bit for each row of which hardware has a rule
    uint32_t size
    uint32_t used               # rows ever known
    uint32_t offered[N_JOBS]    # commands that commands() has just given
    uint32_t known              # flows
    uint32_t offloaded          # flows of which hardware has a rule
    uint32_t rules
    uint32_t outstanding[N_JOBS]    # commands that hardware has taken and not answered
    uint32_t pending[N_JOBS]    # jobs
    uint32_t hand               # where the search for whom to evict goes on
    uint32_t sweep              # row from which flows are to be put back, or NONE
    uint16_t epoch
    Links sent                  # flows whose commands hardware has, by when their answers are due
    Links waiting               # flows for which room is made
    int64_t now
    int64_t limit               # ns that an answer may take
    int64_t full_until          # ns: hardware has just said that it is full, and nothing has left it since
    int64_t probe               # ns between two installs into hardware that is full
    int64_t backoff
    int64_t backoff_most
    double clearly
    uint32_t window
    uint32_t look               # flows in hardware looked at for one to evict
    uint8_t tries
    uint8_t policy
    FlowAnswer *answer
    uint32_t answers
    uint32_t room
    Tally tally


cdef class Mirror:
    cdef State all
    cdef size_t memory
    cdef readonly object settings
    cdef public int resets
    cdef int reserve(self, size_t rows) except -1

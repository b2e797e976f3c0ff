# A tracker's saved state: how it lies in memory, and what writer (state_save) and reader (state_check, state_restore) share.
#
#   header | connections | helpers' memories | expectations | NAT rules        all little-endian, each part a multiple of 8 bytes
#
# A connection is 28 words (StateConn), of which those that are 0 are left out: in front of them stands a word with a bit for each that is there,
# and, in its upper half, the ticks that the connection has left. The tuple of its answers is written as what it differs by from the mirrored
# original, which is nothing where nothing is translated. So an IPv4 connection takes about 136 bytes, half of what it takes in the table.
# Connections come by ordinal; the other parts name them by their number in the file, counted from 0.
# Invariant: a state is whole or refused: its length and a checksum stand in the header. The checksum finds damage; it is no proof of who wrote it.
# Not here: files (datapath.live.state_file).

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.extensions cimport HelperMemory, SeqAdjust
from ctcore.lowlevel cimport mul_fold
from ctcore.tuples cimport invert
from ctcore.types cimport L4, Key

cdef enum:
    STATE_VERSION = 1
    CONN_WORDS = 28             # of a StateConn
    LONGEST_CONN = 232          # bytes: with the word in front
    MOST_OWNED = 64             # expectations of one helper's connection: more than any helper may have
    TRANSLATES = 1              # StateHeader.flags

ctypedef struct StateHeader:
    char magic[8]
    uint32_t version
    uint32_t hz
    uint64_t size               # of all, in bytes
    uint64_t checksum           # of all but this
    int64_t now                 # ns: when it was saved
    int64_t next_id
    uint64_t nat_random         # state of the generator of ports
    uint32_t conns
    uint32_t helped
    uint32_t expected
    uint32_t rules
    uint32_t flags
    uint32_t zone_dirs          # as in Zones

ctypedef struct StateConn:
    Key key[2]                  # the second one as its difference
    uint64_t packets[2]
    uint64_t bytes[2]
    int64_t id
    int64_t start               # ns
    int64_t master              # ordinal + 1; 0: none
    uint64_t label[2]
    L4 l4                       # UDP's tick counts from that of saving
    uint32_t mark
    uint16_t status
    uint16_t expects            # COLD_MASTER
    uint16_t rule[2]            # as in NatLink
    uint32_t unused

ctypedef struct StateHelp:
    uint32_t conn               # ascending
    uint16_t changes
    uint8_t helper
    uint8_t unused
    SeqAdjust adjust[2]
    HelperMemory memory         # in place of a tunnel's next one stands how many older ones its chain has

ctypedef struct StateExpect:
    Key key
    uint64_t saved[2]
    uint32_t master             # number of the connection
    uint32_t left               # ticks
    uint16_t saved_port
    uint8_t owned               # 0: by no helper; or how many older ones its owner has, counted from 1
    uint8_t kind
    uint8_t dir
    uint8_t any_src
    uint8_t any_sport
    uint8_t follow
    uint8_t helper
    uint8_t permanent
    uint8_t inactive
    uint8_t shared
    uint32_t unused


cdef inline uint64_t state_sum(const StateHeader *header, const uint64_t *word, uint64_t n) noexcept nogil:
    """The checksum of a state. word, n: what follows the header."""
    cdef const uint64_t *head = <const uint64_t *>header
    cdef uint64_t sum = <uint64_t>0x9E3779B97F4A7C15, i
    for i in range(sizeof(StateHeader) // 8):
        if i != 3:
            sum = mul_fold(sum ^ head[i], <uint64_t>0xA0761D6478BD642F)
    for i in range(0, n & ~<uint64_t>1, 2):
        sum = mul_fold(sum ^ word[i], word[i + 1] ^ <uint64_t>0xE7037ED1A0B428DB)
    return mul_fold(sum ^ (word[n - 1] if n & 1 else 0), <uint64_t>0x8EBC6AF09C88C6E3)


cdef inline void mirrored(const Key *key, Key *out) noexcept nogil:
    """The tuple of the answers, as they would come untranslated. Of what has no answers, the tuple itself."""
    if not invert(key, out):
        out[0] = key[0]


cdef inline void differ(Key *key, const Key *by) noexcept nogil:
    """Done twice, it is undone."""
    cdef uint64_t *k = <uint64_t *>key
    cdef const uint64_t *b = <const uint64_t *>by
    cdef int i
    for i in range(5):
        k[i] ^= b[i]

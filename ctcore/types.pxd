# The structs and enums everything else speaks in; their NumPy twins are made in types.pyx from these very layouts.
#
# Invariants: a Key has no padding, so comparing and hashing its five words compares and hashes the tuple. A Flow is one cache line, an L4
# with its deadline and status is one, an Entry is four: a packet of an established connection touches two of them.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

# Python: Dir.
cpdef enum:
    ORIG = 0
    REPLY = 1

# What conntrack says of a packet (ctinfo without the direction). NOT_SEEN: the packet never reached conntrack.
cpdef enum State:
    NOT_SEEN = 0
    NEW = 1
    ESTABLISHED = 2
    RELATED = 3
    INVALID = 4
    UNTRACKED = 5
    N_STATES = 6

cpdef enum Verdict:
    PENDING = 0         # no stage has decided yet
    ACCEPT = 1
    DROP = 2
    HELD = 3            # a fragment waiting for its siblings

# The kernel's own bits (enum ip_conntrack_status), so that they can be compared with ctnetlink as they are.
cpdef enum Status:
    EXPECTED = 0x0001
    SEEN_REPLY = 0x0002
    ASSURED = 0x0004
    CONFIRMED = 0x0008
    SRC_NAT = 0x0010
    DST_NAT = 0x0020
    SEQ_ADJUST = 0x0040
    SRC_NAT_DONE = 0x0080
    DST_NAT_DONE = 0x0100
    DYING = 0x0200
    FIXED_TIMEOUT = 0x0400
    NAT_CLASH = 0x1000
    HELPER = 0x2000
    OFFLOAD = 0x4000
    HW_OFFLOAD = 0x8000

# Python knows it as TcpState. Enums that index arrays have no name here: Cython takes no named enum as an index.
cpdef enum:
    TCP_NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    TCP_ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9
    N_TCP_STATES = 10
    TCP_INVALID = 10    # table cell: the packet is invalid
    TCP_IGNORE = 11     # table cell: the packet passes and changes nothing
    N_TCP_TIMEOUTS = 12
    TIMEOUT_RETRANS = 10
    TIMEOUT_UNACK = 11

# Python: TcpIndex.
cpdef enum:
    TCP_SYN = 0
    TCP_SYNACK = 1
    TCP_FIN = 2
    TCP_ACK = 3
    TCP_RST = 4
    TCP_NO_FLAG = 5
    N_TCP_INDEXES = 6

# Flags of one TCP side (enum of the kernel's IP_CT_TCP_FLAG_*).
cpdef enum TcpFlag:
    TF_WINDOW_SCALE = 0x01
    TF_SACK_PERM = 0x02
    TF_CLOSE_INIT = 0x04
    TF_BE_LIBERAL = 0x08
    TF_DATA_UNACKED = 0x10
    TF_MAXACK_SET = 0x20
    TF_EXP_CHALLENGE_ACK = 0x40
    TF_SIMULTANEOUS_OPEN = 0x80

# Python: SctpState.
cpdef enum:
    SCTP_NONE = 0
    SCTP_CLOSED = 1
    SCTP_COOKIE_WAIT = 2
    SCTP_COOKIE_ECHOED = 3
    SCTP_ESTABLISHED = 4
    SCTP_SHUTDOWN_SENT = 5
    SCTP_SHUTDOWN_RECD = 6
    SCTP_SHUTDOWN_ACK_SENT = 7
    SCTP_HEARTBEAT_SENT = 8
    N_SCTP_STATES = 9
    SCTP_INVALID = 9    # table cell

cpdef enum Proto:
    PROTO_ICMP = 1
    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_GRE = 47
    PROTO_ICMPV6 = 58
    PROTO_SCTP = 132
    PROTO_UDPLITE = 136

# Which half of a tuple address translation changes. Python: Manip.
cpdef enum:
    MANIP_SRC = 0
    MANIP_DST = 1

# What a NAT rule leaves to choose from, and how.
cpdef enum RangeFlag:
    RANGE_ADDRESSES = 0x01
    RANGE_PORTS = 0x02
    RANGE_RANDOM = 0x04         # a port by search, not the packet's own one; Linux makes no difference between these two any more
    RANGE_FULLY_RANDOM = 0x08
    RANGE_PERSISTENT = 0x10     # the same address for a source whatever its destination

# What is to be changed in a packet before it leaves (Rewrite).
cpdef enum RewriteFlag:
    REWRITE_SRC = 0x01          # source address, and port or id, of the packet itself
    REWRITE_DST = 0x02
    REWRITE_INNER_SRC = 0x04    # of the packet an ICMP error quotes
    REWRITE_INNER_DST = 0x08
    REWRITE_SEQ = 0x10          # TCP sequence numbers: seq_delta, ack_delta
    REWRITE_EDIT = 0x20         # a helper's edits of the payload
    # Nothing; but a datagram of fragments was put into one piece, so that it cannot leave within their borders:
    REWRITE_QUOTE = 0x40        # up to the IP header that an ICMP error quotes, by address translation
    REWRITE_WHOLE = 0x80        # all of it, by a helper

cpdef enum EventKind:
    EVENT_NEW = 1
    EVENT_UPDATE = 2
    EVENT_DESTROY = 4

# What changed, in an update event.
cpdef enum Change:
    CHANGE_REPLY = 1
    CHANGE_ASSURED = 2
    CHANGE_L4STATE = 4
    CHANGE_MARK = 8
    CHANGE_LABEL = 16
    CHANGE_TIMEOUT = 32 # set or fixed by an administrator, not renewed by a packet
    CHANGE_SEQADJ = 64  # a helper's rewriting moves sequence numbers

cpdef enum End:
    ALIVE = 0
    END_TIMEOUT = 1
    END_RESET = 2       # deleted by a RST before any reply was seen
    END_EVICTED = 3     # early drop: the table was full
    END_REPLACED = 4    # a SYN reopened the tuple
    END_FLUSHED = 5
    N_ENDS = 6

# Why a connection had to make way for another.
cpdef enum EvictedFor:
    FOR_TABLE = 1       # the table was full
    FOR_ZONE = 2        # what was free is reserved for other zones
    FOR_TUPLE = 3       # a newer SYN took its translated tuple over

# Reason codes, in the order of spec/reasons.txt (checked at import).
cpdef enum Reason:
    R_OK
    # never reached conntrack
    R_NOT_IP
    R_FRAME_SHORT
    R_SNAPPED
    R_IP_VERSION
    R_IP_HEADER
    R_IP_LENGTH
    R_IP_TRUNCATED
    R_IP_CHECKSUM
    R_IP6_MALFORMED
    R_FRAGMENT_DUPLICATE
    R_FRAGMENT_OVERLAP
    R_FRAGMENT_MALFORMED
    R_FRAGMENT_MEMORY
    R_FRAGMENT
    # before the protocol trackers
    R_L4_BEYOND
    R_IP6_CHAIN
    R_TUPLE_SHORT
    R_TABLE_FULL
    R_ZONE_LIMIT
    R_CLASH
    R_NAT_EXHAUSTED
    R_NAT_ICMP
    R_NAT_SCOPE
    R_NAT_GRE
    # TCP, invalid
    R_TCP_SHORT
    R_TCP_DOFF
    R_TCP_CHECKSUM
    R_TCP_FLAGS
    R_TCP_NOT_OPENING
    R_TCP_NOT_LOOSE
    R_TCP_STATE
    R_TCP_RST_BELOW_MAXACK
    R_TCP_SEQ_OVER
    R_TCP_ACK_OVER
    # TCP, accepted with something to be said
    R_TCP_IGNORED
    R_TCP_OVERSHOOT
    R_TCP_SEQ_UNDER
    R_TCP_ACK_UNDER
    R_TCP_LIBERAL
    R_TCP_CHALLENGE_ACK
    R_TCP_RST_CHALLENGED
    R_TCP_RST_KILLED
    R_TCP_SYN_AGAIN
    R_TCP_RESYNC
    R_TCP_PICKED_UP
    R_TCP_REOPENED
    # UDP and UDP-Lite
    R_UDP_SHORT
    R_UDP_LENGTH
    R_UDP_CHECKSUM
    # ICMP and ICMPv6
    R_ICMP_SHORT
    R_ICMP_CHECKSUM
    R_ICMP_TYPE
    R_ICMP_NO_REQUEST
    R_ICMP_FAMILY
    R_ICMP_INNER
    R_ICMP_INNER_ERROR
    R_ICMP_NO_CONN
    R_ICMP_OUTER
    R_ICMP6_REDIRECT
    R_ICMP6_UNTRACKED
    # GRE
    R_GRE_NOT_PPP
    # SCTP
    R_SCTP_SHORT
    R_SCTP_CHECKSUM
    R_SCTP_CHUNKS
    R_SCTP_NOT_OPENING
    R_SCTP_TAG
    R_SCTP_STATE
    R_SCTP_IGNORED
    # helpers
    R_HELPER_PARTIAL
    R_HELPER_REFUSED
    # rules
    R_RULE_DROP
    R_RULE_POLICE
    R_RULE_CHAINS
    R_RULE_HOPS
    R_RULE_FIELD
    R_RULE_ROOM
    R_RULE_CUT
    R_RULE_RESTORE
    R_OVERLOAD
    N_REASONS

# Where a packet's connection is served, after the packet; or why not by more than software's slow path. Nought: nobody asked.
cpdef enum Offload:
    OFFLOAD_NONE = 0
    OFFLOAD_SOFTWARE = 1        # in the flow table
    OFFLOAD_HARDWARE = 2
    # not there
    NOT_PROTO
    NOT_TCP_STATE
    NOT_ASSURED
    NOT_UNCONFIRMED
    NOT_HELPER
    NOT_SEQADJ
    NOT_GRE_NAT
    NOT_GRE_KEY
    NOT_DYING
    NOT_TUPLE_BUSY
    # there, but not for this packet
    NOT_FRAGMENT
    NOT_IP_OPTIONS
    NOT_TTL
    NOT_TRUNCATED
    # no longer there
    NOT_TEARDOWN_FIN
    NOT_TEARDOWN_RST
    NOT_TEARDOWN_IDLE
    NOT_TEARDOWN_DYING
    NOT_TEARDOWN_FLUSH
    NOT_TEARDOWN_OUTDATED
    N_OFFLOADS

# TCP header flags, RFC 9293 3.1.
cdef enum:
    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    ACK = 0x10
    URG = 0x20

cdef enum:
    NO_FLOW = 0xFFFFFFFF
    NO_CONN = 0xFFFFFFFF
    NO_L4STATE = 255
    NO_DIR = 255
    BATCH = 64                  # packets worked on at a time; chosen by bench/sweep.py
    LARGEST_BATCH = 1024

# --- a packet's tuple, and the packet as parse() left it -------------------------------------------------------------------------------

# One direction's tuple and zone. Addresses in network order, IPv4 in the first four bytes and zeros behind. Ports in host order.
# ICMP: sport is the id, dport is type << 8 | code. GRE: the keys. Protocols without ports: both 0.
ctypedef struct Key:
    uint64_t src[2]
    uint64_t dst[2]
    uint16_t sport
    uint16_t dport
    uint16_t zone
    uint8_t proto
    uint8_t family              # 4 or 6

ctypedef struct Packet:
    Key key
    int64_t now                 # ns
    const uint8_t *l4           # first byte behind the IP header(s); l4_have bytes may be read from here
    uint32_t hash
    uint32_t flow               # candidate found by lookup; its key is still to be compared
    uint32_t seq                # TCP
    uint32_t ack
    uint32_t l4_len             # bytes of L4 header and payload by the IP length
    uint32_t l4_have            # of these, bytes that were captured
    uint32_t ip_len             # IP header(s) and payload, without link padding: what accounting counts
    uint32_t wire_len           # bytes of the frame on the wire
    uint16_t win                # TCP, raw
    uint8_t doff                # TCP header length in bytes
    uint8_t tcp_flags
    uint8_t l4_reason           # what parse() found wrong in the L4 header or its checksum
    uint8_t verdict             # PENDING until a stage is sure
    uint8_t reason
    uint8_t state
    uint8_t hop_limit
    uint8_t flaw                # FLAW_* bits: seen by parse(), for who cares
    uint16_t l3_off             # of the IP header in the frame
    uint32_t index              # row of the frame in the caller's arrays

# What comes out for one packet. conn is the connection's ordinal or -1; timeout is ticks (1/hz s) left after the packet or -1.
ctypedef struct Decision:
    int64_t conn
    int32_t timeout
    uint32_t mark
    uint16_t zone
    uint16_t status
    uint8_t state
    uint8_t dir                 # NO_DIR without a connection
    uint8_t verdict
    uint8_t reason
    uint8_t l4state             # NO_L4STATE where the protocol has none
    uint8_t proto
    uint8_t family
    uint8_t offload             # Offload
    uint8_t pad[4]

# What is to be changed in a packet before it leaves. The tuple of a packet quoted in an ICMP error becomes the inverse of `to`.
ctypedef struct Rewrite:
    Key to                      # the tuple to leave with; its zone means nothing
    int32_t seq_delta
    int32_t ack_delta
    uint32_t first_edit         # in the engine's edits of this batch
    uint16_t n_edits
    uint8_t flags               # RewriteFlag
    uint8_t pad

# A piece of a packet that becomes another one. Where several are of one packet, they come in the order of `at` and do not overlap.
ctypedef struct Edit:
    uint32_t at                 # bytes from the start of the L4 header, as the packet arrived
    uint16_t old_len
    uint16_t new_len            # of text
    uint8_t text[64]

# --- a connection ----------------------------------------------------------------------------------------------------------------------

ctypedef struct TcpSide:
    uint32_t end                # td_end: highest sequence number sent, plus length
    uint32_t maxend             # td_maxend: highest end the receiver allowed
    uint32_t maxwin             # td_maxwin: largest window seen, scaled
    uint32_t maxack             # td_maxack

ctypedef struct Tcp:
    TcpSide side[2]
    uint32_t last_seq
    uint32_t last_ack
    uint32_t last_end
    uint16_t last_win
    uint8_t scale[2]
    uint8_t flags[2]
    uint8_t last_index
    uint8_t last_dir
    uint8_t retrans
    uint8_t last_wscale
    uint8_t last_flags
    uint8_t state

ctypedef struct Sctp:
    uint32_t vtag[2]
    uint8_t init[2]
    uint8_t flags
    uint8_t last_dir
    uint8_t state

ctypedef struct Udp:
    uint64_t stream_ts          # tick after which a replied flow counts as a stream

ctypedef union L4:
    Tcp tcp
    Sctp sctp
    Udp udp

ctypedef struct Flow:
    Key key
    uint64_t packets
    uint64_t bytes
    int64_t id                  # the connection's ordinal, in both flows: the packet path needs no third line to name it

ctypedef struct Entry:
    Flow flow[2]
    L4 l4
    uint32_t deadline           # tick
    uint16_t status
    uint8_t cold                # COLD_* bits: what there is to know in the fourth line
    uint8_t live                # a bit for each flow in the table: 3, but 2 if both tuples are equal; 0: not a connection
    # fourth line: set-up, tear-down and what rules attach
    int64_t start               # ns
    int64_t master              # ordinal of the connection that was expected to open this one, or -1
    uint64_t label[2]           # 128 bits, low word first
    uint32_t mark
    uint32_t wheel_next         # in the pool's free list: the next free slot
    uint32_t wheel_prev
    uint32_t generation         # counts the lives of this slot
    uint32_t hash[2]            # of the two keys, for erase
    uint32_t wheel_tick         # where the wheel will look at it next, at or before its deadline
    uint32_t extension          # its row of the extensions, counted from 1, and above EXTENSION_BITS its helper; 0: none

cdef enum:
    FLAW_SUM = 1                # a bad ICMP checksum nobody asked to verify; address translation does
    COLD_MARK = 1               # a mark is set
    COLD_MASTER = 2             # expectations may name it as their master
    COLD_EXTENSION = 4          # a helper, or sequence numbers that are adjusted
    EXTENSION_BITS = 24
    EXTENSION_ROW = 0xFFFFFF    # that part of Entry.extension that is a row

ctypedef struct Event:
    uint8_t kind
    uint8_t end
    uint16_t changes
    uint32_t timeout            # ticks left when it happened
    int64_t time                # ns
    Entry conn

# Who had to make way, and for whom.
ctypedef struct Eviction:
    int64_t time                # ns
    int64_t conn                # the ordinal of who was evicted
    Key key                     # its original tuple
    Key newcomer                # the tuple of the packet that needed the place, with its zone
    uint64_t packets[2]
    uint64_t bytes[2]
    uint16_t status             # of who was evicted
    uint8_t why                 # EvictedFor

# --- settings, in ticks and flags: what Config becomes ---------------------------------------------------------------------------------

ctypedef struct Settings:
    uint32_t tcp_timeout[12]    # by TcpState, then retrans and unacknowledged
    uint32_t udp_timeout[2]     # unreplied, stream
    uint32_t gre_timeout[2]
    uint32_t icmp_timeout
    uint32_t icmpv6_timeout
    uint32_t generic_timeout
    uint32_t sctp_timeout[9]
    uint32_t udp_stream_after   # two seconds
    uint32_t hopeless_after     # 120 seconds: a connection with less left dies soon enough by itself
    int64_t tick_ns
    uint32_t max
    uint32_t buckets            # of the kernel's table, by which early drop goes
    uint32_t share_index        # of several trackers that share the work: which one this is
    uint32_t share_count        # how many there are
    uint8_t tcp_liberal
    uint8_t tcp_loose
    uint8_t tcp_ignore_invalid_rst
    uint8_t tcp_max_retrans
    uint8_t acct
    uint8_t events              # mask of EventKind
    uint8_t tcp_table[2][6][10]
    uint8_t sctp_table[2][12][9]

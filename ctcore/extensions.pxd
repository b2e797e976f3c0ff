from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.types cimport Key

# How far the sequence numbers of one direction are off behind us: `before` for segments up to position, `after` for later ones.
ctypedef struct SeqAdjust:
    uint32_t position
    int32_t before
    int32_t after

# What each helper remembers of its connection.
ctypedef struct FtpMemory:
    uint32_t line[2][2]         # of each direction, two sequence numbers at which a line begins
    uint8_t known[2]            # how many of them

ctypedef struct PptpMemory:
    Key tunnel[2]               # GRE of each direction as it arrives, once it was announced
    uint32_t next[2]            # in the chains of tunnels
    uint16_t pns                # call ids of client and server, as their other sides see them
    uint16_t pac
    uint16_t own_pns            # the client's own
    uint16_t own_pac
    uint8_t known[2]            # whether there is such a tunnel
    uint8_t session
    uint8_t call
    uint8_t hang_up             # the call is over: its tunnel goes

ctypedef struct SipMemory:
    uint32_t register_cseq      # of the last REGISTER and INVITE that were let through
    uint32_t invite_cseq
    uint16_t answer_port        # at which a client listens, if that is not where it sends from; 0: it is
    uint8_t redirect            # the packet at hand goes there

ctypedef union HelperMemory:
    FtpMemory ftp
    PptpMemory pptp
    SipMemory sip

ctypedef struct Extension:
    int64_t master              # ordinal of the connection that it is of; -1 while that is not confirmed
    SeqAdjust adjust[2]
    HelperMemory memory
    uint32_t youngest           # of its expectations, or NO_CONN; in the free list: the next free row
    uint16_t changes            # that a dropped packet made; the next one tells of them
    uint8_t helper              # HELPER_*
    uint8_t live

ctypedef struct Extensions:
    Extension *row              # [size + 1]; 0 is nobody's
    uint32_t size               # more than `most`: those of connections that are not confirmed come on top
    uint32_t most               # confirmed connections that may have one
    uint32_t confirmed          # that have one
    uint32_t used               # rows ever handed out
    uint32_t free               # 0: none
    uint32_t count
    uint32_t refused
    uint32_t *tunnel            # chains of PPTP's tunnels: 2 * row + direction; 0 ends one
    uint32_t n_tunnels          # chains, a power of two
    uint32_t tunnels            # in them
    uint64_t secret             # of the chains' hash

cdef uint32_t extension_take(Extensions *all) noexcept nogil
cdef void extension_give(Extensions *all, uint32_t row) noexcept nogil
cdef str extensions_fault(const Extensions *all)

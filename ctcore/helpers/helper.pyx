"""What every helper does in the same way: announce a connection, and nothing else than that on its own connection's behalf.

Invariant: what is announced has the extension of its own connection as owner, and dies with it.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from ctcore.expectations cimport ANNOUNCED, expect_announce
from ctcore.types cimport CONFIRMED, DST_NAT, EXTENSION_ROW, ORIG, R_HELPER_REFUSED, R_OK, SRC_NAT


# Most expectations of a connection by kind, and how long they live, in seconds.
ctypedef struct Policy:
    uint32_t most[N_KINDS]
    uint32_t seconds

cdef Policy[N_HELPERS] POLICY
POLICY[HELPER_FTP] = Policy([1, 0, 0, 0], 300)
POLICY[HELPER_TFTP] = Policy([1, 0, 0, 0], 300)
POLICY[HELPER_SIP] = Policy([1, 4, 4, 2], 180)          # signalling; RTP and RTCP of both sides, of two kinds; an image of each
POLICY[HELPER_IRC] = Policy([8, 0, 0, 0], 300)
POLICY[HELPER_PPTP] = Policy([2, 0, 0, 0], 300)         # both directions of the tunnel


cdef void draft_new(const Aid *aid, Expectation *draft, uint8_t kind, uint8_t proto) noexcept nogil:
    """An expectation with all that does not depend on the payload: of any source port, and not translated."""
    memset(draft, 0, sizeof(Expectation))
    draft.key.zone = aid.entry.flow[ORIG].key.zone
    draft.key.family = aid.entry.flow[ORIG].key.family
    draft.key.proto = proto
    draft.kind = kind
    draft.any_sport = 1
    # An unconfirmed connection gets this ordinal if it is confirmed; if not, it takes what it announced along.
    draft.master = aid.entry.flow[ORIG].id if aid.entry.status & CONFIRMED else aid.ct.next_id
    draft.master_conn = aid.conn
    draft.owner = aid.entry.extension & EXTENSION_ROW


cdef Announced announce(Aid *aid, Expectation *draft) noexcept nogil:
    cdef uint32_t hz = <uint32_t>(1_000_000_000 // aid.ct.set.tick_ns)
    cdef const Policy *policy = &POLICY[aid.ext.helper]
    draft.deadline = aid.ct.tick + policy.seconds * hz
    return expect_announce(&aid.ct.expect, draft, policy.most[draft.kind], aid.ct.tick)


cdef uint8_t announce_or_drop(Aid *aid, Expectation *draft) noexcept nogil:
    """Without address translation there is one way to announce it, or none: then its packet had better not arrive."""
    return R_OK if announce(aid, draft) == ANNOUNCED else R_HELPER_REFUSED


cdef bint translated(const Aid *aid) noexcept nogil:
    return aid.entry.status & (SRC_NAT | DST_NAT) != 0

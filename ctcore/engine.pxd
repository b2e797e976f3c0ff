# The engine's state in one struct, and what every protocol tracker does with it: refresh a timeout, count a packet.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.edits cimport Edits
from ctcore.events cimport EventBuffer
from ctcore.evictions cimport Evictions
from ctcore.expectations cimport Expectations
from ctcore.extensions cimport Extensions
from ctcore.hashing cimport HashKey
from ctcore.nat_table cimport Nat
from ctcore.pool cimport Pool
from ctcore.strays cimport Strays
from ctcore.table cimport Table
from ctcore.timers cimport Wheel, wheel_moved
from ctcore.types cimport CONFIRMED, FIXED_TIMEOUT, Entry, Packet, Rewrite, Settings
from ctcore.zones cimport Zones

# What a protocol tracker makes of a packet.
cdef enum Outcome:
    ACCEPTED
    REJECTED                    # invalid: the packet loses its connection
    REPEAT                      # the connection is gone; the packet starts over without it

ctypedef struct Counters:
    uint64_t found
    uint64_t new
    uint64_t invalid
    uint64_t early_drop
    uint64_t drop
    uint64_t insert_failed
    uint64_t expired

ctypedef struct Engine:
    Settings set
    Pool pool
    Table table
    Wheel wheel
    EventBuffer buffer          # of events, for whoever takes them
    Expectations expect
    Extensions ext              # of connections that have a helper
    Edits edits                 # of the batch at hand
    uint8_t *scratch            # room for the longest packet's payload; NULL if there are no helpers
    uint8_t *helper_of[2]       # by port, of TCP and of UDP: HELPER_*, 0 none; NULL if there are no helpers
    Zones zones
    Evictions evictions         # the audit, for whoever takes it
    Nat nat
    Counters count
    HashKey hash_key
    int64_t now                 # ns; never goes back
    uint64_t tick               # now in ticks
    int64_t next_tick_at        # ns at which the next tick begins
    int64_t next_id             # ordinal of the next connection
    uint32_t live               # confirmed connections
    Rewrite *rewrite            # where to say what is to be changed in the packet at hand; NULL: nobody asks
    uint16_t changes            # what the packet at hand changed in its connection
    void (*offloaded_gone)(void *who, uint32_t conn) noexcept nogil     # whom to tell of the death of a connection with OFFLOAD; NULL: nobody
    void *offloaded_who
    Strays *strays              # where to enter connections that were expected; NULL: nobody asks
    uint64_t offloaded_changes  # marks and labels of connections with OFFLOAD that were changed


cdef inline void account(Engine *ct, Entry *entry, const Packet *p, int dir) noexcept nogil:
    if ct.set.acct:
        entry.flow[dir].packets += 1
        entry.flow[dir].bytes += p.ip_len


cdef inline void set_deadline(Engine *ct, Entry *entry, uint32_t ticks) noexcept nogil:
    """The connection lives for `ticks` from now on."""
    cdef uint32_t old = entry.deadline
    entry.deadline = <uint32_t>ct.tick + ticks
    if entry.status & CONFIRMED:
        wheel_moved(&ct.wheel, <uint32_t>(entry - ct.pool.entry), old, ticks)


cdef inline void refresh(Engine *ct, Entry *entry, const Packet *p, int dir, uint32_t ticks) noexcept nogil:
    """An accepted packet that counts: renew the timeout unless it is fixed, and account."""
    if not entry.status & FIXED_TIMEOUT:
        set_deadline(ct, entry, ticks)
    account(ct, entry, p, dir)


cdef inline int32_t ticks_left(const Engine *ct, const Entry *entry) noexcept nogil:
    cdef int32_t left = <int32_t>(entry.deadline - <uint32_t>ct.tick)
    return left if left > 0 else 0

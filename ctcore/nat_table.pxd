# What a tracker has of address translation: its rules, which are pools as well, and the connections by source. Not here: choosing (nat).

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

# What there is to choose from. Addresses as in a Key.
ctypedef struct NatRange:
    uint64_t low[2]
    uint64_t high[2]
    uint16_t port_low
    uint16_t port_high
    uint8_t flags               # RangeFlag

# A rule, and the pool that it is: how much of its range is taken.
ctypedef struct NatRule:
    uint64_t src[2]             # compared under their masks
    uint64_t src_mask[2]
    uint64_t dst[2]
    uint64_t dst_mask[2]
    uint16_t sport[2]           # lowest, highest
    uint16_t dport[2]
    uint8_t proto               # 0: any
    uint8_t ports               # whether ports are looked at; protocols without have none that fit
    uint8_t family              # 0: any
    uint8_t manip
    uint8_t interface           # masquerade, redirect: the address is an interface's own
    NatRange range
    uint32_t in_use             # live connections
    uint32_t high_water
    uint64_t exhausted          # connections that found nothing free

# What a connection has of NAT beside its tuples: a row for each slot of the pool.
ctypedef struct NatLink:
    uint32_t next               # reference, in its source's chain, the newest first
    uint32_t prev               # slot, or NO_CONN: it is the first
    uint16_t rule[2]            # by manip, counted from 1; 0: a null binding

ctypedef struct Nat:
    NatRule *rule               # NULL: no address translation
    NatLink *link
    uint32_t *head              # chains of connections by source: references
    uint32_t n_rules
    uint32_t n_heads            # a power of two
    uint64_t secret[3]          # of the chains' hash
    uint64_t random             # state of the generator
    int32_t prefer[2]           # by manip: port at which the next search begins, or -1
    int32_t prefer_announced    # port for the next announcement that cannot have its own, or -1
    uint64_t exhausted          # of all rules, and null bindings

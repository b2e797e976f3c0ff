"""Address translation: which tuple a new connection gets on the other side.

Theory of operation: a connection is translated by its reply tuple alone. It starts as the inverse of the original one; translation of the destination
and then of the source each replace it by the inverse of the tuple its packets shall leave with. What is chosen has to be unique: its
answers must come to no other connection. All packets after the first obey: one of direction d leaves with the inverse of flow[!d].key (plan_rewrite).
One connection: 10.0.0.2:40000 > 192.0.2.9:80 under `snat 198.51.100.1`: reply tuple 192.0.2.9:80 > 198.51.100.1:40000. A second one, from
10.0.0.3:40000, finds this taken and searches 1024-65535 from a random port on.
The order of choice is Linux's (nf_nat_core.c, get_unique_tuple): what the packet has, if it is in the range and free; what another connection of the
same source has; an address by hash, with the packet's port; a port by search. Randomness comes from the seed.
Not here: the chains of connections by source (nat_chain), rewriting of bytes (datapath.rewrite), helpers, who confirms (tracker).
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ctcore.engine cimport Engine
from ctcore.hashing cimport hash_of
from ctcore.lowlevel cimport be32, likely, prefetch
from ctcore.nat_chain cimport NO_REF, REF_LAST, REF_SLOT, REF_TAG, chain_of, source_hash, tag_bits
from ctcore.nat_table cimport Nat, NatLink, NatRange, NatRule
from ctcore.steering cimport owner_of
from ctcore.table cimport same_key, table_find
from ctcore.timers cimport tick_reached
from ctcore.tuples cimport invert
from ctcore.types cimport *
from ctcore.zones cimport zone_of

cdef extern from "arpa/inet.h" nogil:
    uint32_t htonl(uint32_t)
    uint32_t ntohl(uint32_t)

cdef enum:
    MOST_ATTEMPTS = 128         # consecutive ports tried at a time
    FEWEST_ATTEMPTS = 16        # no other place is tried with fewer
    TAKE_OVER = 32              # with as many attempts left a closed connection has to give way
    RANDOM_PORTS = RANGE_RANDOM | RANGE_FULLY_RANDOM
    JHASH = 0xDEADBEEF

# Status bits, by manip.
cdef uint16_t[2] CHANGED = [<uint16_t>SRC_NAT, <uint16_t>DST_NAT]
cdef uint16_t[2] DONE = [<uint16_t>SRC_NAT_DONE, <uint16_t>DST_NAT_DONE]


# --- numbers ------------------------------------------------------------------------------------------------------------------------------


cdef uint16_t draw(Nat *nat) noexcept nogil:
    """16 random bits, by splitmix64."""
    cdef uint64_t z
    nat.random += <uint64_t>0x9E3779B97F4A7C15
    z = nat.random
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return <uint16_t>((z ^ (z >> 31)) >> 48)


cdef inline uint32_t rol(uint32_t word, int n) noexcept nogil:
    return word << n | word >> (32 - n)


cdef uint32_t hash_words(const uint32_t *word, uint32_t seed) noexcept nogil:
    """Bob Jenkins' lookup3 hashword() of four words, as Linux seeds it (jhash2): it decides which address of a range a source gets."""
    cdef uint32_t a, b, c
    a = b = c = <uint32_t>JHASH + (4 << 2) + seed
    a += word[0]
    b += word[1]
    c += word[2]
    a = (a - c) ^ rol(c, 4); c += b
    b = (b - a) ^ rol(a, 6); a += c
    c = (c - b) ^ rol(b, 8); b += a
    a = (a - c) ^ rol(c, 16); c += b
    b = (b - a) ^ rol(a, 19); a += c
    c = (c - b) ^ rol(b, 4); b += a
    a += word[3]
    c = (c ^ b) - rol(b, 14)
    a = (a ^ c) - rol(c, 11)
    b = (b ^ a) - rol(a, 25)
    c = (c ^ b) - rol(b, 16)
    a = (a ^ c) - rol(c, 4)
    b = (b ^ a) - rol(a, 14)
    return (c ^ b) - rol(b, 24)


# --- tuples -------------------------------------------------------------------------------------------------------------------------------


cdef inline uint16_t *port_of(Key *tuple, int manip) noexcept nogil:
    """The port that is translated; of ICMP the id, whichever end is."""
    if manip == MANIP_SRC or tuple.proto == PROTO_ICMP or tuple.proto == PROTO_ICMPV6:
        return &tuple.sport
    return &tuple.dport


cdef inline bint has_ports(uint8_t proto) noexcept nogil:
    return proto == PROTO_TCP or proto == PROTO_UDP or proto == PROTO_UDPLITE or proto == PROTO_SCTP


cdef inline bint has_id(uint8_t proto) noexcept nogil:
    """ICMP's id and GRE's call id may be translated as ports are."""
    return proto == PROTO_ICMP or proto == PROTO_ICMPV6 or proto == PROTO_GRE


cdef inline bint port_fits(const NatRange *range, Key *tuple, int manip) noexcept nogil:
    """Protocols without ports fit in any range of them."""
    if not (has_ports(tuple.proto) or has_id(tuple.proto)):
        return True
    return range.port_low <= port_of(tuple, manip)[0] <= range.port_high


cdef inline int compare_addresses(const uint64_t *a, const uint64_t *b) noexcept nogil:
    """In the order of their numbers: they lie in network order."""
    cdef const uint32_t *x = <const uint32_t *>a
    cdef const uint32_t *y = <const uint32_t *>b
    cdef int i
    for i in range(4):
        if x[i] != y[i]:
            return -1 if ntohl(x[i]) < ntohl(y[i]) else 1
    return 0


cdef inline bint source_in_range(const NatRange *allowed, Key *tuple) noexcept nogil:
    if allowed.flags & RANGE_ADDRESSES:
        if compare_addresses(tuple.src, allowed.low) < 0 or compare_addresses(tuple.src, allowed.high) > 0:
            return False
    return not allowed.flags & RANGE_PORTS or port_fits(allowed, tuple, MANIP_SRC)


cdef uint32_t holder(const Engine *ct, const Key *tuple) noexcept nogil:
    """The live flow that answers to `tuple` would be taken for, or NO_FLOW."""
    cdef Key answer
    cdef uint32_t flow
    invert(tuple, &answer)                  # a tracked connection's tuple has an answer
    flow = table_find(&ct.table, ct.pool.entry, hash_of(&ct.hash_key, &answer), &answer)
    if flow != NO_FLOW and tick_reached(ct.pool.entry[flow >> 1].deadline, ct.tick):
        return NO_FLOW
    return flow


cdef inline bint is_own(const Engine *ct, const Choice *c) noexcept nogil:
    """Whether answers to the tuple come to this tracker, if several share the work: then no other one of them can choose it.

    Whose a connection is that was expected, all of them know (strays).
    """
    if likely(ct.set.share_count == 1) or c.entry.status & EXPECTED:
        return True
    return owner_of(&c.tuple, ct.set.share_count) == ct.set.share_index


cdef inline bint is_free(const Engine *ct, const Choice *c) noexcept nogil:
    return is_own(ct, c) and holder(ct, &c.tuple) == NO_FLOW


cdef bint gives_way(const Entry *old, const Entry *new) noexcept nogil:
    """Whether a source-translated connection that is over has to leave its tuple to a SYN that is newer by its sequence number."""
    return (
        old.l4.tcp.state >= TIME_WAIT and old.status & SRC_NAT and not old.status & (FIXED_TIMEOUT | OFFLOAD | HW_OFFLOAD)
        and <int32_t>(new.l4.tcp.side[ORIG].end - old.l4.tcp.side[ORIG].end) > 0
    )


cdef bint is_free_harder(const Engine *ct, Choice *c, uint32_t attempts_left) noexcept nogil:
    """The same, and near the end of a search also where a closed connection can be replaced."""
    cdef uint32_t flow
    if is_free(ct, c):
        return True
    if attempts_left > TAKE_OVER * ct.set.share_count or not is_own(ct, c) or c.tuple.proto != PROTO_TCP or c.entry.l4.tcp.state != SYN_SENT:
        return False
    flow = holder(ct, &c.tuple)
    if flow & 1 == REPLY and gives_way(&ct.pool.entry[flow >> 1], c.entry):
        c.victim = flow >> 1
    return c.victim != NO_CONN


# --- the source's other connections ---------------------------------------------------------------------------------------------------------


cdef inline bint same_source(const Key *a, const Key *b) noexcept nogil:
    return a.src[0] == b.src[0] and a.src[1] == b.src[1] and a.sport == b.sport and a.proto == b.proto and a.family == b.family


cdef bint as_before(Engine *ct, Choice *c) noexcept nogil:
    """Take what the newest connection of the same source has that is in the range (RFC 4787 4.1).

    The source is that of the tuple at hand: an ICMP id may have been translated with the destination. Its zone is that of the original direction,
    where the tuple has that of the reply.
    """
    cdef uint64_t hash = source_hash(&ct.nat, &c.tuple)
    cdef uint32_t ref = chain_of(&ct.nat, hash)[0]
    cdef const Entry *other
    cdef Key found
    while ref != NO_REF:
        other = &ct.pool.entry[ref & REF_SLOT]
        if ref & REF_TAG == tag_bits(hash) and same_source(&other.flow[ORIG].key, &c.tuple) and other.flow[ORIG].key.zone == c.entry.flow[ORIG].key.zone:
            found = c.tuple
            found.src[0], found.src[1] = other.flow[REPLY].key.dst[0], other.flow[REPLY].key.dst[1]
            found.sport = other.flow[REPLY].key.sport if found.proto == PROTO_ICMP or found.proto == PROTO_ICMPV6 else other.flow[REPLY].key.dport
            if source_in_range(c.range, &found):
                c.tuple = found
                return True
        ref = NO_REF if ref & REF_LAST else ct.nat.link[ref & REF_SLOT].next
    return False


# --- choosing -----------------------------------------------------------------------------------------------------------------------------


cdef void pick_address(Choice *c) noexcept nogil:
    """An address of the range by hash: the same for a source and destination each time, and for a source alone if the range is persistent.

    Word by word, most significant first: at the range's upper edge what lies beneath is bounded, below it is not.
    """
    cdef uint32_t *chosen = <uint32_t *>&c.tuple.src[0] if c.manip == MANIP_SRC else <uint32_t *>&c.tuple.dst[0]
    cdef const uint32_t *low = <const uint32_t *>c.range.low
    cdef const uint32_t *high = <const uint32_t *>c.range.high
    cdef uint32_t dst[4]
    cdef uint32_t j, least, n
    cdef bint below = False
    cdef int i, words = 1 if c.tuple.family == 4 else 4
    if not c.range.flags & RANGE_ADDRESSES:
        return
    if (c.range.low[0] ^ c.range.high[0]) | (c.range.low[1] ^ c.range.high[1]) == 0:
        memcpy(chosen, low, 16)
        return
    memcpy(dst, c.tuple.dst, 16)
    j = hash_words(<const uint32_t *>c.tuple.src, 0 if c.range.flags & RANGE_PERSISTENT else dst[words - 1] ^ c.zone)
    for i in range(words):
        least = 0 if below else ntohl(low[i])
        n = <uint32_t>0xFFFFFFFF if below else ntohl(high[i]) - least + 1
        chosen[i] = htonl(least + <uint32_t>((<uint64_t>j * n) >> 32))
        if chosen[i] != high[i]:
            below = True
        if not c.range.flags & RANGE_PERSISTENT:
            # Linux folds in the tuple's own destination, which is what is being chosen if that is what is translated.
            j ^= (<const uint32_t *>c.tuple.dst)[i]


cdef bint port_space(const Choice *c, uint32_t *low, uint32_t *size) noexcept nogil:
    """The ports to search. False if there are none: then the tuple stays as it is."""
    cdef uint8_t proto = c.tuple.proto
    cdef bint any_port = not c.range.flags & RANGE_PORTS
    cdef uint16_t port = c.tuple.sport
    cdef bint icmp = proto == PROTO_ICMP or proto == PROTO_ICMPV6
    if not (icmp or has_ports(proto) or (proto == PROTO_GRE and c.entry.master >= 0)):
        return False
    if not any_port:
        low[0], size[0] = c.range.port_low, <uint32_t>c.range.port_high - c.range.port_low + 1
    elif icmp:
        low[0], size[0] = 0, 65536
    elif proto == PROTO_GRE:
        low[0], size[0] = 1, 65535
    elif c.manip == MANIP_DST:
        return False
    elif port < 512:                        # by class, since some servers believe in low ports
        low[0], size[0] = 1, 511
    elif port < 1024:
        low[0], size[0] = 600, 424
    else:
        low[0], size[0] = 1024, 64512
    return True


cdef inline uint16_t first_offset(Engine *ct, const Choice *c, uint32_t low) noexcept nogil:
    cdef int32_t preferred = ct.nat.prefer[c.manip]
    if c.manip == MANIP_DST and not c.range.flags & RANDOM_PORTS:
        return 0
    ct.nat.prefer[c.manip] = -1
    return <uint16_t>(preferred - <int32_t>low) if preferred >= <int32_t>low else draw(&ct.nat)


cdef void search_port(Engine *ct, Choice *c) noexcept nogil:
    """Consecutive ports from a random one on, at a few places if there are many. If all are taken the last one stays, which is not unique.

    Where several trackers share the work, each has so many times more attempts, since only its share of them can be its own.

    Or the preferred one, for that is where the search ended that is followed. How many attempts that had left is not known: few enough.
    """
    cdef uint32_t low, size, attempts, left, i, shares = ct.set.share_count
    cdef uint16_t *port = port_of(&c.tuple, c.manip)
    cdef uint16_t offset, first
    cdef bint told
    if not port_space(c, &low, &size):
        return
    told = ct.nat.prefer[c.manip] >= <int32_t>low and (c.manip == MANIP_SRC or c.range.flags & RANDOM_PORTS)
    offset = first = first_offset(ct, c, low)
    attempts = min(size, MOST_ATTEMPTS * shares)
    while True:
        for i in range(attempts):
            port[0] = <uint16_t>(low + offset % size)
            left = TAKE_OVER * shares if told and offset == first else attempts - i
            if is_free_harder(ct, c, left):
                return
            offset += 1
        if attempts >= size or attempts < FEWEST_ATTEMPTS * shares:
            if told:
                port[0] = <uint16_t>(low + first % size)
            return
        attempts //= 2
        offset = draw(&ct.nat)


cdef void choose(Engine *ct, Choice *c) noexcept nogil:
    """The tuple to leave with.   Reads: range, manip, entry.   Reads and writes: tuple.   Writes: victim.

    What is left in it may not be unique: confirm will see.
    """
    cdef Key before = c.tuple
    cdef bint random_port = c.range.flags & RANDOM_PORTS
    c.victim = NO_CONN
    if c.manip == MANIP_SRC and not random_port:
        if source_in_range(c.range, &c.tuple):
            if is_free(ct, c):
                return
        elif as_before(ct, c):
            if is_free(ct, c):
                return
            c.tuple = before
    pick_address(c)
    if not random_port:
        if not c.range.flags & RANGE_PORTS:
            if is_free(ct, c):
                return
        elif port_fits(c.range, &c.tuple, c.manip) and (is_free(ct, c) or c.range.port_low == c.range.port_high):
            return                          # a single port is taken without a look; confirm has one
    search_port(ct, c)


# --- a new connection -----------------------------------------------------------------------------------------------------------------------


cdef inline bint matches(const NatRule *rule, const Key *key) noexcept nogil:
    if rule.family and rule.family != key.family or rule.proto and rule.proto != key.proto:
        return False
    if rule.ports and not (has_ports(key.proto) and rule.sport[0] <= key.sport <= rule.sport[1] and rule.dport[0] <= key.dport <= rule.dport[1]):
        return False
    return (
        ((key.src[0] ^ rule.src[0]) & rule.src_mask[0]) | ((key.src[1] ^ rule.src[1]) & rule.src_mask[1])
        | ((key.dst[0] ^ rule.dst[0]) & rule.dst_mask[0]) | ((key.dst[1] ^ rule.dst[1]) & rule.dst_mask[1])
    ) == 0


cdef uint32_t nat_setup(Engine *ct, Entry *entry, int manip, const NatRange *allowed) noexcept nogil:
    """Translate one half of an unconfirmed connection's tuple into a range.   Writes: the reply tuple, its hash, the status.

    Returns the connection that has to give way, or NO_CONN.
    """
    cdef Choice c
    cdef Key before
    c.range = allowed
    c.manip = manip
    c.entry = entry
    c.zone = zone_of(entry)
    invert(&entry.flow[REPLY].key, &c.tuple)
    before = c.tuple
    choose(ct, &c)
    if not same_key(&before, &c.tuple):
        invert(&c.tuple, &entry.flow[REPLY].key)
        entry.hash[REPLY] = hash_of(&ct.hash_key, &entry.flow[REPLY].key)
        entry.status |= CHANGED[manip]
    entry.status |= DONE[manip]
    return c.victim


cdef inline uint16_t rule_for(const Nat *nat, const Key *leaving, int manip) noexcept nogil:
    """The first rule that matches, counted from 1, or 0."""
    cdef uint32_t i
    for i in range(nat.n_rules):
        if nat.rule[i].manip == manip and matches(&nat.rule[i], leaving):
            return <uint16_t>(i + 1)
    return 0


cdef inline int scope_of(const uint64_t *address) noexcept nogil:
    """As Linux numbers it for a choice between an interface's addresses (RFC 4291 2.5.3, 2.5.6, 2.5.7, 2.7): 0 is global."""
    cdef const uint8_t *a = <const uint8_t *>address
    if a[0] == 0xFF:
        return a[1] & 15 if (a[1] & 15) in (1, 2, 5) else 0
    if a[0] == 0xFE and a[1] & 0xC0 in (0x80, 0xC0):
        return 2 if a[1] & 0xC0 == 0x80 else 5
    return 1 if address[0] == 0 and be32(a + 8) == 0 and be32(a + 12) == 1 else 0


cdef inline bint is_unknown(const Key *leaving) noexcept nogil:
    """A source that has no address yet, as DHCP has: it is not masqueraded (nf_nat_masquerade_ipv4)."""
    return leaving.family == 4 and leaving.src[0] == 0


cdef inline uint32_t bind(Engine *ct, uint32_t conn, int manip, uint32_t rule) noexcept nogil:
    """Translate one half of a new connection's tuple into a rule's range; rule: counted from 1. 0 is a null binding: the address stays.

    Returns the connection that has to give way, or NO_CONN.
    """
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef uint8_t proto = entry.flow[ORIG].key.proto
    cdef NatRange anything
    ct.nat.link[conn].rule[manip] = <uint16_t>rule
    if rule:
        return nat_setup(ct, entry, manip, &ct.nat.rule[rule - 1].range)
    if manip == MANIP_DST and (has_ports(proto) or not has_id(proto)):
        entry.status |= DONE[manip]         # free or not: there is nothing to search, see port_space()
        return NO_CONN
    anything.flags = 0
    return nat_setup(ct, entry, manip, &anything)


cdef uint32_t nat_bind(Engine *ct, uint32_t conn, int manip, uint32_t rule) noexcept nogil:
    """The same for `ct` actions, which name the rule."""
    return bind(ct, conn, manip, rule)


cdef uint32_t nat_decide(Engine *ct, uint32_t conn, int manip) noexcept nogil:
    """Decide one half of a new connection by the first rule that matches; the destination comes first. Without one it is a null binding.

    Returns the connection that has to give way, NO_CONN, or REFUSED. Whether the tuple is unique shows at confirm.
    """
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef NatLink *link = &ct.nat.link[conn]
    cdef Key leaving
    link.rule[manip] = 0
    if entry.status & DONE[manip]:
        return NO_CONN
    invert(&entry.flow[REPLY].key, &leaving)
    link.rule[manip] = rule_for(&ct.nat, &leaving, manip)
    if link.rule[manip] and ct.nat.rule[link.rule[manip] - 1].interface:
        if manip == MANIP_SRC and is_unknown(&leaving):
            link.rule[manip] = 0
        elif manip == MANIP_DST and leaving.family == 6 and scope_of(leaving.dst) != scope_of(ct.nat.rule[link.rule[manip] - 1].range.low):
            link.rule[manip] = 0
            return REFUSED
    return bind(ct, conn, manip, link.rule[manip])


cdef void nat_foresee(const Engine *ct, Key *leaving) noexcept nogil:
    """What a packet will probably leave as if it opens a connection, as far as that is plain; asks for the chain of its source.

    Only memory is asked for by it: a guess that is wrong costs a wait.
    """
    cdef Choice c
    cdef uint16_t rule
    cdef int manip
    c.tuple = leaving[0]
    c.zone = leaving.zone
    for manip in range(MANIP_DST, MANIP_SRC - 1, -1):
        rule = rule_for(&ct.nat, &c.tuple, manip)
        if rule:
            c.manip = manip
            c.range = &ct.nat.rule[rule - 1].range
            pick_address(&c)
    prefetch(chain_of(&ct.nat, source_hash(&ct.nat, leaving)))
    leaving[0] = c.tuple


cdef void nat_exhausted(Engine *ct, uint32_t conn) noexcept nogil:
    """What was chosen for a new connection is not unique: count it, on the rule that chose last."""
    cdef NatLink *link = &ct.nat.link[conn]
    cdef uint16_t rule = link.rule[MANIP_SRC] if link.rule[MANIP_SRC] else link.rule[MANIP_DST]
    ct.nat.exhausted += 1
    if rule:
        ct.nat.rule[rule - 1].exhausted += 1

"""A frame through the NIC: parser, chains, actions, CT tables; forwarded, dropped, given to the host, or missed (contract A9.62-68).

Theory of operation: a frame's registers are a few words (R_*), its key is what rules match and what the CT tables are asked for. A rule is looked up
in a chain; whether all of it can be done is known before it begins, but for `ct`, which misses in the middle; then software goes on there. The frame
stays in the caller's memory until something changes it, and is copied into the NIC's from then on; a copy that has left by a mirror is not touched.
One packet: chain 0 `-trk: ct zone 5, goto 1` finds the connection's entry: address rewritten, ct_state +trk+est; chain 1 `+trk+est: redirect 2`.
Invariants: a rule counts a frame when it is through with it, never one that missed in it; at most MOST_TURNS chains, MOST_OUTPUTS outputs, and
MOST_TAGS_PUSHED tags a frame; nothing is read outside of a frame, and nothing written but the NIC's own memory.
Not here: rules (program), entries (tables), bytes (change).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload.simnic.change import (
    MOST_TAGS_PUSHED,
    ROOM,
    TAG,
    edit,
    modify_tag,
    pop_tag,
    push_tag,
    sum_anew,
    summable,
    tagged,
    translate,
)
from offload.simnic.kernel import inlined, kernel, prefetch
from offload.simnic.layout import (
    STATE_EST,
    STATE_NAT,
    STATE_NEW,
    STATE_RPL,
    STATE_TRK,
    W_CT,
    W_DST_MAC,
    W_NETWORK,
    W_PORTS,
    W_SRC_MAC,
    WORDS,
)
from offload.simnic.parse import AT_END, AT_GRE, AT_L3, GRE, N_AT, TCP, UDP, parse
from offload.simnic.program import (
    NO_CHAIN,
    NO_SEAT,
    OP_CLEAR,
    OP_COPY,
    OP_CT,
    OP_EDIT,
    OP_MARK,
    OP_MODIFY,
    OP_POLICE,
    OP_POP,
    OP_PUSH,
    OP_SEND,
    OP_SUM,
    SECOND,
    THEN_DROP,
    THEN_GOTO,
    THEN_PIPE,
    classify,
)
from offload.simnic.results import NO_CONN, NO_RULE, Flag, OutputFlag, Verdict, Why
from offload.simnic.tables import COUNTER_WORDS, E_CONN, E_LABELS, E_META, ENTRY_WORDS, IN_CT, REWRITES, count, find_tuple, tuple_tag

MOST_TURNS, MOST_OUTPUTS = 17, 16
ETHERNET = 1
GRE_VERSION = 0x0007
FIN, SYN, RST = 0x01, 0x02, 0x04

FORWARDED, PASSED, DROPPED, MISSED = (int(each) for each in Verdict)
BY_RULE, POLICED, LINK = int(Why.RULE), int(Why.POLICED), int(Why.LINK)
NONE_MATCHES, IN_SOFTWARE, CHAINS, COPIES = int(Why.NO_RULE), int(Why.IN_SOFTWARE), int(Why.CHAINS), int(Why.COPIES)
TAG_ROOM, SUM, FIELD = int(Why.TAG_ROOM), int(Why.SUM), int(Why.FIELD)
CT_PROTO, CT_CLOSING, CT_MISS, CT_TABLE = int(Why.CT_PROTO), int(Why.CT_CLOSING), int(Why.CT_MISS), int(Why.CT_TABLE)
CHANGED, SERVED, FLAG_SYN = int(Flag.CHANGED), int(Flag.CT), int(Flag.SYN)
OUT_CHANGED, OUT_COPY = int(OutputFlag.CHANGED), int(OutputFlag.COPY)

# Registers of a frame. R_OFF, R_CAPLEN, R_LEN: where it is and how long; R_OWN: in the NIC's memory; R_LENT: a copy of it has left from there;
# R_PARSE: its bytes no longer are what the key says.
R_OFF, R_CAPLEN, R_LEN, R_OWN, R_LENT, R_PARSE, R_IFACE, R_MARK, R_PRIORITY, R_RESTORE, R_CONN, R_FLAGS, R_PUSHED, R_OUTPUTS, R_TURNS = range(15)
N_REGISTERS = 15
# Of a NIC, between frames: the period of its counters; when the next one begins, and how long one is; from when to when they are stuck; bytes of
# its memory and outputs in use; SYNs forwarded as established.
N_PERIOD, N_NEXT, N_LENGTH, N_STUCK_FROM, N_STUCK_TO, N_USED, N_OUT, N_SYNS = range(8)
# Settings: whether a software that resumes does so at the action; whether what a CT table serves loses its padding.
O_EXACT, O_TRIMS = range(2)


BLOCK = 32  # frames that are parsed, and whose entries are fetched, before the first of them goes its way


class Block(NamedTuple):
    """Of a block's frames: key, at as in Work; a Why of the parser; slot: where its connection may be."""

    key: NDArray[Any]
    at: NDArray[Any]
    why: NDArray[Any]
    slot: NDArray[Any]


def block() -> Block:
    sizes = (BLOCK, WORDS), (BLOCK, N_AT), BLOCK, BLOCK
    key, at, why, slot = (np.zeros(size, dtype=np.int64) for size in sizes)
    return Block(key, at, why, slot)


class Work(NamedTuple):
    """own: the NIC's memory; output: rows of OUTPUT_DTYPE; nic: N_*; option: O_*; key, at, r: of the frame."""

    own: NDArray[Any]
    output: NDArray[Any]
    nic: NDArray[Any]
    option: NDArray[Any]
    key: NDArray[Any]
    at: NDArray[Any]
    r: NDArray[Any]


def work(own: NDArray[Any], output: NDArray[Any], nic: NDArray[Any], option: NDArray[Any]) -> Work:
    words = [np.zeros(n, dtype=np.int64) for n in (WORDS, N_AT, N_REGISTERS)]
    return Work(own, output, nic, option, *words)


# --- the frame's bytes ------------------------------------------------------------------------------------------------------------------


@kernel
def own_copy(w, memory):
    """The frame's bytes where the NIC may change them.   Writes: R_OFF, R_OWN, R_LENT; at."""
    r = w.r
    to, n = w.nic[N_USED] + ROOM, r[R_CAPLEN]
    source = r[R_OFF]
    if r[R_OWN]:
        for i in range(n):
            w.own[to + i] = w.own[source + i]
    else:
        for i in range(n):
            w.own[to + i] = memory[source + i]
    w.nic[N_USED] = (to + n + 7) & ~7
    for i in range(N_AT - 1):
        if w.at[i] >= 0:
            w.at[i] += to - source
    r[R_OFF], r[R_OWN], r[R_LENT] = to, 1, 0


@inlined
def changeable(w, memory):
    if not w.r[R_OWN] or w.r[R_LENT]:
        own_copy(w, memory)


@kernel
def parse_anew(w):
    """After actions on the bytes: the same key, with what ct and the iface say. Returns a Why."""
    ports, state, ct = w.key[W_PORTS], w.key[W_SRC_MAC], w.key[W_CT]
    why = parse(w.own, w.r[R_OFF], w.r[R_CAPLEN], w.r[R_LEN], w.key, w.at)
    w.key[W_PORTS] |= ports & (0xFFFF << 32)
    w.key[W_SRC_MAC] |= state & (0xFF << 48)
    w.key[W_DST_MAC] |= w.r[R_IFACE] << 48
    w.key[W_CT] = ct
    w.r[R_PARSE] = 0
    return why


@inlined
def put_out(w, row, iface, egress, copy):
    r = w.r
    out = w.output[w.nic[N_OUT]]
    out.offset, out.frame, out.caplen, out.length = r[R_OFF], row, r[R_CAPLEN], r[R_LEN]
    out.mark, out.priority, out.iface, out.egress = r[R_MARK], r[R_PRIORITY], iface, egress
    out.flags = (OUT_CHANGED if r[R_OWN] else 0) | (OUT_COPY if copy else 0)
    r[R_LENT] |= r[R_OWN]
    r[R_OUTPUTS] += 1
    w.nic[N_OUT] += 1


# --- connections ------------------------------------------------------------------------------------------------------------------------


@inlined
def ct_clear(w):
    """All registers that a CT table writes are zeroed (contract A9.70)."""
    w.key[W_PORTS] &= ~(np.int64(0xFFFF) << 32)
    w.key[W_SRC_MAC] &= ~(np.int64(0xFF) << 48)
    w.key[W_CT] = 0
    w.r[R_RESTORE], w.r[R_CONN] = 0, NO_CONN


@inlined
def ct(w, t, memory, zone, nat, now):
    """The action (contract A9.63-66). Returns a Why, 0: the connection was found, or there already."""
    key, r = w.key, w.r
    state = key[W_SRC_MAC] >> 48 & 0xFF
    if state & STATE_TRK and key[W_PORTS] >> 32 & 0xFFFF == zone and (not nat or state & STATE_NAT):
        return 0
    ct_clear(w)
    proto, flags = key[W_PORTS] >> 48 & 0xFF, key[W_NETWORK] >> 32 & 0xFFF
    if proto == TCP:
        if flags & (FIN | RST):
            return CT_CLOSING
    elif w.at[AT_L3] < 0 or (proto != UDP and (proto != GRE or w.at[AT_GRE] & GRE_VERSION)):
        return CT_PROTO
    e = find_tuple(t.by_tuple, t.entry, t.seed, key[0], key[1], key[2], key[3], key[W_PORTS] | zone << 32)
    if e < 0:
        return CT_MISS
    meta = t.entry[e, E_META]
    if not nat and not meta & IN_CT:
        return CT_TABLE
    if w.option[O_TRIMS]:
        r[R_LEN] = min(r[R_LEN], w.at[AT_END] - r[R_OFF])
        r[R_CAPLEN] = min(r[R_CAPLEN], r[R_LEN])
    serve(w, t, e, zone, nat, r[R_LEN], now)
    if nat and meta & REWRITES:
        changeable(w, memory)
        translate(w.own, w.at, t.entry[e], key)
    if proto == TCP and flags & SYN:
        w.nic[N_SYNS] += 1
        r[R_FLAGS] |= FLAG_SYN
    return 0


@inlined
def serve(w, t, e, zone, nat, length, now):
    """A hit: counted, and the registers set."""
    meta, labels = t.entry[e, E_META], t.entry[e, E_LABELS]
    if now >= w.nic[N_NEXT]:
        next_period(w.nic, now)
    count(t.counter, labels & 0xFFFFFFFF, length, now, w.nic[N_PERIOD])
    state = STATE_TRK | (STATE_NEW if meta >> 32 & 0xFF == 1 else STATE_EST) | (STATE_RPL if meta >> 40 & 1 else 0) | (STATE_NAT if nat else 0)
    w.key[W_PORTS] |= zone << 32
    w.key[W_SRC_MAC] |= np.int64(state) << 48
    w.key[W_CT] = meta & 0xFFFFFFFF | (labels >> 32) << 32
    w.r[R_RESTORE], w.r[R_CONN] = zone, t.entry[e, E_CONN]
    w.r[R_FLAGS] |= SERVED


@kernel
def next_period(nic, now):
    """The driver's cache of counters is refreshed, unless it is stuck."""
    if nic[N_LENGTH] == 0:
        nic[N_NEXT] = np.int64(1) << 62
        nic[N_PERIOD] = -1
    elif nic[N_STUCK_FROM] <= now < nic[N_STUCK_TO]:
        nic[N_NEXT] = nic[N_STUCK_TO]
    else:
        nic[N_PERIOD] = now // nic[N_LENGTH]
        nic[N_NEXT] = (nic[N_PERIOD] + 1) * nic[N_LENGTH]


# --- actions ----------------------------------------------------------------------------------------------------------------------------


@kernel
def conforms(b, length, now):
    """A policer, as act_police: the twin of what software does."""
    if not b.begun:
        b.begun, b.last, b.bytes, b.packets = 1, now, b.bytes_full, b.packets_full
    if length > b.mtu:
        return False
    passed = max(now - b.last, 0)
    cost = length * 8 * SECOND // b.rate if b.rate else 0
    of_bytes, of_packets = min(b.bytes + passed, b.bytes_full), min(b.packets + passed, b.packets_full)
    if of_bytes < cost or of_packets < b.packet_cost:
        return False
    b.last = max(now, b.last)
    b.bytes, b.packets = of_bytes - cost, of_packets - b.packet_cost
    return True


@kernel
def retag(w, memory, op):
    """VLAN tags. A frame without one is not popped, nor its tag modified; software has it so."""
    r = w.r
    if op.kind != OP_PUSH:
        data_own = r[R_OWN]
        there = tagged(w.own, r[R_OFF], r[R_CAPLEN]) if data_own else tagged(memory, r[R_OFF], r[R_CAPLEN])
        if not there:
            return
    changeable(w, memory)
    r[R_PARSE] = 1
    if op.kind == OP_MODIFY:
        modify_tag(w.own, r[R_OFF], op.a, op.b, op.c)
        return
    if op.kind == OP_PUSH:
        r[R_OFF] = push_tag(w.own, r[R_OFF], op.a, op.c)
        r[R_PUSHED] += 1
    else:
        r[R_OFF] = pop_tag(w.own, r[R_OFF])
    moved = TAG if op.kind == OP_PUSH else -TAG
    r[R_CAPLEN] += moved
    r[R_LEN] += moved


@kernel
def change(w, p, memory, op):
    """An action on the frame's bytes or on the marks that it leaves with."""
    r = w.r
    if op.kind == OP_EDIT:
        changeable(w, memory)
        for i in range(op.a, op.a + op.b):
            edit(w.own, r[R_OFF], w.at, p.munge[i])
        r[R_PARSE] = 1
    elif op.kind == OP_SUM:
        changeable(w, memory)
        sum_anew(w.own, w.at, w.key, op.a)
    elif op.kind == OP_MARK:
        r[R_MARK] = r[R_MARK] & op.b | op.a
        if op.c >= 0:
            r[R_PRIORITY] = op.c
    elif op.kind == OP_PUSH or op.kind == OP_POP or op.kind == OP_MODIFY:
        retag(w, memory, op)


@inlined
def unable(w, memory, seat):
    """Whether a rule cannot be done to a frame: known before it begins. A Why, 0: it can."""
    r = w.r
    if seat.soft:
        return IN_SOFTWARE
    if r[R_OUTPUTS] + seat.sends + 1 > MOST_OUTPUTS:
        return COPIES
    if r[R_PUSHED] + seat.pushes > MOST_TAGS_PUSHED:
        return TAG_ROOM
    if seat.edits and r[R_CAPLEN] < 16:
        return FIELD
    if seat.sums:
        proto = w.key[W_PORTS] >> 48 & 0xFF
        fine = summable(w.own, w.at, proto, r[R_CAPLEN], r[R_LEN]) if r[R_OWN] else summable(memory, w.at, proto, r[R_CAPLEN], r[R_LEN])
        if not fine:
            return SUM
    return 0


@inlined
def miss(w, row, why, chain, rule, action):
    row.verdict, row.why, row.chain, row.rule, row.action = MISSED, why, chain, rule, action


@inlined
def turn(w, p, t, memory, number, row, chain, now):
    """A chain: the first rule that matches, and its actions. The next chain, NO_CHAIN: the row says what has become of the frame."""
    r = w.r
    at = classify(p, chain, w.key)
    if at == NO_SEAT:
        miss(w, row, NONE_MATCHES, p.chain_name[chain], NO_RULE, 0)
        return NO_CHAIN
    seat = p.seat[at]
    why = unable(w, memory, seat)
    if why:
        miss(w, row, why, p.chain_name[chain], seat.rule, 0)
        return NO_CHAIN
    length, then, onward = r[R_LEN], THEN_PIPE, NO_CHAIN
    counts = p.count[seat.rule]
    for i in range(seat.n):
        op = p.op[seat.first + i]
        if op.kind == OP_CT:
            if r[R_PARSE]:
                parse_anew(w)
            why = ct(w, t, memory, op.a, op.b, now)
            if why:
                exact = w.option[O_EXACT]
                miss(w, row, why, p.chain_name[chain], seat.rule if exact else NO_RULE, i if exact else 0)
                return NO_CHAIN
        elif op.kind == OP_CLEAR:
            ct_clear(w)
        elif op.kind == OP_COPY:
            put_out(w, number, op.a, 1, True)
        elif op.kind == OP_SEND:
            put_out(w, number, op.a, 1, False)
            row.verdict, row.iface = FORWARDED, op.a
            break
        elif op.kind == OP_POLICE:
            if not conforms(p.bucket[op.a], r[R_LEN], now):
                counts.overlimits += 1
                row.verdict, row.why = DROPPED, POLICED
                break
        else:
            change(w, p, memory, op)
        then, onward = op.then, op.chain
        if then != THEN_PIPE:
            break
    counts.packets += 1
    counts.bytes += length
    counts.last = max(counts.last, now)
    return ended(w, p, number, row, seat.rule, then, onward)


@inlined
def ended(w, p, number, row, rule, then, onward):
    """After a rule: the next chain, or what has become of the frame. What pipes at the end passes, as in Linux."""
    if row.verdict == 0 and then == THEN_GOTO:
        return onward
    row.rule = rule
    if row.verdict == 0 and then == THEN_DROP:
        row.verdict, row.why = DROPPED, BY_RULE
    elif row.verdict == 0:
        row.verdict, row.iface = PASSED, w.r[R_IFACE]
        put_out(w, number, w.r[R_IFACE], 0, False)
    if row.verdict == DROPPED:
        p.count[rule].drops += 1
    return NO_CHAIN


@inlined
def all_turns(w, p, t, memory, number, row, chain, now):
    """From chain to chain. Safe: a chain without rules has a name below NO_CHAIN (program._goto)."""
    for _ in range(MOST_TURNS):
        w.r[R_TURNS] += 1
        if w.r[R_PARSE]:
            why = parse_anew(w)
            if why:
                miss(w, row, why, p.chain_name[chain], NO_RULE, 0)
                return
        chain = turn(w, p, t, memory, number, row, chain, now)
        if chain == NO_CHAIN:
            return
        if chain < NO_CHAIN:
            miss(w, row, NONE_MATCHES, -2 - chain, NO_RULE, 0)
            return
    miss(w, row, CHAINS, p.chain_name[chain], NO_RULE, 0)


# --- frames -----------------------------------------------------------------------------------------------------------------------------


@inlined
def begin(w, frame, iface):
    r = w.r
    for i in range(N_REGISTERS):
        r[i] = 0
    r[R_OFF], r[R_CAPLEN], r[R_LEN], r[R_IFACE] = frame.offset, frame.caplen, frame.len, iface
    r[R_CONN] = NO_CONN


@inlined
def finish(w, row):
    """The registers as the frame ends with them."""
    r, key = w.r, w.key
    row.offset, row.caplen, row.length, row.conn = r[R_OFF], r[R_CAPLEN], r[R_LEN], r[R_CONN]
    row.zone, row.zone_restore, row.ct_state = key[W_PORTS] >> 32 & 0xFFFF, r[R_RESTORE], key[W_SRC_MAC] >> 48 & 0xFF
    row.mark, row.labels = key[W_CT] & 0xFFFFFFFF, key[W_CT] >> 32 & 0xFFFFFFFF
    row.skb_mark, row.priority, row.n_outputs, row.chains = r[R_MARK], r[R_PRIORITY], r[R_OUTPUTS], r[R_TURNS]
    row.flags = r[R_FLAGS] | (CHANGED if r[R_OWN] else 0)


@kernel
def look_ahead(b, p, t, memory, frames, ifaces, first, n):
    """Parses a block of frames, and asks for what their first `ct` is going to need: slots, then entries, then counters.   Writes: b."""
    last = len(t.by_tuple) - 1
    for j in range(n):
        frame, iface = frames[first + j], ifaces[first + j]
        key = b.key[j]
        if frame.link == ETHERNET:
            b.why[j] = parse(memory, np.int64(frame.offset), np.int64(frame.caplen), np.int64(frame.len), key, b.at[j])
        else:
            b.why[j] = LINK
            for k in range(WORDS):
                key[k] = 0
        zone = p.zone[iface] if iface < len(p.zone) else 0
        b.slot[j] = tuple_tag(t.seed, key[0], key[1], key[2], key[3], key[W_PORTS] | zone << 32) & last
        key[W_DST_MAC] |= iface << 48
        prefetch(t.by_tuple, b.slot[j])
    for j in range(n):
        e = (t.by_tuple[b.slot[j]] & 0xFFFFFFFF) - 1
        b.slot[j] = e
        if e >= 0:
            prefetch(t.entry, e * ENTRY_WORDS)
    for j in range(n):
        e = b.slot[j]
        if e >= 0:
            prefetch(t.counter, (t.entry[e, E_LABELS] & 0xFFFFFFFF) * COUNTER_WORDS)
            if t.entry[e, E_META] & REWRITES:
                prefetch(t.entry, e * ENTRY_WORDS + ENTRY_WORDS // 2)


@kernel
def run(w, b, p, t, memory, frames, ifaces, rows):
    """Frames, one after the other, parsed BLOCK at a time.   Reads: memory, frames, ifaces, p.   Writes: rows; w, b; all counters, buckets."""
    for i in range(len(frames)):
        j = i % BLOCK
        if j == 0:
            look_ahead(b, p, t, memory, frames, ifaces, i, min(BLOCK, len(frames) - i))
        frame, row, iface = frames[i], rows[i], ifaces[i]
        begin(w, frame, iface)
        for k in range(WORDS):
            w.key[k] = b.key[j, k]
        for k in range(N_AT):
            w.at[k] = b.at[j, k]
        row.first_output, row.iface = w.nic[N_OUT], iface
        chain = p.first[iface] if iface < len(p.first) else NO_CHAIN
        if b.why[j] or chain < 0:
            miss(w, row, b.why[j] if b.why[j] else NONE_MATCHES, 0, NO_RULE, 0)
        else:
            row.group = p.chain_group[chain]
            all_turns(w, p, t, memory, i, row, chain, frame.ts)
        finish(w, row)

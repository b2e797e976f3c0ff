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

import numpy as np

from offload.simnic.actions import change, conforms, parse_anew, put_out, unable
from offload.simnic.connections import ct, ct_clear
from offload.simnic.kernel import inlined, kernel, prefetch
from offload.simnic.layout import W_CT, W_DST_MAC, W_PORTS, W_SRC_MAC, WORDS
from offload.simnic.parse import N_AT, parse
from offload.simnic.program import NO_CHAIN, NO_SEAT, OP_CLEAR, OP_COPY, OP_CT, OP_POLICE, OP_SEND, THEN_DROP, THEN_GOTO, THEN_PIPE, classify
from offload.simnic.registers import (
    BLOCK,
    N_OUT,
    N_REGISTERS,
    O_EXACT,
    R_CAPLEN,
    R_CONN,
    R_FLAGS,
    R_IFACE,
    R_LEN,
    R_MARK,
    R_OFF,
    R_OUTPUTS,
    R_OWN,
    R_PARSE,
    R_PRIORITY,
    R_RESTORE,
    R_TURNS,
)
from offload.simnic.results import NO_CONN, NO_RULE, Flag, Verdict, Why
from offload.simnic.tables import COUNTER_WORDS, E_LABELS, E_META, ENTRY_WORDS, REWRITES, tuple_tag

MOST_TURNS = 17
ETHERNET = 1

FORWARDED, PASSED, DROPPED, MISSED = (int(each) for each in Verdict)
BY_RULE, POLICED, LINK = int(Why.RULE), int(Why.POLICED), int(Why.LINK)
NONE_MATCHES, IN_SOFTWARE, CHAINS, COPIES = int(Why.NO_RULE), int(Why.IN_SOFTWARE), int(Why.CHAINS), int(Why.COPIES)
CHANGED, SERVED, FLAG_SYN = int(Flag.CHANGED), int(Flag.CT), int(Flag.SYN)


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
    counts = p.counted[seat.rule]
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
        p.counted[rule].drops += 1
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
def run(w, b, p, t, arrived, rows, part):
    """Frames, one after the other, parsed BLOCK at a time.   Reads: arrived, part, p.   Writes: rows; w, b; all counters, buckets.

    Returns the row behind the last frame that was let in: see Part.
    """
    memory, frames, ifaces = arrived
    end, until = part.end, part.until
    for i in range(part.start, part.end):
        frame, row, iface = frames[i], rows[i], ifaces[i]
        if i > part.start and (i >= end or frame.ts >= until or frame.ts < part.since):
            return i
        j = (i - part.start) % BLOCK
        if j == 0:
            look_ahead(b, p, t, memory, frames, ifaces, i, min(BLOCK, end - i))
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
        if row.verdict == MISSED:
            end, until = min(end, i + part.company), min(until, frame.ts + part.linger)
    return end

"""All actions but `ct`, and where the bytes of a frame are that they change.

A frame stays in the caller's memory until something changes it, and is copied into the NIC's from then on; a copy that has left by a mirror is not
touched. Not here: bytes (change), which actions (walk).
"""

from __future__ import annotations

from offload.simnic.change import MOST_TAGS_PUSHED, ROOM, TAG, edit, modify_tag, pop_tag, push_tag, sum_anew, summable, tagged
from offload.simnic.kernel import inlined, kernel
from offload.simnic.layout import W_CT, W_DST_MAC, W_PORTS, W_SRC_MAC
from offload.simnic.parse import N_AT, parse
from offload.simnic.program import OP_EDIT, OP_MARK, OP_MODIFY, OP_POP, OP_PUSH, OP_SUM, SECOND
from offload.simnic.registers import (
    MOST_OUTPUTS,
    N_OUT,
    N_USED,
    R_CAPLEN,
    R_IFACE,
    R_LEN,
    R_LENT,
    R_MARK,
    R_OFF,
    R_OUTPUTS,
    R_OWN,
    R_PARSE,
    R_PRIORITY,
    R_PUSHED,
)
from offload.simnic.results import OutputFlag, Why

NONE_MATCHES, IN_SOFTWARE, CHAINS, COPIES = int(Why.NO_RULE), int(Why.IN_SOFTWARE), int(Why.CHAINS), int(Why.COPIES)
TAG_ROOM, SUM, FIELD = int(Why.TAG_ROOM), int(Why.SUM), int(Why.FIELD)
OUT_CHANGED, OUT_COPY = int(OutputFlag.CHANGED), int(OutputFlag.COPY)

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

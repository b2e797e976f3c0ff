"""The `ct` action: the CT tables are asked, and the registers set (contract A9.64-66, A9.70).

Invariant: a packet that missed has no state, and none of its bytes is changed.
Not here: entries (tables), whose rules ask (walk).
"""

from __future__ import annotations

import numpy as np

from offload.simnic.actions import changeable
from offload.simnic.change import translate
from offload.simnic.kernel import inlined, kernel
from offload.simnic.layout import STATE_EST, STATE_NAT, STATE_NEW, STATE_RPL, STATE_TRK, W_CT, W_NETWORK, W_PORTS, W_SRC_MAC
from offload.simnic.parse import AT_END, AT_GRE, AT_L3, GRE, TCP, UDP
from offload.simnic.registers import (
    N_LENGTH,
    N_NEXT,
    N_PERIOD,
    N_STUCK_FROM,
    N_STUCK_TO,
    N_SYNS,
    O_TRIMS,
    R_CAPLEN,
    R_CONN,
    R_FLAGS,
    R_LEN,
    R_OFF,
    R_RESTORE,
)
from offload.simnic.results import NO_CONN, Flag, Why
from offload.simnic.tables import E_CONN, E_LABELS, E_META, IN_CT, REWRITES, count, find_tuple

GRE_VERSION = 0x0007
FIN, SYN, RST = 0x01, 0x02, 0x04

CT_PROTO, CT_CLOSING, CT_MISS, CT_TABLE = int(Why.CT_PROTO), int(Why.CT_CLOSING), int(Why.CT_MISS), int(Why.CT_TABLE)
CHANGED, SERVED, FLAG_SYN = int(Flag.CHANGED), int(Flag.CT), int(Flag.SYN)

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
        if nic[N_NEXT] < nic[N_STUCK_FROM]:  # nobody looked between that refresh and this time
            nic[N_PERIOD] = (nic[N_STUCK_FROM] - 1) // nic[N_LENGTH]
        nic[N_NEXT] = nic[N_STUCK_TO]
    else:
        nic[N_PERIOD] = now // nic[N_LENGTH]
        nic[N_NEXT] = (nic[N_PERIOD] + 1) * nic[N_LENGTH]

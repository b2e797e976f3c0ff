"""What a mirror's commands do to the tables, and how they are answered (contract A4, A6.50, A8).

REPLACE: 0; EEXIST, the same rule is there; EOPNOTSUPP, no NIC can; ENOSPC, full; ENOMEM, another rule has its tuple. DESTROY, STATS: 0, ENOENT.
Not here: when they are carried out (lines), and what is lost on the way (faults).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import numpy as np

from offload.records import COMMAND_DTYPE, Ctinfo, Op
from offload.simnic.kernel import kernel
from offload.simnic.parse import GRE, TCP, UDP
from offload.simnic.tables import (
    C_BYTES,
    C_BYTES_THEN,
    C_LAST,
    C_LAST_THEN,
    C_PACKETS,
    C_PACKETS_THEN,
    C_PERIOD,
    C_USERS,
    E_CONN,
    E_COOKIE,
    E_LABEL,
    E_LABELS,
    E_META,
    E_TO,
    ENTRY_WORDS,
    IN_CT,
    IN_NAT,
    REWRITES,
    S_ENTRIES,
    S_FREE_COUNTER,
    S_FREE_ENTRY,
    S_TABLED,
    cookie_tag,
    entry_tag,
    find_cookie,
    find_tuple,
    index_add,
    index_drop,
)

# A command as words; see records.pxd.
M_TO, M_COOKIE, M_CONN, M_LABEL, M_MARK = 5, 10, 11, 12, 14
COMMAND_WORDS = 15
assert COMMAND_DTYPE.itemsize == 8 * COMMAND_WORDS
_PLACES: Mapping[str, Any] = COMMAND_DTYPE.fields or {}
assert [_PLACES[name][1] for name in ("to", "cookie", "conn", "label", "mark", "op", "ctinfo", "dir")] == [
    40, 80, 88, 96, 112, 116, 117, 118,
]  # fmt: skip

REPLACE, DESTROY, STATS = int(Op.REPLACE), int(Op.DESTROY), int(Op.STATS)
NEW, REPLY = int(Ctinfo.NEW), int(Ctinfo.ESTABLISHED_REPLY)
ENOENT, EEXIST, ENOSPC, ENOMEM, EOPNOTSUPP = errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.ENOMEM, errno.EOPNOTSUPP
EINVAL = errno.EINVAL

# What a NIC allows, as words: most in CT and CT_NAT together, -1: no limit; whether entries are in both; +new; a counter for each direction; any
# rules; the period now, -1: counters are read when they are asked for.
L_CAPACITY, L_BOTH, L_NEW, L_ACCOUNTING, L_OFFLOAD, L_PERIOD = range(6)


@kernel
def apply(t, limit, command, label_id, refused, reply):
    """Commands, one after the other. command: int64[n, 15]; label_id: of each one's label; refused: an errno each gets instead, 0: none.
    Writes: t; reply, the rows of REPLY_DTYPE."""
    for i in range(len(command)):
        words = command[i]
        op = words[M_MARK] >> 32 & 0xFF
        r = reply[i]
        r.cookie, r.op = words[M_COOKIE], op
        if refused[i]:
            r.error = refused[i]
        elif op == REPLACE:
            r.error = replace(t, limit, words, label_id[i])
        elif op == DESTROY:
            r.error = destroy(t, words[M_COOKIE], r)
        elif op == STATS:
            r.error = stats(t, limit, words[M_COOKIE], r)
        else:
            r.error = EINVAL


@kernel
def unsupported(limit, words):
    """What no driver takes: protocols, metadata, mangles that it does not know (contract A4.32, A8.60)."""
    proto = words[4] >> 48 & 0xFF
    ctinfo = words[M_MARK] >> 40 & 0xFF
    if not limit[L_OFFLOAD] or not NEW <= ctinfo <= REPLY or (ctinfo == NEW and not limit[L_NEW]):
        return True
    if proto != TCP and proto != UDP and (proto != GRE or rewrites(words)):
        return True
    return (words[4] ^ words[M_TO + 4]) >> 32 != 0


@kernel
def rewrites(words):
    for i in range(M_TO):
        if words[i] != words[M_TO + i]:
            return True
    return False


@kernel
def replace(t, limit, words, label_id):
    if unsupported(limit, words):
        return EOPNOTSUPP
    e = find_cookie(t, words[M_COOKIE])
    if e >= 0:
        return update(t, e, words, label_id)
    if find_tuple(t.by_tuple, t.entry, t.seed, words[0], words[1], words[2], words[3], words[4]) >= 0:
        return ENOMEM
    bits = REWRITES if rewrites(words) else 0
    needs = 2 if limit[L_BOTH] else 1
    bits |= IN_CT | IN_NAT if limit[L_BOTH] else IN_NAT if bits else IN_CT
    if (limit[L_CAPACITY] >= 0 and t.state[S_TABLED] + needs > limit[L_CAPACITY]) or t.state[S_FREE_ENTRY] < 0:
        return ENOSPC
    insert(t, limit, words, bits, label_id)
    t.state[S_TABLED] += needs
    return 0


@kernel
def insert(t, limit, words, bits, label_id):
    e = t.state[S_FREE_ENTRY]
    t.state[S_FREE_ENTRY] = t.next_entry[e]
    t.state[S_ENTRIES] += 1
    c = np.int64(-1)
    if not limit[L_ACCOUNTING]:
        other = find_cookie(t, words[M_COOKIE] ^ 1)
        if other >= 0:
            c = t.entry[other, E_LABELS] & 0xFFFFFFFF
    if c < 0:
        c = t.state[S_FREE_COUNTER]
        t.state[S_FREE_COUNTER] = t.next_counter[c]
        t.counter[c, :] = 0
        t.told[c, :] = 0
    t.counter[c, C_USERS] += 1
    for i in range(M_TO):
        t.entry[e, i] = words[i]
    t.entry[e, E_COOKIE] = words[M_COOKIE]
    tell(t, e, words, bits, label_id << 32 | c)
    index_add(t.by_tuple, entry_tag(t, e), e)
    index_add(t.by_cookie, cookie_tag(t.seed, words[M_COOKIE]), e)


@kernel
def tell(t, e, words, bits, labels):
    """What an entry does: its metadata and its rewrite."""
    t.entry[e, E_META] = words[M_MARK] & 0xFFFFFFFF | (words[M_MARK] >> 40 & 0xFF) << 32 | (words[M_MARK] >> 48 & 1) << 40 | bits
    t.entry[e, E_CONN] = words[M_CONN]
    t.entry[e, E_LABELS] = labels
    for i in range(M_TO):
        t.entry[e, E_TO + i] = words[M_TO + i]
    t.entry[e, E_LABEL] = words[M_LABEL]
    t.entry[e, E_LABEL + 1] = words[M_LABEL + 1]


@kernel
def update(t, e, words, label_id):
    """A cookie that is there (contract A4.36). Its key and its table stay: a translation does not change while a connection lives."""
    ctinfo = words[M_MARK] >> 40 & 0xFF
    if t.entry[e, E_CONN] == words[M_CONN] and t.entry[e, E_META] >> 32 & 0xFF == ctinfo:
        return EEXIST
    bits = t.entry[e, E_META] & (IN_CT | IN_NAT | REWRITES)
    for i in range(M_TO):
        if t.entry[e, i] != words[i]:
            return EINVAL
    if rewrites(words) != (bits & REWRITES != 0):
        return EINVAL
    tell(t, e, words, bits, label_id << 32 | t.entry[e, E_LABELS] & 0xFFFFFFFF)
    return 0


@kernel
def destroy(t, cookie, r):
    """r: gets what the counter has and has not told, which goes with its last rule."""
    e = find_cookie(t, cookie)
    if e < 0:
        return ENOENT
    index_drop(t.by_tuple, entry_tag(t, e), e)
    index_drop(t.by_cookie, cookie_tag(t.seed, cookie), e)
    c = t.entry[e, E_LABELS] & 0xFFFFFFFF
    t.counter[c, C_USERS] -= 1
    if t.counter[c, C_USERS] == 0:
        r.packets, r.bytes = t.counter[c, C_PACKETS] - t.told[c, 0], t.counter[c, C_BYTES] - t.told[c, 1]
        t.next_counter[c] = t.state[S_FREE_COUNTER]
        t.state[S_FREE_COUNTER] = c
    meta = t.entry[e, E_META]
    t.state[S_TABLED] -= (meta & IN_CT != 0) + (meta & IN_NAT != 0)
    for i in range(ENTRY_WORDS):
        t.entry[e, i] = 0
    t.next_entry[e] = t.state[S_FREE_ENTRY]
    t.state[S_FREE_ENTRY] = e
    t.state[S_ENTRIES] -= 1
    return 0


@kernel
def stats(t, limit, cookie, r):
    """What the driver's cache has, less what has been told (contract A6.50)."""
    e = find_cookie(t, cookie)
    if e < 0:
        return ENOENT
    c = t.entry[e, E_LABELS] & 0xFFFFFFFF
    packets, size, last = t.counter[c, C_PACKETS], t.counter[c, C_BYTES], t.counter[c, C_LAST]
    if limit[L_PERIOD] >= 0 and t.counter[c, C_PERIOD] == limit[L_PERIOD]:
        packets, size, last = t.counter[c, C_PACKETS_THEN], t.counter[c, C_BYTES_THEN], t.counter[c, C_LAST_THEN]
    r.packets, r.bytes, r.used = packets - t.told[c, 0], size - t.told[c, 1], last
    r.shared = not limit[L_ACCOUNTING]
    t.told[c, 0], t.told[c, 1] = packets, size
    return 0

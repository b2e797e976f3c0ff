"""Connections in hardware: the CT and CT_NAT tables, their counters, and both indexes, by tuple and by cookie.

Theory of operation: one direction of a connection is an entry of sixteen words, found by zone and tuple as frames have them. An index is a hash table
with open addressing: a slot holds the hash and the entry's number. CT and CT_NAT have the same keys, so they are one index, and an entry says in
which of them it is. A counter is a cache line of its own, for one may serve both directions. The driver's cache of counters, which is refreshed every
period, is not copied: a counter's first packet of a period keeps what it had before.
Invariants (check): each entry in use is found by its tuple and by its cookie; a slot lies at or behind its home with none free between; counters have
as many users as entries say; an index is at most half full.
Not here: what commands ask (commands), when (lines).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload.simnic.kernel import inlined, kernel
from offload.simnic.layout import TUPLE_WORDS
from offload.simnic.program import mix

# Words of an entry. E_META: mark, ctinfo << 32, dir << 40, E_BITS << 48; E_LABELS: counter, labels id << 32; E_TO: what leaves, as a key.
E_META, E_CONN, E_LABELS, E_TO, E_COOKIE, E_LABEL = 5, 6, 7, 8, 13, 14
ENTRY_WORDS, COUNTER_WORDS = 16, 8
IN_CT, IN_NAT, REWRITES = 1 << 48, 1 << 49, 1 << 50
# Words of a counter: as it is; as it was when the period began; that period; how many entries use it.
C_PACKETS, C_BYTES, C_LAST, C_PACKETS_THEN, C_BYTES_THEN, C_LAST_THEN, C_PERIOD, C_USERS = range(8)
# Of whole tables: entries in use; of these in CT and in CT_NAT together; the first free entry and counter.
S_ENTRIES, S_TABLED, S_FREE_ENTRY, S_FREE_COUNTER = range(4)
LEAST, LINE_WORDS = 1024, 8
TAG_BITS = 0x7FFFFFFF


class Tables(NamedTuple):
    """by_tuple, by_cookie: slots, hash << 32 | entry + 1, 0: free. told: packets and bytes of each counter that have been told."""

    by_tuple: NDArray[Any]
    by_cookie: NDArray[Any]
    entry: NDArray[Any]
    counter: NDArray[Any]
    told: NDArray[Any]
    next_entry: NDArray[Any]
    next_counter: NDArray[Any]
    seed: NDArray[Any]
    state: NDArray[Any]


def zeros(*shape: int) -> NDArray[Any]:
    """Words, the first at the beginning of a cache line: what lies there fits one.

    Written to, unlike np.zeros: NumPy asks for huge pages then, without which each look-up would wait for page tables, too.
    """
    n = math.prod(shape)
    words = np.empty(n + LINE_WORDS, dtype=np.int64)
    words[:] = 0
    first = -(words.ctypes.data // 8) % LINE_WORDS
    return words[first : first + n].reshape(shape)


def made(entries: int, seed: int) -> Tables:
    """Empty tables with room for that many entries, a power of two."""
    draw = np.random.default_rng(seed)
    links = np.arange(1, entries + 1, dtype=np.int64)
    links[-1] = -1
    return Tables(
        zeros(2 * entries),
        zeros(2 * entries),
        zeros(entries, ENTRY_WORDS),
        zeros(entries, COUNTER_WORDS),
        zeros(entries, 2),
        links,
        links.copy(),
        draw.integers(-(1 << 63), 1 << 63, size=TUPLE_WORDS, dtype=np.int64) | 1,
        zeros(4),
    )


def grown(old: Tables, entries: int) -> Tables:
    """The same with more room: entries and counters keep their numbers."""
    new, had = made(entries, 0), len(old.entry)
    for name in ("entry", "counter", "told"):
        getattr(new, name)[:had] = getattr(old, name)
    for i, name in enumerate(("next_entry", "next_counter")):
        links = getattr(new, name)
        links[:had] = getattr(old, name)
        links[-1] = old.state[S_FREE_ENTRY + i]  # what was free comes behind what is new
    new.state[:] = old.state
    new.state[S_FREE_ENTRY] = new.state[S_FREE_COUNTER] = had
    new.seed[:] = old.seed
    index_anew(new)
    return new


# --- indexes ----------------------------------------------------------------------------------------------------------------------------


@inlined
def tuple_tag(seed, w0, w1, w2, w3, w4):
    """31 bits. Safe: overflow wraps around."""
    h = w0 * seed[0] + w1 * seed[1] + w2 * seed[2] + w3 * seed[3] + w4 * seed[4]
    h ^= w4 >> 16 & 0xFFFFFFFFFFFF
    return mix(h) >> 13 & TAG_BITS


@inlined
def cookie_tag(seed, cookie):
    return mix(cookie + seed[0]) >> 13 & TAG_BITS


@kernel
def entry_tag(t, e):
    return tuple_tag(t.seed, t.entry[e, 0], t.entry[e, 1], t.entry[e, 2], t.entry[e, 3], t.entry[e, 4])


@inlined
def find_tuple(by_tuple, entry, seed, w0, w1, w2, w3, w4):
    """An entry, -1: none."""
    tag = tuple_tag(seed, w0, w1, w2, w3, w4)
    last = len(by_tuple) - 1
    at = tag & last
    while by_tuple[at]:
        slot = by_tuple[at]
        if slot >> 32 == tag:
            e = (slot & 0xFFFFFFFF) - 1
            if entry[e, 0] == w0 and entry[e, 2] == w2 and entry[e, 4] == w4 and entry[e, 1] == w1 and entry[e, 3] == w3:
                return e
        at = (at + 1) & last
    return np.int64(-1)


@kernel
def find_cookie(t, cookie):
    tag = cookie_tag(t.seed, cookie)
    last = len(t.by_cookie) - 1
    at = tag & last
    while t.by_cookie[at]:
        slot = t.by_cookie[at]
        if slot >> 32 == tag and t.entry[(slot & 0xFFFFFFFF) - 1, E_COOKIE] == cookie:
            return (slot & 0xFFFFFFFF) - 1
        at = (at + 1) & last
    return np.int64(-1)


@kernel
def index_add(index, tag, e):
    last = len(index) - 1
    at = tag & last
    while index[at]:
        at = (at + 1) & last
    index[at] = tag << 32 | (e + 1)


@kernel
def index_drop(index, tag, e):
    """Knuth 6.4, algorithm R: what lies behind a slot that becomes free moves up, unless that is before its home."""
    last = len(index) - 1
    at = tag & last
    while index[at] & 0xFFFFFFFF != e + 1:
        at = (at + 1) & last
    free = at
    while True:
        at = (at + 1) & last
        if not index[at]:
            break
        home = index[at] >> 32 & last
        if (at - home) & last >= (at - free) & last:
            index[free] = index[at]
            free = at
    index[free] = 0


@kernel
def index_anew(t):
    """Both indexes of tables whose entries are there; an entry in use is in CT or CT_NAT."""
    for e in range(len(t.entry)):
        if t.entry[e, E_META] & (IN_CT | IN_NAT):
            index_add(t.by_tuple, entry_tag(t, e), e)
            index_add(t.by_cookie, cookie_tag(t.seed, t.entry[e, E_COOKIE]), e)


# --- counters ---------------------------------------------------------------------------------------------------------------------------


@inlined
def count(counter, c, length, now, period):
    """A packet. period: the number of the period that `now` lies in."""
    if counter[c, C_PERIOD] != period:
        counter[c, C_PACKETS_THEN] = counter[c, C_PACKETS]
        counter[c, C_BYTES_THEN] = counter[c, C_BYTES]
        counter[c, C_LAST_THEN] = counter[c, C_LAST]
        counter[c, C_PERIOD] = period
    counter[c, C_PACKETS] += 1
    counter[c, C_BYTES] += length
    counter[c, C_LAST] = max(counter[c, C_LAST], now)


def check(t: Tables) -> None:
    """Raises AssertionError where an invariant does not hold."""
    used = np.flatnonzero(t.entry[:, E_META] & (IN_CT | IN_NAT))
    tabled = np.count_nonzero(t.entry[used, E_META] & IN_CT) + np.count_nonzero(t.entry[used, E_META] & IN_NAT)
    assert len(used) == t.state[S_ENTRIES] and tabled == t.state[S_TABLED]
    assert np.count_nonzero(t.by_tuple) == np.count_nonzero(t.by_cookie) == len(used) <= len(t.by_tuple) // 2
    for e in used.tolist():
        words = t.entry[e, :TUPLE_WORDS]
        assert find_tuple(t.by_tuple, t.entry, t.seed, words[0], words[1], words[2], words[3], words[4]) == e
        assert find_cookie(t, t.entry[e, E_COOKIE]) == e
    users = np.bincount(t.entry[used, E_LABELS] & 0xFFFFFFFF, minlength=len(t.counter))
    assert (users == t.counter[:, C_USERS]).all()
    for links, first, taken in ((t.next_entry, S_FREE_ENTRY, len(used)), (t.next_counter, S_FREE_COUNTER, np.count_nonzero(users))):
        seen, at = set(), int(t.state[first])
        while at >= 0:
            assert at not in seen
            seen.add(at)
            at = int(links[at])
        assert len(seen) + taken == len(links)

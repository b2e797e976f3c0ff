"""What a NIC does to a frame's bytes: translation, pedit, checksums, VLAN tags.

Checksums are adjusted by what was changed (RFC 1624, equation 3) where a connection is translated, so that a wrong one stays as wrong; an adjusted
sum is never 0xFFFF but in UDP, where 0 means none (RFC 768) and stays so. The csum action makes them anew.
Invariant: a frame of `caplen` bytes at `off` has `room` bytes of the same memory before it that nobody uses, for tags.
Not here: which frames (walk).
"""

from __future__ import annotations

import numpy as np

from offload.simnic.kernel import inlined, kernel
from offload.simnic.parse import AT_END, AT_L3, AT_L4, ETH_QINQ, ETH_VLAN, TCP, UDP, be16

ROOM = 64  # bytes before each frame that was changed
TAG = 4
MOST_TAGS_PUSHED = ROOM // TAG


@inlined
def put16(m, i, value):
    m[i] = value >> 8 & 0xFF
    m[i + 1] = value & 0xFF


@inlined
def adjust(m, i, moved):
    """moved: the sum of ~m + m' over all changed words of 16 bits. A multiple of 0xFFFF keeps the sum from being 0, as in Linux."""
    total = (be16(m, i) ^ 0xFFFF) + moved + 0xFFFF
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    put16(m, i, total ^ 0xFFFF)


@inlined
def put_word(m, i, value):
    """Two bytes of a word in the machine's order, the lowest first; what that adds to a sum over them."""
    old = be16(m, i)
    m[i] = value & 0xFF
    m[i + 1] = value >> 8 & 0xFF
    return (old ^ 0xFFFF) + be16(m, i)


@kernel
def translate(m, at, entry, key):
    """A connection's translation (contract A4.30-32): addresses and ports of words 8 to 12 of its entry, and all sums over them.

    Writes: the frame; the first five words of key, but for its zone.
    """
    l3, l4 = at[AT_L3], at[AT_L4]
    family = key[4] >> 56 & 0xFF
    proto = key[4] >> 48 & 0xFF
    where, words = (l3 + 12, 2) if family == 4 else (l3 + 8, 8)
    moved = np.int64(0)
    for side in range(2):
        for i in range(words):
            new = entry[8 + 2 * side + (i >> 2)] >> 16 * (i & 3) & 0xFFFF
            moved += put_word(m, where + 2 * (side * words + i), new)
    if family == 4:
        adjust(m, l3 + 10, moved)
    ports = entry[12]
    for side in range(2):
        old = be16(m, l4 + 2 * side)
        new = ports >> 16 * side & 0xFFFF
        moved += (old ^ 0xFFFF) + new
        put16(m, l4 + 2 * side, new)
    if proto == TCP:
        adjust(m, l4 + 16, moved)
    elif be16(m, l4 + 6):
        adjust(m, l4 + 6, moved)
        if be16(m, l4 + 6) == 0:
            put16(m, l4 + 6, 0xFFFF)
    for i in range(4):
        key[i] = entry[8 + i]
    key[4] = key[4] & ~np.int64(0xFFFFFFFF) | ports & 0xFFFFFFFF


# --- the csum action --------------------------------------------------------------------------------------------------------------------


@kernel
def summed(m, first, end, total):
    """The sum of words of 16 bits from first to end, an odd byte being the upper half of one (RFC 1071)."""
    i = first
    while i + 1 < end:
        total += be16(m, i)
        i += 2
    if i < end:
        total += np.int64(m[i]) << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@kernel
def summable(m, at, proto, caplen, length):
    """Whether the csum action can make the sums of a packet: it is there as a whole, and UDP's length is that of IP."""
    if at[AT_L3] < 0:
        return True
    if caplen < length:
        return False
    if proto == UDP:
        return be16(m, at[AT_L4] + 4) == at[AT_END] - at[AT_L4]
    return True


@kernel
def sum_anew(m, at, key, of):
    """of: bits of program.SUM_BITS."""
    l3, l4, end = at[AT_L3], at[AT_L4], at[AT_END]
    if l3 < 0:
        return
    family, proto = key[4] >> 56 & 0xFF, key[4] >> 48 & 0xFF
    if (proto == TCP and of & 2) or (proto == UDP and of & 4):
        field = l4 + (16 if proto == TCP else 6)
        if not (proto == UDP and family == 4 and be16(m, field) == 0):
            put16(m, field, 0)
            addresses = l3 + (12 if family == 4 else 8)
            total = summed(m, addresses, addresses + (8 if family == 4 else 32), proto + end - l4)
            value = summed(m, l4, end, total) ^ 0xFFFF
            put16(m, field, 0xFFFF if proto == UDP and value == 0 else value)
    if family == 4 and of & 1:
        put16(m, l3 + 10, 0)
        put16(m, l3 + 10, summed(m, l3, l3 + 20, 0) ^ 0xFFFF)


# --- pedit ------------------------------------------------------------------------------------------------------------------------------


@kernel
def edit(m, off, at, munge):
    """One munge of a header that is there."""
    start = off + munge.offset
    if munge.base == 1:
        start = at[AT_L3] + munge.offset
    elif munge.base == 2:
        start = at[AT_L4] + munge.offset
    if munge.add:
        old, mask = np.int64(m[start]), np.int64(munge.mask[0])
        m[start] = old & ~mask & 0xFF | (old + np.int64(munge.value[0])) & mask
        return
    for i in range(munge.size):
        m[start + i] = np.int64(m[start + i]) & ~np.int64(munge.mask[i]) & 0xFF | np.int64(munge.value[i]) & np.int64(munge.mask[i])


# --- VLAN tags --------------------------------------------------------------------------------------------------------------------------


@kernel
def tagged(m, off, caplen):
    kind = be16(m, off + 12)
    return caplen >= 18 and (kind == ETH_VLAN or kind == ETH_QINQ)


@kernel
def push_tag(m, off, tci, protocol):
    """Where the frame begins then."""
    for i in range(12):
        m[off - TAG + i] = m[off + i]
    put16(m, off + 8, protocol)
    put16(m, off + 10, tci)
    return off - TAG


@kernel
def pop_tag(m, off):
    for i in range(11, -1, -1):
        m[off + TAG + i] = m[off + i]
    return off + TAG


@kernel
def modify_tag(m, off, tci, keeps, protocol):
    put16(m, off + 12, protocol)
    put16(m, off + 14, be16(m, off + 14) & keeps | tci)

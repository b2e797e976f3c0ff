"""Outputs: what leaves, gathered while a batch of frames is walked through rules.

Memory grows by doubling and stays: after the first batches nothing is allocated any more. Who takes a batch's outputs resets them before the next.
Invariants: n <= rows, used <= size; what both take together never exceeds `most`, nor does a row point behind `used`.
Not here: what leaves and where (walk), who sends it.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

import numpy as np

from ctcore.lowlevel cimport unlikely

OUTPUT_DTYPE = np.dtype([
    ("offset", "u8"), ("frame", "u4"), ("caplen", "u4"), ("length", "u4"), ("mark", "u4"), ("priority", "u4"), ("device", "u2"), ("egress", "u1"),
    ("flags", "u1"),
])
assert OUTPUT_DTYPE.itemsize == sizeof(Output)

cdef enum:
    FIRST_ROWS = 1024
    FIRST_BYTES = 1 << 16


cdef bint grow_rows(Outputs *all) noexcept nogil:
    cdef size_t rows = max(2 * all.rows, <size_t>FIRST_ROWS)
    cdef void *bigger
    if rows * sizeof(Output) + all.size > all.most:
        return False
    bigger = realloc(all.row, rows * sizeof(Output))
    if bigger == NULL:
        return False
    all.row = <Output *>bigger
    all.rows = rows
    return True


cdef bint grow_memory(Outputs *all, uint32_t need) noexcept nogil:
    cdef size_t size = max(2 * all.size, <size_t>FIRST_BYTES)
    cdef void *bigger
    while size - all.used < need:
        size *= 2
    if all.rows * sizeof(Output) + size > all.most:
        return False
    bigger = realloc(all.memory, size)
    if bigger == NULL:
        return False
    all.memory = <uint8_t *>bigger
    all.size = size
    return True


cdef Output *output_add(Outputs *all, const uint8_t *data, uint32_t caplen, bint changed) noexcept nogil:
    """A new row, of which caplen and flags are set, and offset if the bytes are kept here (changed). NULL: no memory."""
    cdef Output *row
    if unlikely(all.n == all.rows) and not grow_rows(all):
        return NULL
    if unlikely(changed and all.size - all.used < caplen) and not grow_memory(all, caplen):
        return NULL
    row = &all.row[all.n]
    row.caplen = caplen
    row.flags = OUTPUT_CHANGED if changed else 0
    if changed:
        row.offset = all.used
        memcpy(all.memory + all.used, data, caplen)
        all.used += caplen
    all.n += 1
    return row


cdef void outputs_reset(Outputs *all) noexcept nogil:
    """What was taken, goes."""
    all.n = all.used = 0


cdef void outputs_free(Outputs *all) noexcept nogil:
    free(all.row)
    free(all.memory)
    all.row = NULL
    all.memory = NULL
    all.n = all.rows = all.used = all.size = 0

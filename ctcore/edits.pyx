"""The edits of a batch: pieces of payload that become others. A packet's Rewrite names its first one and how many there are.

The memory grows with what a batch needs, and is used again for the next one. Only helpers under address translation get here.
Not here: what is to be changed (helpers), and the bytes (datapath.rewrite).
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, realloc

cdef enum:
    FIRST_SIZE = 64


cdef Edit *edit_next(Edits *all) noexcept nogil:
    """Room for one more edit, to be filled in, or NULL if there is no memory. It may move those before it."""
    cdef uint32_t size = all.size
    cdef Edit *row = all.row
    if all.used == size:
        size = 2 * size if size else FIRST_SIZE
        row = <Edit *>realloc(row, size * sizeof(Edit))
        if row == NULL:
            return NULL
        all.row = row
        all.size = size
    all.used += 1
    return &all.row[all.used - 1]


cdef void edits_free(Edits *all) noexcept nogil:
    free(all.row)
    all.row = NULL
    all.size = all.used = 0

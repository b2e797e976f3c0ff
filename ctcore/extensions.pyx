"""Extensions: what only a connection with a helper needs to remember. One row each, from a slab that is touched as far as it is used.

An entry names its row by `extension`, counted from 1, and by COLD_EXTENSION in `cold`, so that nobody else's packets look here.
Invariant (check): every row ever handed out lives or is in the free list.
Not here: what is remembered, and by whom (helpers).
"""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from ctcore.types cimport NO_CONN


cdef uint32_t extension_take(Extensions *all) noexcept nogil:
    """An empty row, or 0 if as many connections have one as may."""
    cdef uint32_t row = all.free if all.confirmed < all.most else 0
    if row:
        all.free = all.row[row].youngest
    elif all.confirmed < all.most and all.used < all.size:
        all.used += 1
        row = all.used
    else:
        all.refused += 1
        return 0
    memset(&all.row[row], 0, sizeof(Extension))
    all.row[row].youngest = NO_CONN
    all.row[row].master = -1
    all.row[row].live = 1
    all.count += 1
    return row


cdef void extension_give(Extensions *all, uint32_t row) noexcept nogil:
    all.row[row].live = 0
    all.row[row].youngest = all.free
    all.free = row
    all.count -= 1


cdef str extensions_fault(const Extensions *all):
    """What breaks the invariant, or an empty string."""
    cdef uint32_t row = all.free
    free = set()
    while row:
        if row in free or all.row[row].live:
            return f"extension {row} is in the free list twice, or lives"
        free.add(row)
        row = all.row[row].youngest
    live = sum([all.row[row].live for row in range(1, all.used + 1)])
    return "" if live == all.count and live + len(free) == all.used else f"{live} extensions live, {all.count} are counted, {len(free)} are free"

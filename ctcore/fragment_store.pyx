"""Where fragments lie until their datagrams are whole: in blocks of one size, in the order of their offsets.

Theory of operation: a piece takes as many blocks as its bytes need, chained; its first block's number is its own. The pieces of a datagram form
runs: one that begins where the last run ends is appended to that run, any other one begins a run of its own. It is by runs that Linux tells a
duplicate (all of it within one run: dropped) from an overlap (the datagram is given up), so runs that come to touch are never joined.
Whoever sends fragments in an order of his choice must not make them cost more, so runs are found by a tree whose balance hangs on a secret
(a treap); fragments that come in order never need it.
Invariants (store_fault): a block is free or part of one piece; runs do not overlap, rise in both list and tree, and the tree is a heap by rank.
Not here: when a datagram is whole or dies, and how much may be stored (fragments, which never asks for more blocks than there are).
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from ctcore.lowlevel cimport likely, mul_fold

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTNEED
    void *MAP_FAILED

ctypedef struct Spot:
    uint32_t block
    uint32_t at


# --- memory -----------------------------------------------------------------------------------------------------------------------------


cdef void *map_lazily(size_t size) noexcept nogil:
    """`size` zero bytes that cost nothing until they are touched, or NULL. Small pages: what is touched is scattered."""
    cdef void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if memory == MAP_FAILED else memory


cdef void unmap(void *memory, size_t size) noexcept nogil:
    """NULL is no memory."""
    if memory != NULL:
        munmap(memory, size)


cdef void give_back(void *memory, size_t size) noexcept nogil:
    """It stays mapped, is zero, and costs nothing again."""
    madvise(memory, size, MADV_DONTNEED)


# --- blocks -----------------------------------------------------------------------------------------------------------------------------


cdef inline uint32_t block_take(Store *s) noexcept nogil:
    cdef uint32_t block = s.free
    if block != NONE:
        s.free = s.behind[block]
        return block
    s.used += 1
    return s.used - 1


cdef inline void pour(Store *s, Spot *spot, const uint8_t *data, uint32_t length) noexcept nogil:
    """Append bytes to a piece that is being filled."""
    cdef uint32_t part
    while length:
        if spot.at == BLOCK:
            s.behind[spot.block] = block_take(s)
            spot.block = s.behind[spot.block]
            spot.at = 0
        part = min(length, BLOCK - spot.at)
        memcpy(s.block + <size_t>spot.block * BLOCK + spot.at, data, part)
        spot.at += part
        data += part
        length -= part


cdef uint32_t piece_take(Store *s, const uint8_t *head, uint32_t head_length, const uint8_t *data, uint32_t data_length) noexcept nogil:
    """A piece with these bytes, in no run yet. The caller fills in offset, length and number, and has made sure that there are blocks."""
    cdef Spot spot
    cdef uint32_t first = block_take(s)
    cdef Piece *piece = &s.piece[first]
    spot.block = first
    spot.at = 0
    pour(s, &spot, head, head_length)
    pour(s, &spot, data, data_length)
    piece.head = head_length
    piece.have = data_length
    piece.last_block = spot.block
    piece.next = NONE
    return first


cdef void link_keep(Store *s, uint32_t piece, const uint8_t *link, uint32_t length) noexcept nogil:
    """Remember what stood in front of a first fragment. Of a longer one (a dozen tags), that there was none to be kept."""
    cdef uint8_t *kept = s.link + <size_t>piece * LINK
    kept[0] = <uint8_t>length if length < LINK else 0
    memcpy(kept + 1, link, kept[0])


cdef void piece_copy(const Store *s, uint32_t piece, uint32_t skip, uint32_t length, uint8_t *to) noexcept nogil:
    """`length` bytes of a piece from byte `skip` on; they are there."""
    cdef uint32_t block = piece, part
    while skip >= BLOCK:
        block = s.behind[block]
        skip -= BLOCK
    while length:
        part = min(length, BLOCK - skip)
        memcpy(to, s.block + <size_t>block * BLOCK + skip, part)
        to += part
        length -= part
        skip = 0
        if length:
            block = s.behind[block]


# --- runs -------------------------------------------------------------------------------------------------------------------------------


cdef uint8_t runs_place(const Store *s, const Runs *runs, uint32_t offset, uint32_t end, uint32_t *before) noexcept nogil:
    """What lies at offset to end - 1 (not empty); where nothing does, *before is the run in front of it, or NONE."""
    cdef uint32_t at = runs.root
    before[0] = runs.last
    if runs.last == NONE or likely(offset >= s.piece[runs.last].end):
        return FREE
    before[0] = NONE
    while at != NONE:
        if end <= s.piece[at].offset:
            at = s.piece[at].left
        elif offset >= s.piece[at].end:
            before[0] = at
            at = s.piece[at].right
        else:
            return INSIDE if offset >= s.piece[at].offset and end <= s.piece[at].end else ACROSS
    return FREE


cdef void grow(Store *s, Runs *runs, uint32_t run) noexcept nogil:
    """Put a new run into the tree: down to where lower ranks begin; what is below is split at its offset."""
    cdef Piece *new = &s.piece[run]
    cdef uint32_t *link = &runs.root
    cdef uint32_t *left = &new.left
    cdef uint32_t *right = &new.right
    cdef uint32_t at
    new.rank = <uint32_t>mul_fold(s.secret ^ run, s.secret + new.offset)
    while link[0] != NONE and s.piece[link[0]].rank >= new.rank:
        link = &s.piece[link[0]].left if new.offset < s.piece[link[0]].offset else &s.piece[link[0]].right
    at = link[0]
    link[0] = run
    while at != NONE:
        if s.piece[at].offset < new.offset:
            left[0] = at
            left = &s.piece[at].right
            at = left[0]
        else:
            right[0] = at
            right = &s.piece[at].left
            at = right[0]
    left[0] = NONE
    right[0] = NONE


cdef void runs_insert(Store *s, Runs *runs, uint32_t piece, uint32_t before) noexcept nogil:
    """Add a piece at a free place. before: as runs_place() said."""
    cdef Piece *new = &s.piece[piece]
    cdef Piece *run
    if before != NONE and before == runs.last and s.piece[before].end == new.offset:
        run = &s.piece[before]
        s.piece[run.last].next = piece
        run.last = piece
        run.end += new.length
        return
    new.last = piece
    new.end = new.offset + new.length
    new.after = runs.first if before == NONE else s.piece[before].after
    if before == NONE:
        runs.first = piece
    else:
        s.piece[before].after = piece
    if new.after == NONE:
        runs.last = piece
    grow(s, runs, piece)


cdef uint32_t runs_give(Store *s, Runs *runs) noexcept nogil:
    """Return all pieces; says how many there were."""
    cdef uint32_t run = runs.first, piece, count = 0
    while run != NONE:
        piece = run
        while piece != NONE:
            s.behind[s.piece[piece].last_block] = s.free
            s.free = piece
            count += 1
            piece = s.piece[piece].next
        run = s.piece[run].after
    runs.root = runs.first = runs.last = NONE
    return count


# --- invariants -------------------------------------------------------------------------------------------------------------------------


cdef str tree_fault(const Store *s, uint32_t at, list order):
    """What breaks the tree below `at`; its runs go to the end of `order`, from left to right."""
    cdef uint32_t side
    if at == NONE:
        return ""
    for side in (s.piece[at].left, s.piece[at].right):
        if side != NONE and s.piece[side].rank > s.piece[at].rank:
            return f"piece {side} has a higher rank than the one above it"
    fault = tree_fault(s, s.piece[at].left, order)
    order.append(at)
    return fault or tree_fault(s, s.piece[at].right, order)


cdef str runs_fault(const Store *s, const Runs *runs, set taken):
    """What breaks the runs of a datagram. Their blocks go into `taken`."""
    cdef uint32_t run = runs.first, piece, block, end = 0
    order, listed = [], []
    fault = tree_fault(s, runs.root, order)
    while run != NONE and run not in listed:
        listed.append(run)
        if s.piece[run].offset < end:
            fault = fault or f"run {run} begins before the end of the one before it"
        end = s.piece[run].offset
        piece = run
        while piece != NONE:
            if s.piece[piece].offset != end:
                fault = fault or f"piece {piece} does not begin where the one before it ends"
            end += s.piece[piece].length
            block = piece
            while block not in taken:
                taken.add(block)
                if block == s.piece[piece].last_block:
                    break
                block = s.behind[block]
            else:
                return f"block {block} is part of two pieces"
            piece = s.piece[piece].next
        if end != s.piece[run].end:
            fault = fault or f"run {run} does not end where its last piece does"
        run = s.piece[run].after
    return fault or ("" if order == listed else "list and tree of a datagram's runs differ")


cdef str store_fault(const Store *s, set taken):
    """What breaks the invariants of blocks, or an empty string. taken: those that are parts of pieces."""
    cdef uint32_t block = s.free
    free = set()
    while block != NONE:
        if block in free or block in taken:
            return f"block {block} is in the free list twice, or in use"
        free.add(block)
        block = s.behind[block]
    return "" if len(free) + len(taken) == s.used else f"{len(taken)} blocks are in use and {len(free)} free, {s.used} were handed out"

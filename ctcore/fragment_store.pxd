# Where fragments lie until their datagrams are whole; see fragment_store.pyx.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    BLOCK = 512                 # bytes
    LARGEST = 65535             # bytes of a datagram; IPv6: behind its fixed header
    FIXED = 40                  # IPv6: that header
    LINK = 64                   # bytes that a first fragment's link header may take, and its length in front of it
    NONE = 0xFFFFFFFF

# One fragment. Its number is that of its first block, whose bytes are its header's and its payload's, as far as they were captured.
ctypedef struct Piece:
    uint64_t number             # of its packet, for who explains
    uint32_t offset             # in what the datagram carries, a multiple of 8
    uint32_t length             # bytes of payload
    uint32_t have               # of these, captured ones
    uint32_t head               # bytes of headers before the payload
    uint32_t next               # the one behind it in its run
    uint32_t last_block
    # of the first piece of a run only
    uint32_t end                # where the run ends
    uint32_t last               # its last piece
    uint32_t after              # the run behind it
    uint32_t left               # the tree of runs: lower offsets
    uint32_t right
    uint32_t rank               # never above its parent's

# The fragments of one datagram: runs in their order, and as a tree.
ctypedef struct Runs:
    uint32_t root
    uint32_t first
    uint32_t last

cdef enum Place:
    FREE                        # nothing lies there
    INSIDE                      # all of it is part of one run
    ACROSS                      # it overlaps something

ctypedef struct Store:
    uint8_t *block
    uint32_t *behind            # the block behind one in its piece, or in the list of free ones
    Piece *piece
    uint8_t *link               # by piece, LINK bytes each: of first fragments, for who asks for them
    uint32_t n_blocks
    uint32_t used               # blocks ever handed out: those behind were never touched and cost no memory
    uint32_t free
    uint64_t secret

cdef uint32_t piece_take(Store *s, const uint8_t *head, uint32_t head_length, const uint8_t *data, uint32_t data_length) noexcept nogil
cdef void piece_copy(const Store *s, uint32_t piece, uint32_t skip, uint32_t length, uint8_t *to) noexcept nogil
cdef void link_keep(Store *s, uint32_t piece, const uint8_t *link, uint32_t length) noexcept nogil
cdef uint8_t runs_place(const Store *s, const Runs *runs, uint32_t offset, uint32_t end, uint32_t *before) noexcept nogil
cdef void runs_insert(Store *s, Runs *runs, uint32_t piece, uint32_t before) noexcept nogil
cdef uint32_t runs_give(Store *s, Runs *runs) noexcept nogil
cdef str runs_fault(const Store *s, const Runs *runs, set taken)
cdef str store_fault(const Store *s, set taken)
cdef void *map_lazily(size_t size) noexcept nogil
cdef void unmap(void *memory, size_t size) noexcept nogil
cdef void give_back(void *memory, size_t size) noexcept nogil

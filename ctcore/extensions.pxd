from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

# How far the sequence numbers of one direction are off behind us: `before` for segments up to position, `after` for later ones.
ctypedef struct SeqAdjust:
    uint32_t position
    int32_t before
    int32_t after

# What each helper remembers of its connection.
ctypedef struct FtpMemory:
    uint32_t line[2][2]         # of each direction, two sequence numbers at which a line begins
    uint8_t known[2]            # how many of them

ctypedef union HelperMemory:
    FtpMemory ftp

ctypedef struct Extension:
    SeqAdjust adjust[2]
    HelperMemory memory
    uint32_t youngest           # of its expectations, or NO_CONN; in the free list: the next free row
    uint16_t changes            # that a dropped packet made; the next one tells of them
    uint8_t helper              # HELPER_*
    uint8_t live

ctypedef struct Extensions:
    Extension *row              # [size + 1]; 0 is nobody's
    uint32_t size
    uint32_t used               # rows ever handed out
    uint32_t free               # 0: none
    uint32_t count
    uint32_t refused

cdef uint32_t extension_take(Extensions *all) noexcept nogil
cdef void extension_give(Extensions *all, uint32_t row) noexcept nogil
cdef str extensions_fault(const Extensions *all)

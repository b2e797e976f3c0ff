# What leaves: a row for each frame that passes at the end of its walks, and the bytes of those that are not the caller's own any more.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cpdef enum OutputFlag:
    OUTPUT_CHANGED = 0x01       # its bytes lie in Outputs.memory; without: in the memory that it came in, as it came
    OUTPUT_COPY = 0x02          # mirrored: the frame itself went on

ctypedef struct Output:
    uint64_t offset             # of its first byte
    uint32_t frame              # row of the frame it was
    uint32_t caplen
    uint32_t length             # bytes on the wire
    uint32_t mark               # of skbedit
    uint32_t priority
    uint16_t device             # where it passes: Program.devices
    uint8_t egress              # leaves there; or else: is received there
    uint8_t flags               # OutputFlag

ctypedef struct Outputs:
    Output *row
    uint8_t *memory
    size_t n
    size_t rows                 # there is room for
    size_t used                 # bytes
    size_t size                 # there are
    size_t most                 # bytes that rows and memory may take together

cdef Output *output_add(Outputs *all, const uint8_t *data, uint32_t caplen, bint changed) noexcept nogil
cdef void outputs_reset(Outputs *all) noexcept nogil
cdef void outputs_free(Outputs *all) noexcept nogil

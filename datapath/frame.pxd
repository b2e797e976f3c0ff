# A frame as a source hands it over: where it lies in the source's memory, and what the capture says about it.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

ctypedef struct Frame:
    uint64_t offset             # of its first byte in the memory handed over with it
    uint32_t caplen             # bytes captured
    uint32_t len                # bytes on the wire
    int64_t ts                  # ns since the epoch
    uint32_t link               # LINKTYPE_* of its interface, a supported one
    uint32_t iface              # ordinal of its interface in the capture

cdef class Taker:
    """Whoever takes frames as a source finds them, without the GIL."""
    cdef void take(self, const uint8_t *memory, const Frame *frames, int n) noexcept nogil

cdef const Frame *checked_frames(const uint8_t[::1] memory, frames) except? NULL

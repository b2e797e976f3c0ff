from libc.stdint cimport uint32_t

from ctcore.types cimport Edit

ctypedef struct Edits:
    Edit *row
    uint32_t size
    uint32_t used

cdef Edit *edit_next(Edits *all) noexcept nogil
cdef void edits_free(Edits *all) noexcept nogil


cdef inline void edits_reset(Edits *all) noexcept nogil:
    """A new batch: nobody reads the last one's any more."""
    all.used = 0

from libc.stdint cimport uint32_t

from ctcore.types cimport Edit, Packet, Rewrite
from datapath.pipeline.draft cimport Draft

cdef bint draft_rewrite(Draft *d, const Packet *p, uint32_t l4_at, const Rewrite *r) noexcept nogil
cdef bint draft_edit(Draft *d, const Packet *p, uint32_t l4_at, const Edit *edit, uint32_t n) noexcept nogil
cdef void draft_trim(Draft *d, const Packet *p) noexcept nogil

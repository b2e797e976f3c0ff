from libc.stdint cimport uint8_t

from ctcore.types cimport Packet, Rewrite
from datapath.frame cimport Frame

cdef bint rewrite_packet(uint8_t *l3, uint8_t *l4, const Packet *p, const Rewrite *r) noexcept nogil
cdef void rewrite_rows(uint8_t *memory, const Frame *frames, Packet *row, const Rewrite *rewrites, int n) noexcept nogil

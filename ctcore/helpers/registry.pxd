from libc.stdint cimport uint8_t, uint32_t

from ctcore.engine cimport Engine
from ctcore.types cimport Entry, Packet

cdef void assign_helper(Engine *ct, uint32_t conn) noexcept nogil
cdef bint give_helper(Engine *ct, uint32_t conn, uint8_t helper) noexcept nogil
cdef void drop_helper(Engine *ct, uint32_t conn) noexcept nogil
cdef void helper_confirmed(Engine *ct, const Entry *entry) noexcept nogil
cdef uint8_t run_helper(Engine *ct, uint32_t conn, Packet *p, int dir, uint8_t state) noexcept nogil
cdef bint help_error(Engine *ct, Entry *entry, const Packet *p) noexcept nogil
cdef void fill_helpers(Engine *ct, object rules) except *

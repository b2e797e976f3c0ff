from libc.stdint cimport uint8_t, uint32_t

from ctcore.engine cimport Engine
from ctcore.expectations cimport Expectation
from ctcore.extensions cimport Extension
from ctcore.helpers.helper cimport Aid
from ctcore.types cimport Entry, Key, Packet

cdef uint8_t pptp(Aid *aid) noexcept nogil
cdef void name_tunnel(Engine *ct, Packet *p) noexcept nogil
cdef void name_quoted(const Engine *ct, Key *key) noexcept nogil
cdef bint know_tunnel(Engine *ct, uint32_t row, int dir, const Key *key) noexcept nogil
cdef void forget_tunnels(Engine *ct, Extension *ext) noexcept nogil
cdef void tunnel_ended(Engine *ct, const Entry *entry) noexcept nogil
cdef uint32_t take_tunnel(Engine *ct, const Entry *control, const Extension *ext, int dir) noexcept nogil
cdef void follow_pptp(Engine *ct, Entry *child, const Expectation *expected, bint take) noexcept nogil

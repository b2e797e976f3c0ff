from libc.stdint cimport uint8_t

from ctcore.engine cimport Engine
from ctcore.helpers.helper cimport Aid
from ctcore.types cimport Entry

cdef void keep_signalling(Aid *aid) noexcept nogil
cdef void keep_connection(Engine *ct, Entry *entry) noexcept nogil
cdef uint8_t sip(Aid *aid) noexcept nogil

from libc.stdint cimport uint8_t

from ctcore.helpers.helper cimport Aid

cdef void keep_signalling(Aid *aid) noexcept nogil
cdef uint8_t sip(Aid *aid) noexcept nogil

from libc.stdint cimport uint8_t

from ctcore.helpers.helper cimport Aid

cdef uint8_t tftp(Aid *aid) noexcept nogil

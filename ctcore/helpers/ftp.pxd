from libc.stdint cimport uint8_t

from ctcore.helpers.helper cimport Aid

cdef uint8_t ftp(Aid *aid) noexcept nogil

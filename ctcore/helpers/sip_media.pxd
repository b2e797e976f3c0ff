from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from ctcore.helpers.helper cimport Aid
from ctcore.helpers.sip_text cimport Message

cdef uint8_t describe(Aid *aid, Message *m) noexcept nogil


cdef inline bint names_sender(const Aid *aid, const uint8_t *address) noexcept nogil:
    return memcmp(aid.entry.flow[aid.dir].key.src, address, 16) == 0

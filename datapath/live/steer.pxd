# Which worker a frame belongs to; see steer.pyx.

from libc.stdint cimport uint8_t, uint32_t

from ctcore.strays cimport Strays
from ctcore.types cimport Key

cdef enum:
    NO_OWNER = 0xFFFFFFFF       # of a first fragment: it does not say

# What is to be done with a frame.
cdef enum Errand:
    STAYS                       # no IP, or nothing that a connection could be found by: whoever received it
    OWNED                       # by one worker
    FRAGMENT                    # by whoever its first fragment belongs to

ctypedef struct Course:
    Errand errand
    uint32_t owner              # OWNED; of a FRAGMENT that is the first one: of its datagram, or NO_OWNER
    uint32_t gatherer           # FRAGMENT: the worker that knows the owners of its datagram
    uint32_t start              # FRAGMENT: bytes before it, in it
    uint32_t length
    bint more                   # there are others behind it
    Key key                     # OWNED: the tuple that it goes by; FRAGMENT: addresses, id and protocol of the datagram

cdef void steer(const uint8_t *frame, uint32_t have, uint32_t count, const Strays *strays, Course *course) noexcept nogil
cdef uint32_t gatherer_of(const Key *datagram, uint32_t count) noexcept nogil

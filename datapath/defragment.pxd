from libc.stdint cimport int64_t, uint8_t, uint64_t

from ctcore.fragment_whole cimport Whole
from ctcore.fragments cimport Fragments
from ctcore.types cimport Packet
from datapath.frame cimport Frame
from datapath.wire cimport ParseSettings

# A chunk of frames on its way through reassembly. frames: those from the batch at hand to the chunk's end, `left` of them.
ctypedef struct Gathering:
    Fragments *all
    ParseSettings settings      # of the datagrams
    int64_t now                 # ns; the clock, which never goes back
    const uint8_t *memory
    const Frame *frames
    Py_ssize_t left
    uint64_t number             # of the first row's packet
    uint8_t first_link          # a datagram's link header is its first fragment's (Fragment)

cdef uint8_t gather_one(const Gathering *g, const Frame *frame, Packet *p, uint64_t number, Whole *whole) noexcept nogil
cdef void defragment(Gathering *g, Packet *row, int n) noexcept nogil
cdef list datagrams_of(const Fragments *all, uint64_t first, bint verified)

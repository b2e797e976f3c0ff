from libc.stdint cimport uint8_t, uint32_t

from ctcore.fragments cimport Reassembler
from ctcore.tracker cimport Tracker
from ctcore.types cimport Packet
from datapath.frame cimport Frame
from datapath.pipeline.level cimport Result, Walking
from datapath.pipeline.outputs cimport Outputs
from datapath.pipeline.program cimport Program

cdef void walk(Walking *w, const uint8_t *memory, const Frame *frame, const Packet *packet, uint32_t hook, Result *result) noexcept nogil

cdef class Walker:
    cdef readonly Program program
    cdef readonly Tracker tracker
    cdef readonly Reassembler reassembler
    cdef Walking walking
    cdef Outputs all
    cdef object rooms
    cdef object copies          # mirrored frames that left, by device
    cdef dict earlier           # likewise, by the device's name, of walkers before

# A capture's packets, for who takes them without the GIL; see capture.pyx and capture.pyi.

from libc.stdint cimport uint32_t, uint64_t

from datapath.frame cimport Taker
from datapath.records cimport Scan, Stop

cdef class PcapSource:
    cdef readonly str name
    cdef readonly str format
    cdef readonly object link
    cdef readonly object snaplen
    cdef readonly object packets
    cdef readonly list ifaces
    cdef object _stream
    cdef object _memory
    cdef object _damage
    cdef bint _blocks
    cdef uint32_t _n_ifaces     # of the whole capture
    cdef Scan _scan
    cdef bint _busy             # a thread is at work, some of the time without the GIL

    cdef int _enter(self) except -1
    cdef hand(self, n, Taker taker)
    cdef _read(self, n, Taker taker)
    cdef _walk(self, frames, Taker taker)
    cdef Stop _find(self, uint32_t rows) noexcept nogil
    cdef Stop _find_for(self, Taker taker, uint32_t rows) noexcept nogil
    cdef _ended(self, uint64_t left)
    cdef _advance(self, uint64_t need)
    cdef _open(self)
    cdef _refuse(self, text)
    cdef _pcap_header(self, head)
    cdef _section(self)
    cdef _interface(self)
    cdef _add_iface(self, link, snaplen, resolution, seconds, fcs)

# An AF_XDP socket; see xsk.pyx and xsk.pyi.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from datapath.frame cimport Frame
from datapath.live.iface cimport Iface
from datapath.live.ring cimport Offset, Ring
from datapath.live.rows cimport Send

cdef class Xsk(Iface):
    cdef Ring filling           # chunks for the kernel to receive into
    cdef Ring received
    cdef Ring sending
    cdef Ring sent              # chunks that come back
    cdef readonly object settings
    cdef readonly int queue
    cdef readonly bint zero_copy
    cdef public object guard    # what counts the segments that the kernel dropped before this socket (syn_guard), or None
    cdef int index              # of the interface
    cdef uint16_t in_filling    # places in the ledger
    cdef uint16_t in_sending
    cdef uint32_t outside       # chunks the kernel has for receiving
    cdef uint32_t on_way        # chunks the kernel has for sending
    cdef uint32_t budget        # frames a system call sends
    cdef bint busy_poll
    cdef uint64_t kernel_invalid # of tx_invalid, those the kernel found

    cdef int option(self, int level, int name, int value) noexcept
    cdef int make_rings(self, uint32_t size) except -1
    cdef int map_ring(self, Ring *ring, const Offset *at, long long page, size_t slot) except -1
    cdef int take_queue(self) except -1
    cdef int bind_once(self, int flags, int shared_fd) noexcept
    cdef int register(self) except -1
    cdef int poll_busily(self) except -1
    cdef void refill(self) noexcept nogil
    cdef int reap(self) noexcept nogil
    cdef void kick(self) noexcept nogil
    cdef void wake(self) noexcept nogil
    cdef void fail(self, int number) noexcept nogil
    cdef void unmap(self, Ring *ring) noexcept
    cdef int receive(self, Frame *rows, int most) noexcept nogil
    cdef int send(self, const Send *rows, int n) noexcept nogil
    cdef int tidy(self) noexcept nogil

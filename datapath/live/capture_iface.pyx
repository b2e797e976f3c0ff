"""A capture file as an iface: its frames are received one after the other, at once; what is sent is written to another one. For tests.

Invariants: nothing of the source is received twice; what was sent is in the sink when close() returns. Damage of the source and errors of writing are
kept, since nothing is raised without the GIL: `error` has the first, and nothing is received or written any more.
Not here: the capture's own pace: frames come as fast as they are asked for, with the time stamps they have.
"""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from datapath.frame cimport Frame
from datapath.link cimport LINKTYPE_ETHERNET
from datapath.live.iface cimport Iface, wall_ns
from datapath.live.rows cimport Send
from datapath.live.umem cimport HELD, Umem, pool_give, pool_take

from ctcore.errors import CtmirrorError
from datapath.capture import PcapSource
from datapath.frame import FRAME_DTYPE
from datapath.sink import PcapSink


cdef class CaptureIface(Iface):
    """Captures as what is received and sent. See capture_iface.pyi."""
    cdef object source
    cdef object sink
    cdef readonly object error
    cdef readonly bint ended

    def __init__(self, Umem umem not None, str name="capture", *, source=None, sink=None, int worker=0, int ordinal=0):
        self.setup(umem, name, worker, ordinal)
        self.driver = "capture"
        self.source = PcapSource(source) if source is not None else None
        self.ended = source is None
        try:
            self.sink = PcapSink(sink, ifaces={ordinal: name} if str(sink).endswith("pcapng") else None) if sink is not None else None
        except BaseException:
            self.close()
            raise

    cdef int receive(self, Frame *rows, int most) noexcept nogil:
        if self.ended:
            return 0
        with gil:
            return self.read(rows, most)

    cdef int read(self, Frame *rows, int most) noexcept:
        """As many frames as there are chunks for: none is lost for want of one."""
        cdef const uint8_t[::1] memory
        cdef const Frame *frame
        cdef uint64_t chunk = 0
        cdef int i, n = 0
        if self.pool.n < <uint32_t>most:
            most = <int>self.pool.n
        if most == 0:
            self.counts.rx_no_chunk += 1
            return 0
        try:
            held, frames = self.source.read(most)
        except CtmirrorError as error:
            self.error, self.ended = error, True
            return 0
        self.ended = len(frames) == 0
        memory, frame = held, <const Frame *><size_t>frames.ctypes.data
        for i in range(len(frames)):
            if frame[i].link != LINKTYPE_ETHERNET or frame[i].caplen > <uint32_t>self.umem.chunk_size:
                self.counts.rx_oversize += frame[i].link == LINKTYPE_ETHERNET
                self.counts.rx_invalid += frame[i].link != LINKTYPE_ETHERNET
                continue
            pool_take(self.pool, &chunk, 1, HELD)
            rows[n] = frame[i]
            rows[n].offset, rows[n].iface = chunk, self.ordinal
            if frame[i].caplen:
                memcpy(self.pool.memory + chunk, &memory[frame[i].offset], frame[i].caplen)
            self.counts.rx_bytes += frame[i].len
            n += 1
        self.counts.rx += n
        return n

    cdef int send(self, const Send *rows, int n) noexcept nogil:
        cdef int i
        with gil:
            if self.write(rows, n):
                self.counts.tx += n
                for i in range(n):
                    self.counts.tx_bytes += rows[i].len
            else:
                self.counts.tx_refused += n
        for i in range(n):
            pool_give(self.pool, rows[i].offset, HELD)
        return n

    cdef bint write(self, const Send *rows, int n) noexcept:
        """Whether they are written, or there is no file to write them to."""
        cdef int i
        if self.sink is None or n == 0:
            return self.error is None
        frames = np.zeros(n, dtype=FRAME_DTYPE)
        cdef Frame *frame = <Frame *><size_t>frames.ctypes.data
        for i in range(n):
            frame[i].offset, frame[i].caplen, frame[i].len = rows[i].offset, rows[i].len, rows[i].len
            frame[i].ts, frame[i].link, frame[i].iface = wall_ns(), LINKTYPE_ETHERNET, self.ordinal
        try:
            if self.error is None:
                self.sink.write(self.umem.memory, frames)
        except CtmirrorError as error:
            self.error = error
        return self.error is None

    def close(self):
        if self.closed:
            return
        super().close()
        for file in (self.source, self.sink):
            if file is not None:
                file.close()

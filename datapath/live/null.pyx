"""An iface that receives nothing and sends nowhere: what is handed to it is counted and its chunk free again. For rules that drop by redirecting,
and for measuring everything but sending.
"""

from datapath.live.iface cimport Iface
from datapath.live.rows cimport Send
from datapath.live.umem cimport HELD, Umem, pool_give


cdef class Null(Iface):
    """Counts and forgets. See null.pyi."""

    def __init__(self, Umem umem not None, str name="null", *, int worker=0, int ordinal=0):
        self.setup(umem, name, worker, ordinal)
        self.driver = "null"

    cdef int send(self, const Send *rows, int n) noexcept nogil:
        cdef int i
        for i in range(n):
            self.counts.tx_bytes += rows[i].len
            pool_give(self.pool, rows[i].offset, HELD)
        self.counts.tx += n
        return n

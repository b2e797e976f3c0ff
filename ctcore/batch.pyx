"""A batch: the packets that pass through the stages together, as rows of Packet.

parse() (datapath.wire) fills it, a tracker reads it. The rows point into the frames they were parsed from, so a batch keeps these alive.
Not here: parsing, verdicts.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize

import numpy as np

from ctcore.types cimport Packet
from ctcore.types import PACKET_DTYPE


cdef class Batch:
    """capacity: most rows it can hold. `array` is the rows in use, PACKET_DTYPE[size], as a read-only view."""

    def __cinit__(self, int capacity):
        if capacity < 1:
            raise ValueError(f"capacity = {capacity}: expected at least 1")
        self._memory = np.zeros(capacity * sizeof(Packet) + 64, dtype=np.uint8)
        cdef size_t base = self._memory.ctypes.data
        self.row = <Packet *>((base + 63) & ~<size_t>63)
        self.capacity = capacity
        self.size = 0

    @property
    def array(self):
        cdef size_t start = <size_t>self.row - <size_t>self._memory.ctypes.data
        rows = self._memory[start:start + self.size * sizeof(Packet)].view(PACKET_DTYPE)
        # The engine reads wherever l4 points: that is parse()'s to say, nobody else's.
        rows.flags.writeable = False
        return rows

    cpdef consume(self):
        """A tracker writes its decisions into the rows: a batch passes once. ValueError the second time."""
        if self.consumed:
            raise ValueError("batch: has been through a tracker: expected a newly parsed one")
        self.consumed = True

    def l4_bytes(self, int i):
        """The captured bytes of row i from its transport header on, as the IP length bounds them."""
        if not 0 <= i < self.size:
            raise IndexError(f"row {i}: the batch has {self.size}")
        if self.row[i].l4 == NULL:
            return b""
        return PyBytes_FromStringAndSize(<char *>self.row[i].l4, self.row[i].l4_have)

    def __len__(self):
        return self.size

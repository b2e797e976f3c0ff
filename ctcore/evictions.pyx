"""The audit of evictions: who had to go, and for whom.

Filled from its start and taken as a whole, as the buffer of events is; memory is used with the first eviction only.
Invariant: records leave in the order in which connections left.
Not here: who is evicted (tracker).
"""

from libc.string cimport memcpy

import numpy as np

from ctcore.types cimport Eviction
from ctcore.types import EVICTION_DTYPE


cdef object evictions_take(Evictions *all):
    """All records, oldest first, as EVICTION_DTYPE[k]; none is left."""
    cdef object taken = np.zeros(all.length, dtype=EVICTION_DTYPE)
    if all.length:
        memcpy(<void *><size_t>taken.ctypes.data, all.row, all.length * sizeof(Eviction))
    all.length = 0
    return taken

"""What a flow table and who mirrors it in hardware tell each other, between batches: rows of FlowAsk one way, of FlowAnswer the other.

Both know a flow by its row and the row's life (serial): an answer that comes after the row has become another connection's is none.
Not here: who decides what (flow table, mirror), commands to hardware (offload.records).
"""

from enum import IntEnum

import numpy as np

from ctcore.types import KEY_DTYPE

assert sizeof(FlowAsk) == 144 and sizeof(FlowAnswer) == 56

Asked = IntEnum("Asked", {"INSTALL": ASK_INSTALL, "COUNTERS": ASK_COUNTERS, "REMOVE": ASK_REMOVE}, module=__name__)
Answered = IntEnum("Answered", {
    "INSTALLED": ANSWER_INSTALLED, "REFUSED": ANSWER_REFUSED, "REMOVED": ANSWER_REMOVED, "COUNTED": ANSWER_COUNTED, "PENDING": ANSWER_PENDING,
}, module=__name__)

ASK_DTYPE = np.dtype([
    ("key", KEY_DTYPE, 2), ("now", "i8"), ("conn", "i8"), ("label", "u8", 2), ("bytes", "u8"), ("row", "u4"), ("serial", "u4"), ("mark", "u4"),
    ("status", "u2"), ("ask", "u1"), ("flags", "u1"), ("cause", "u1"), ("pad", "u1", 7),
])
ANSWER_DTYPE = np.dtype([
    ("used", "i8"), ("packets", "u8", 2), ("bytes", "u8", 2), ("row", "u4"), ("serial", "u4"), ("answer", "u1"), ("flags", "u1"), ("pad", "u1", 6),
])
assert ASK_DTYPE.itemsize == sizeof(FlowAsk) and ANSWER_DTYPE.itemsize == sizeof(FlowAnswer)


cdef const void *rows_of(rows, dtype, str name) except? NULL:
    """The first of an array's rows, which the caller keeps alive; ValueError unless it is one-dimensional, of this dtype and without gaps.

    NULL, without an error, if there are none.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype != dtype or rows.ndim != 1 or not rows.flags.c_contiguous or not rows.flags.aligned:
        raise ValueError(f"{name}: expected a contiguous one-dimensional array of its dtype")
    return <const void *><size_t>rows.ctypes.data if len(rows) else NULL

"""What a mirror and a backend tell each other: rows of Command one way, of Reply the other, each reply for one command, but for
news of rules that are gone.

One flow: REPLACE of both directions, answered 0 and 0; STATS, answered with what has passed since the last one; DESTROY of both, which may be
answered with what has passed since.
Not here: who decides (mirror), what carries it out (simnic, tc).
"""

from enum import IntEnum

import numpy as np

from ctcore.types import KEY_DTYPE

assert sizeof(Command) == 120 and sizeof(Reply) == 40

Op = IntEnum("Op", {"REPLACE": OP_REPLACE, "DESTROY": OP_DESTROY, "STATS": OP_STATS, "GONE": OP_GONE}, module=__name__)
Ctinfo = IntEnum("Ctinfo", {"NEW": CT_NEW, "ESTABLISHED": CT_ESTABLISHED, "ESTABLISHED_REPLY": CT_ESTABLISHED_REPLY}, module=__name__)

COMMAND_DTYPE = np.dtype([
    ("match", KEY_DTYPE), ("to", KEY_DTYPE), ("cookie", "u8"), ("conn", "i8"), ("label", "u8", 2), ("mark", "u4"), ("op", "u1"), ("ctinfo", "u1"),
    ("dir", "u1"), ("pad", "u1"),
])
REPLY_DTYPE = np.dtype([
    ("cookie", "u8"), ("used", "i8"), ("packets", "u8"), ("bytes", "u8"), ("error", "i4"), ("op", "u1"), ("shared", "u1"), ("pad", "u1", 2),
])
assert COMMAND_DTYPE.itemsize == sizeof(Command) and REPLY_DTYPE.itemsize == sizeof(Reply)

from enum import IntEnum
from typing import Any

import numpy as np

class Op(IntEnum):
    """What a command is for."""

    REPLACE = 1
    DESTROY = 2
    STATS = 3
    GONE = 4

class Ctinfo(IntEnum):
    """What a rule says of the packets that match it."""

    NEW = 1
    ESTABLISHED = 2
    ESTABLISHED_REPLY = 3

COMMAND_DTYPE: np.dtype[Any]  # the C struct Command
REPLY_DTYPE: np.dtype[Any]  # the C struct Reply

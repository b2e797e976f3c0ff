from enum import IntEnum, IntFlag
from typing import Any

import numpy as np

class Asked(IntEnum):
    """What a flow asks of the mirror."""

    INSTALL = 1
    COUNTERS = 2
    REMOVE = 3

class Answered(IntEnum):
    """What the mirror answers."""

    INSTALLED = 1
    REFUSED = 2
    REMOVED = 3
    COUNTED = 4
    PENDING = 5

class FlowFlag(IntFlag):
    """Of an ask and of an answer; see flow_changes.pxd."""

    FLOW_BIDIRECTIONAL = 1
    FLOW_ASSURED = 2
    FLOW_SEEN_REPLY = 4
    FLOW_ESTABLISHED = 8
    FLOW_SPLIT = 16

ASK_DTYPE: np.dtype[Any]  # the C struct FlowAsk
ANSWER_DTYPE: np.dtype[Any]  # the C struct FlowAnswer

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.tracker import Tracker

def limit_pass(tracker: Tracker, memory: NDArray[np.uint8], frames: NDArray[Any], batch: int = 64) -> int:
    """Run the limit kernel over FRAME_DTYPE[n] in memory: Ethernet, IPv4 without options, TCP or UDP. Returns a meaningless sum."""

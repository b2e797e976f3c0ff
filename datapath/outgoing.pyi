from typing import Any

import numpy as np
from numpy.typing import NDArray

def outgoing(memory: NDArray[np.uint8], frames: NDArray[Any], *, blocks: bool) -> NDArray[np.bool_]:
    """Which packets went out at their interface: bool[n]. What the capture says nothing of came in.

    memory: uint8[m], a source's own, in which frames (FRAME_DTYPE[n]) lie where they lay in the capture; blocks: it is pcapng. Raises ValueError
    for frames that are none, or not within memory.
    """

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

INNER_DTYPE: np.dtype[Any]

def inner(memory: Buffer | NDArray[np.uint8], frames: NDArray[Any]) -> NDArray[Any]:
    """Where each frame's IP packet lies: INNER_DTYPE[k].

    memory: uint8[n]; frames: FRAME_DTYPE[k]. offset: of the IP header's first byte in memory; have: captured bytes from there on, link padding
    included; length: the same on the wire; family: 4 or 6, or 0 where reason says why there is no IP packet. Raises ValueError as parse_batch().
    """

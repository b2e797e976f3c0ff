from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOWER_DTYPE: np.dtype[Any]  # the C struct FlowerKey (flower.pxd), 112 bytes without padding

def flower_keys(memory: NDArray[np.uint8], frames: NDArray[Any]) -> NDArray[Any]:
    """The fields that flower rules match, FLOWER_DTYPE[n], of frames as they arrive: indev and the ct_* fields are 0.

    memory: uint8[m], C-contiguous; frames: FRAME_DTYPE[n], each within memory (ValueError otherwise). Source: Linux's flow dissector, as cls_flower
    calls it.
    """

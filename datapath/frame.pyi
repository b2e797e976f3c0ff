from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAME_DTYPE: np.dtype[Any]
LINK_NULL: int
LINK_ETHERNET: int
LINK_RAW_12: int
LINK_RAW_14: int
LINK_RAW: int
LINK_LOOP: int
LINK_SLL: int
LINK_IPV4: int
LINK_IPV6: int
LINK_SLL2: int

def frames_of(
    packets: Sequence[bytes], ts: int | Sequence[int] | NDArray[np.int64] = 0, link: int | Sequence[int] = LINK_ETHERNET
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Memory and frames of a list of packets.

    ts: ns, one for all or one each; link: LINKTYPE_*. Returns (uint8[total], FRAME_DTYPE[len(packets)]).
    """

from typing import Any

import numpy as np
from numpy.typing import NDArray

def complete_frames(memory: NDArray[np.uint8], frames: NDArray[Any]) -> int:
    """Complete the L4 checksums that a local stack has left to its NIC.

    memory: uint8[m], writable; frames: FRAME_DTYPE[n], Ethernet, each within memory; changed in place: the checksum of those TCP and UDP packets
    whose field holds the folded sum of the pseudo-header and does not verify, and of SCTP packets whose field is 0. Frames that were not captured as
    a whole stay. Returns how many were changed. Raises ValueError for arrays that are none of these.
    """

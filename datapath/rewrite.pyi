from typing import Any

import numpy as np
from numpy.typing import NDArray

def rewrite_in_place(memory: NDArray[np.uint8], frames: NDArray[Any], rewrites: NDArray[Any]) -> NDArray[np.bool_]:
    """Make the changes that address translation asks for in the frames themselves.

    memory: uint8[m], writable; frames: FRAME_DTYPE[n], each within memory; rewrites: REWRITE_DTYPE[n], as Pipeline.process() gives them; where
    flags are 0, the frame stays. Returns bool[n]: False for frames that are too short for the change, which Linux drops; they may be half changed.
    Raises ValueError for arrays that are none of these.
    """

def copied(memory: NDArray[np.uint8], frames: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Frames back to back in memory of their own, which may be written. Raises ValueError if a frame is not within memory."""

def rewritten(memory: NDArray[np.uint8], frames: NDArray[Any], rewrites: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """A copy of frames with the changes made that address translation asks for: (memory, frames) of what leaves.

    Arguments and errors as of rewrite_in_place(). The frames lie back to back in the copy; those that Linux drops are left out.
    """

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

def translated(
    memory: NDArray[np.uint8], frames: NDArray[Any], rewrites: NDArray[Any], edits: NDArray[Any] | None = None
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.bool_]]:
    """A copy of frames with the changes made that address translation asks for: memory, frames in it, and bool[n], which of them can be sent.

    Arguments and errors as of rewrite_in_place(). edits: EDIT_DTYPE[m], as Tracker.edits() gives them for the same packets: a helper's changes of
    the payload, which may make frames longer or shorter.
    """

def rewritten(
    memory: NDArray[np.uint8], frames: NDArray[Any], rewrites: NDArray[Any], edits: NDArray[Any] | None = None
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The same: (memory, frames) of what leaves. Frames that Linux drops are left out."""

def edit_frames(
    memory: NDArray[np.uint8], frames: NDArray[Any], sent: NDArray[np.bool_], rewrites: NDArray[Any], edits: NDArray[Any]
) -> NDArray[np.uint8]:
    """Make helpers' edits in frames that are translated already. frames and sent are changed where that is so; the memory they lie in then."""

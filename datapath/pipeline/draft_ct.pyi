from typing import Any

from numpy.typing import NDArray

def edited_draft(frame: bytes, edits: NDArray[Any]) -> bytes | None:
    """A helper's edits made in an Ethernet frame, which was captured as a whole: what datapath.edits.edited() says, for who compares.

    edits: EDIT_DTYPE[n], in the order of `at`. None if it cannot be. Raises ValueError for another array.
    """

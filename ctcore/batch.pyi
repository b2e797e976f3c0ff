from typing import Any

from numpy.typing import NDArray

class Batch:
    """Rows of parsed packets, at most `capacity`; `size` are in use. Raises ValueError for a capacity below 1."""

    size: int
    capacity: int
    def __init__(self, capacity: int) -> None: ...
    def __len__(self) -> int: ...
    @property
    def array(self) -> NDArray[Any]:
        """The rows in use, PACKET_DTYPE[size], as a read-only view."""
    def consume(self) -> None:
        """Called by trackers: a batch passes once. Raises ValueError the second time."""
    def l4_bytes(self, i: int) -> bytes:
        """The captured bytes of row i from its transport header on, as the IP length bounds them. Raises IndexError."""

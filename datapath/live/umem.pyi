from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_SIZES: tuple[int, ...]

class Umem:
    """Memory of frames that several ifaces share, cut into chunks of one frame each.

    chunks: for each worker; twice the slots of the rings of its AF_XDP ifaces are enough (an iface has up to two rings of them); chunk_size: bytes,
    2048 or 4096 (for MTUs above 1,774); workers: each has a stack of free chunks of its own; huge: ask for huge pages. It is all there from the
    start, touched. Workers are threads of one process. Raises ConfigError, MemoryError.
    """

    size: int
    """bytes"""
    chunk_size: int
    chunks: int
    """of all workers"""
    workers: int
    sharers: list[Any]
    """Open AF_XDP ifaces on it."""
    def __init__(self, chunks: int, *, chunk_size: int = 2048, workers: int = 1, huge: bool = True) -> None: ...
    @property
    def memory(self) -> NDArray[np.uint8]:
        """uint8[size], writable: what offsets of frames are offsets into. Keeps the mapping alive."""
    def free(self, worker: int = 0) -> int:
        """Free chunks of a worker."""
    def put(self, frames: Sequence[bytes], *, worker: int = 0, headroom: int = 0) -> NDArray[Any]:
        """Frames written to chunks of a worker, which are held then: SEND_DTYPE[n], to be sent or given back.

        headroom: bytes left free in front. Raises MemoryError if fewer chunks are free, and takes none; ValueError for a frame larger than a chunk.
        """
    def give(self, offsets: Iterable[int] | NDArray[np.uint64], *, worker: int = 0) -> None:
        """Held chunks become free, each by any offset in it. Raises ValueError for one that is not held; those before it are free then."""
    def places(self) -> dict[str, int]:
        """How many chunks are where: "free", "held", and by ring ("eth0:0 fill", ...); what is empty is left out."""
    def check(self) -> None:
        """Prove that each chunk is at one place, and the free ones on one stack, once. AssertionError says what is not so. For tests: it takes
        time."""

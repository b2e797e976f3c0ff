from types import TracebackType
from typing import Any, Literal, Self

from numpy.typing import NDArray

from datapath.live.umem import Umem

LARGEST_BATCH: int

class Iface:
    """What all ifaces have. Workers call receive, send and tidy of iface.pxd without the GIL; what is here does the same from Python.

    Frames are in umem.memory. name: the interface's; driver: "xdp", "packet", ...; worker: whose free chunks it takes; ordinal: `iface` of its
    frames; fd: to be polled for frames, -1 if there is nothing to wait for. One thread at a time works with it.
    """

    name: str
    driver: str
    umem: Umem
    worker: int
    ordinal: int
    fd: int
    closed: bool
    def receive_batch(self, most: int = 64) -> NDArray[Any]:
        """Frames that have come, in order: FRAME_DTYPE[k], 0 <= k <= most <= 4096; offsets into umem.memory, ts in ns since the epoch.

        Their chunks are held by the caller, who sends them or gives them back (Umem.give). It does not wait.
        """
    def send_batch(self, rows: NDArray[Any]) -> int:
        """Hand over the frames of SEND_DTYPE[n], n <= 4096, in chunks that are held. How many were taken, from the first one on: the chunks of the
        rest are still the caller's. Raises ValueError for a frame that is not in a chunk that is held.
        """
    def tidy_up(self) -> int:
        """Have the kernel send what was handed over, take back chunks, give it new ones. How many chunks came back."""
    def statistics(self) -> dict[str, int]:
        """Counters since it was opened, by the names of rows.COUNTERS."""
    @property
    def condition(self) -> Literal["up", "down", "gone"]:
        """As the last try to send, or look(), found it."""
    def look(self) -> Literal["up", "down", "gone"]:
        """Ask the kernel whether the device is there and up: what has nothing to send learns of neither otherwise."""
    def ready(self) -> None:
        """RuntimeError if it is closed or was never set up."""
    def check(self) -> None:
        """Prove what it and the memory's ledger both know: AssertionError says what differs. For tests."""
    def close(self) -> None:
        """Give back descriptors and chunks, also those the kernel still had; a second time, nothing. By the worker's thread, or when that has
        ended."""
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None: ...

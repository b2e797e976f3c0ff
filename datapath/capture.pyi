import os
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

class PcapSource:
    """The packets of one capture, batch by batch, over the file's own bytes.

    path: a file, or "-" for standard input; name: how messages call it (default: path); window: bytes of memory to begin with, for reading as a
    stream also what could be mapped (a file that may shrink meanwhile, say). Formats are told by content: pcap (microseconds, nanoseconds) and
    pcapng, in either byte order, plain or compressed by gzip, xz or zstd.

    Raises CaptureError, with one line for the user, where the file cannot be opened, is no capture, or is of a link type not supported.

        with PcapSource("office.pcap") as source:
            while True:
                memory, frames = source.read(4096)
                if not len(frames):
                    break
    """

    name: str
    format: str
    """ "pcap" or "pcapng", and the compression: "pcapng, gzip"."""
    link: int | None
    """LINKTYPE_* number of the first interface; None where a pcapng capture has none before its first packet."""
    snaplen: int | None
    """Bytes a packet was cut to, as the first interface says; 0: not cut."""
    packets: int
    """Packets read so far."""
    ifaces: list[str]
    """Names of the interfaces met so far, by the `iface` of frames; "" where the capture does not say."""

    def __init__(self, path: str | os.PathLike[str], *, name: str | None = None, window: int | None = None) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None: ...
    def close(self) -> None:
        """Close the file. Memory handed out stays valid for those who hold it; reading is over."""

    @property
    def links(self) -> frozenset[str]:
        """Names of the link types of the packets read so far."""

    @property
    def position(self) -> int:
        """Bytes of the file consumed; of a compressed one, compressed bytes."""

    @property
    def size(self) -> int | None:
        """Bytes of the file; None where it has no size (pipes)."""

    def read(self, n: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        """The next packets: memory, uint8[m], read-only; frames, FRAME_DTYPE[k], k <= n, whose offsets point into memory. k = 0: the end.

        Fewer than n says nothing: a stream hands out what it has. Memory is valid until the next read (where the file is mapped: for good).
        ts is ns since the epoch; what 64 bits cannot hold becomes their nearest value. A simple packet block has no time stamp and gets that
        of the packet before it. len is never less than caplen.

        Raises CaptureError at damage, after all packets before it were handed out, and again at every later call. ValueError: n < 1.
        RuntimeError: another thread is reading.
        """

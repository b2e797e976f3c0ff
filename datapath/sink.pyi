import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

class PcapSink:
    """A capture being written, pcap or pcapng by the name's ending: .pcap or .pcapng, and .gz, .xz or .zst behind it for compression.

    path: the file, overwritten, or "-" for standard output (pcapng unless format says otherwise); link: LINKTYPE_* number of a pcap file and of
    an empty pcapng one; format: "pcap" or "pcapng", whatever the ending; snaplen: bytes, 1 to 2^24; longer frames are cut;
    ifaces: names of interfaces by the `iface` of frames (pcapng only).
    The file is whole once it is closed: use `with`. Time stamps are written in nanoseconds, since 1970 and (pcap) until 2106.

    Raises OutputError, with one line for the user, where the file cannot be created or its ending says nothing.
    """

    name: str
    format: str
    """ "pcap" or "pcapng"."""
    link: int
    snaplen: int
    packets: int
    """Packets written so far."""
    clamped: int
    """Of these, those whose time stamp the format cannot hold and which got the nearest it can."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        link: int = 1,
        format: str | None = None,
        snaplen: int = 262144,
        ifaces: Mapping[int, str] | None = None,
    ) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None: ...
    def write(self, memory: npt.NDArray[np.uint8], frames: npt.NDArray[Any], comments: Sequence[str | None] | None = None) -> None:
        """Append packets, as PcapSource.read returned them or frame.frames_of made them.

        memory: uint8[m]; frames: FRAME_DTYPE[k], each within memory; comments: one for each frame, or None (pcapng only; cut at 65,535 bytes).
        pcapng gets one interface for each (link, iface) met. All of the frames are written, or none.

        Raises OutputError where the file cannot be written, or a frame's link type is not that of the pcap file. ValueError: a frame outside
        memory, a wrong number of comments, comments in pcap, a closed sink. RuntimeError: another thread is writing.
        """

    def close(self) -> None:
        """Write what is buffered, and close. A second time, nothing."""

import os

from ctcore.errors import CtmirrorError
from datapath.live.iface import Iface
from datapath.live.umem import Umem

class CaptureIface(Iface):
    """A capture as an iface: the frames of `source` are received, with their time stamps; what is sent is written to `sink`, with the time it was.

    source, sink: paths as of PcapSource and PcapSink, or None. Frames of another link type than Ethernet are counted as rx_invalid, those larger than
    a chunk as rx_oversize. Raises CaptureError and OutputError where a file cannot be opened.
    """

    error: CtmirrorError | None
    """What ended reading or writing before its time."""
    ended: bool
    """Nothing more will be received."""
    def __init__(
        self,
        umem: Umem,
        name: str = "capture",
        *,
        source: str | os.PathLike[str] | None = None,
        sink: str | os.PathLike[str] | None = None,
        worker: int = 0,
        ordinal: int = 0,
    ) -> None: ...

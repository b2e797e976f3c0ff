from datapath.live.iface import Iface
from datapath.live.umem import Umem

class Tap(Iface):
    """A tap device of this thread's network namespace, made here unless it is there; one made here goes with close().

    several: this is one of its queues, each opened by the real name of the first one; the kernel spreads frames over them by their connections.
    name: may hold %d, for a number that is free; `name` is then the real one. headroom: bytes left free in front of received frames. A frame that
    fills a chunk to its last byte is taken for one that was cut off. Raises KernelError.
    """
    def __init__(self, umem: Umem, name: str, *, worker: int = 0, ordinal: int = 0, headroom: int = 0, several: bool = False) -> None: ...

from datapath.live.iface import Iface
from datapath.live.settings import XskSettings
from datapath.live.syn_guard import Guard
from datapath.live.umem import Umem

class Xsk(Iface):
    """An AF_XDP socket on one receive queue of an interface of this thread's network namespace.

    umem: shared with other ifaces, also of other namespaces; queue: 0 to queues_of(name) - 1; worker: whose chunks it receives into; ordinal: `iface`
    of its frames. Frames come as soon as a Steering has its fd for that queue and is attached.
    The second one on a memory shares the first one's registration, and with it whether it is zero-copy.
    Raises KernelError, with its errno as `number`: EBUSY if another socket has the queue, ENOBUFS if too little memory may be locked, EOPNOTSUPP if
    the driver cannot do zero-copy; no number for an MTU that does not fit in a chunk.
    """

    settings: XskSettings
    queue: int
    zero_copy: bool
    """Whether it is bound so."""
    guard: Guard | None
    """Counts what the kernel dropped before this socket."""
    def __init__(self, umem: Umem, name: str, *, queue: int = 0, worker: int = 0, ordinal: int = 0, settings: XskSettings | None = None) -> None: ...

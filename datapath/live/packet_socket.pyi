from datapath.live.iface import Iface
from datapath.live.settings import PacketSettings
from datapath.live.umem import Umem

class PacketSocket(Iface):
    """An interface of this thread's network namespace by AF_PACKET, all of its queues; for where XDP cannot be had.

    Frames are copied into chunks of `worker` and out of chunks. The host sees all that is received as well. Checksums that a local stack has left to
    its NIC are completed (rx_completed), VLAN tags are where they were, and what came several in one is cut up (rx_cut). The interface is made
    promiscuous, and told not to merge frames (GRO). group: of several sockets that share the interface's frames, 0 for the first one, whose `group`
    is the others'; they receive nothing until listen(). Raises KernelError, with its errno as `number`; no number for an MTU that does not fit in a
    chunk.
    """

    settings: PacketSettings
    group: int | None
    def __init__(
        self,
        umem: Umem,
        name: str,
        *,
        worker: int = 0,
        ordinal: int = 0,
        settings: PacketSettings | None = None,
        group: int | None = None,
    ) -> None: ...
    def listen(self) -> None:
        """Receive from now on. Of a group: when all its sockets are open."""

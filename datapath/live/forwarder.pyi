from datapath.live.iface import Iface

class Forwarder:
    """What comes in at one iface goes out at the other, unseen.

    left, right: two ifaces of one worker on one memory; batch: frames of one round and direction, 1 to 1,024; to_right, to_left: 12 bytes that are
    written to the begin of each frame that goes there, MAC addresses of destination and source, or None; partial: complete checksums that a local
    stack has left to its NIC; spin: rounds without a frame before it sleeps. Raises ValueError.
    """

    left: Iface
    right: Iface
    rounds: int
    idle: int
    waits: int
    dropped: int
    def __init__(
        self,
        left: Iface,
        right: Iface,
        *,
        batch: int = 64,
        to_right: bytes | None = None,
        to_left: bytes | None = None,
        partial: bool = False,
        spin: int = 1000,
    ) -> None: ...
    def run(self, seconds: float | None = None) -> None:
        """Forward for so long, or until stop(); without the GIL for 100 ms at a time. RuntimeError if an iface is closed."""
    def stop(self) -> None:
        """Have run() return within 100 ms; from another thread, or a signal handler."""
    def counters(self) -> dict[str, int]:
        """rounds; idle: those without a frame; waits: sleeps; dropped: frames that the other side did not take (and counts by why)."""

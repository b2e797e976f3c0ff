class Unresolved:
    """Frames of a router that wait for the MAC address of their next hop: 16 for each of 64 hops, 256 in all, one chunk in eight of its worker's."""

    def give_up(self) -> None:
        """Drop all that wait, and give their chunks back. When the loop runs no more."""
    def waiting(self) -> int:
        """How many wait now."""
    def counters(self) -> dict[str, int]:
        """held: frames that have waited, or do; held_dropped: that gave way to others, found no room, or waited when the node ended."""
    def check(self) -> None:
        """Prove the invariants, and that each chunk is in the ledger as held. For tests."""

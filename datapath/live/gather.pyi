class Gatherer:
    """What a worker knows of the owners of datagrams whose fragments it gathers. Its methods for frames are those of handoff."""

    n: int
    def counters(self) -> dict[str, int]:
        """fragments_waited, and of those dropped: fragments_late, fragments_crowded, fragments_untold."""

from ctcore.strays import StrayTable
from datapath.live.umem import Umem

class Exchange:
    """Lanes between all workers of a memory, 2 to 64 of them. Nobody may work while it is closed."""

    umem: Umem
    workers: int
    ends: tuple[Handoff, ...]
    strays: StrayTable
    def __init__(self, umem: Umem) -> None: ...
    def close(self) -> None:
        """What is still in lanes is free again; a second time, nothing."""

class Handoff:
    """One worker's end of all lanes, for its Loop. bell: an eventfd that wakes it."""

    worker: int
    workers: int
    @property
    def bell(self) -> int: ...
    def counters(self) -> dict[str, int]:
        """handed, taken: frames that went to others and came from them; lane_full: dropped since a lane was full; fragments_*: see
        Gatherer; strays_full: announced connections that found no place among strays."""

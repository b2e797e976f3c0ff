from collections.abc import Collection

from ctcore.tracker import Tracker

class Flows:
    """A tracker's flow table: which of its connections need no tracking any more. Made for a whole pipeline; a tracker has one at most.

    Its timeouts are the tracker's settings flowtable_tcp_timeout and flowtable_udp_timeout. Raises ValueError if the tracker has one already,
    MemoryError.
    """

    def __init__(self, tracker: Tracker) -> None: ...
    @property
    def tracker(self) -> Tracker: ...
    @property
    def count(self) -> int:
        """Rows, those included that are torn down and wait for the next round."""
    def counters(self) -> dict[str, int]:
        """flows: rows; admitted: connections taken in so far; served: packets; teardown_fin, teardown_rst, ...: rows torn down, why;
        refused_not_assured, refused_proto, ...: packets at the end of whose `ct` action their connection was not taken in, why."""
    def flush(self) -> None:
        """Tear down all rows: their connections go back to the tracker."""
    def keep(self, zones: Collection[int]) -> None:
        """Take out the rows of all other zones at once: Linux has a table for each zone, which goes with the last `ct` action of that zone."""
    def check(self) -> None:
        """Raises AssertionError naming what breaks an invariant."""

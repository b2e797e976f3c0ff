from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.tracker import Tracker

UNSPLIT_DTYPE: np.dtype[Any]  # conn_id: ordinal; packets, bytes

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
    @property
    def rows(self) -> int:
        """How many rows there may be, and so how many flows a mirror needs room for: more than connections, of which only packets know some."""
    def counters(self) -> dict[str, int]:
        """flows: rows; admitted: connections taken in so far; served: packets; teardown_fin, teardown_rst, ...: rows torn down, why;
        refused_not_assured, refused_proto, ...: packets at the end of whose `ct` action their connection was not taken in, why. Of a table that is
        mirrored: hw_asks: taken so far; hw_asks_waiting; hw_asks_lost: there was no place for them, and everything is asked for again;
        hw_answers_stale: to rows that are others by now; hw_packets, hw_bytes: that hardware has counted; hw_packets_unsplit: of these, of a
        direction that nobody knows; hw_packets_late: of these, of connections that were gone."""
    def mirrored(self, capacity: int = 65536) -> None:
        """From now on, tell what hardware should have: asks() has to be taken and answered, at least once a second of the frames' time, and
        everything that is in the table is asked for first. capacity: asks that may wait. Raises ValueError if it is mirrored already, MemoryError."""
    @property
    def due(self) -> int:
        """ns: when a mirror has to look again, for rounds that are due, or asks: 0: now; 2**63 - 1: never. Raises ValueError without a mirror."""
    def asks(self, most: int = 65536) -> NDArray[Any]:
        """ASK_DTYPE[n], at most so many: what has been asked since the last call, as connections are now. Raises ValueError without a mirror."""
    def answer(self, answers: NDArray[Any]) -> None:
        """Obey ANSWER_DTYPE[n]: HW_OFFLOAD set or cleared, counters and timeouts of what hardware has seen, rows let go. Raises ValueError."""
    def advance(self, now: int) -> None:
        """Time goes on (ns) where no packet comes to tell it: rounds that are due, and connections that expire."""
    def unsplit(self) -> NDArray[Any]:
        """UNSPLIT_DTYPE[k]: connections of which hardware has counted packets without telling the directions apart; some may have ended."""
    def flush(self) -> None:
        """Tear down all rows: their connections go back to the tracker."""
    def keep(self, zones: Collection[int]) -> None:
        """Take out the rows of all other zones at once: Linux has a table for each zone, which goes with the last `ct` action of that zone."""
    def check(self) -> None:
        """Raises AssertionError naming what breaks an invariant."""

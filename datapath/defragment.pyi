from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.batch import Batch
from ctcore.config import Config
from ctcore.fragments import Reassembler
from datapath.refragment import Datagram

class Gatherer:
    """Parser and reassembly without a tracker: frames in, a batch for any tracker out. zone: of the packets, until it is set anew;
    at_hook: as in wire.parse_batch().

    Raises ConfigError, and ValueError for a zone that is none."""

    reassembler: Reassembler
    zone: int
    datagrams: list[Datagram]
    """Those that the last parse() completed; `row` is the row in its batch."""
    def __init__(self, config: Config | None = None, *, zone: int = 0, at_hook: bool = False) -> None: ...
    def parse(self, memory: NDArray[np.uint8], frames: NDArray[Any]) -> Batch:
        """Like wire.parse_batch(), with fragments gathered over all calls: the row of a fragment that completes its datagram is the datagram's.

        The batch keeps alive what its rows point to. Raises ValueError for a frame that is not within memory.
        """

def refused(batch: Batch, i: int, reason: int) -> None:
    """Let row i be a fragment that was dropped, for a Reason: what reassembly in Python has to say. Raises IndexError."""

import numpy as np
from numpy.typing import NDArray

from ctcore.batch import Batch
from datapath.refragment import Datagram

def cut_up(frame: bytes, datagram: Datagram, joined: int = 0) -> list[tuple[bytes, int]]:
    """The frames in which an Ethernet frame leaves that was put together, and how many bytes of each were not captured; none: it cannot be cut up.

    Of the datagram all but row, frame and l3 is used; joined: bytes of what its parts carried that are in one piece by now. What refragment() of
    datapath.refragment says, for who compares.
    """

def joined_of(batch: Batch, decision: NDArray[np.void], rewrite: NDArray[np.void], carried: int, *, verified: bool) -> int:
    """How much of a datagram is in one piece after a `ct` action on it, as datapath.joined has it.

    Arguments: those of joined(); carried: bytes of all parts.
    """

"""The door: frames become rows of Packet (see ctcore.types.PACKET_DTYPE)."""

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from ctcore.batch import Batch

def parse_batch(
    memory: Buffer | npt.NDArray[np.uint8],
    frames: np.ndarray,
    *,
    zone: int = 0,
    checksum: bool = True,
    nat: bool = False,
    fragments: str = "held",
    at_hook: bool = False,
) -> Batch:
    """Parse frames into a new Batch with one row a frame; the batch keeps the memory alive.

    memory: uint8[n]; frames: FRAME_DTYPE[k], as frames_of() or a capture gives them; zone: 0 to 65535, goes into every key; checksum: verify
    transport checksums; nat: look at those of ICMP errors in any case (`flaw`). at_hook: take headers as `ct` actions do: what an IP header says
    beyond the frame is not there, and an IPv4 header's checksum is looked at as a part of the transport checksum only. Any bytes may be in the
    frames: bad packets get reasons.
    fragments: "held": each has the reason `fragment`, but an atomic one of IPv6 is like any other packet; "gathered": that one as well, for
    reassembly sees it; "passed": these frames have been through reassembly (defragment.Gatherer).
    Raises ValueError if an argument, a dtype or shape is not as said, or if a frame does not lie within memory (offset + caplen > n).
    """

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from datapath.live.iface import Iface
from datapath.live.umem import Umem
from datapath.ruled import RulePipeline

COUNTERS: tuple[str, ...]

class Loop:
    """Frames from ifaces through a pipeline of rules to ifaces, by one thread.

    pipeline: knows all devices that ifaces are named after; ifaces: of one memory and one worker, `ordinal` their device's number, from 0; several
    of one device (queues) share it; what leaves there leaves by the first of them. inward: who takes what passes at a device's ingress, both by name;
    without an entry it is counted as `nobody`, and gone. Raises ValueError for ifaces that do not go together.
    """

    pipeline: RulePipeline
    ifaces: tuple[Iface, ...]
    umem: Umem
    bell: int
    def __init__(self, pipeline: RulePipeline, ifaces: Sequence[Iface], *, inward: Mapping[str, str] | None = None) -> None: ...
    def aim(self, inward: Mapping[str, str]) -> None:
        """Look up again which iface is which of the pipeline's devices: after RulePipeline.load(). Raises ValueError for one it does not know."""
    def run(self, seconds: float) -> int:
        """Work for so long, or until somebody rings; without the GIL. How many frames came. Raises RuntimeError if an iface is closed."""
    def ring(self) -> None:
        """Have run() return after the round at hand, from any thread; or, if it is not running, at once when it is called next."""
    def counters(self) -> dict[str, int]:
        """rounds, frames, waits (naps); sent: frames that ifaces took, and not_sent, those that they did not; nobody: passed where nobody takes them;
        no_chunk, too_long, too_many: copies for which there was no chunk, no room in one, no place in the round. Since the start.
        """
    def histogram(self) -> NDArray[np.uint64]:
        """uint64[32]: frames by how long their batch took from receiving to handing over, in powers of two: row i is 2^i to 2^(i+1) - 1 ns."""

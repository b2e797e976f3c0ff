from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from datapath.live.handoff import Handoff
from datapath.live.iface import Iface
from datapath.live.offloading import Front
from datapath.live.router import Router
from datapath.live.umem import Umem
from datapath.ruled import RulePipeline

COUNTERS: tuple[str, ...]

class Loop:
    """Frames from ifaces through a pipeline of rules to ifaces, by one thread.

    pipeline: knows all devices that ifaces are named after; ifaces: of one memory and one worker, `ordinal` their device's number, from 0; several
    of one device (queues) share it, and what leaves there leaves by the first of them. inward: who takes what passes at a device's ingress, both by
    name; without an entry it is counted as `nobody`, and gone. router: where frames go that pass at a device which it routes for; its names are those
    of the ifaces by ordinal. What it forwards goes through the rules at the egress of the device it leaves by, and is counted by the pipeline there
    as well. handoff: of several workers, this one's end of the lanes between them. front: has frames before the pipeline, which it has: like the
    pipeline, it has arrive(), process() and outputs(). turn: is called with the time (ns since the epoch) between two rounds, and says when it wants
    to be called again: not within a millisecond, but then if frames come, and once a second in any case. What these raise, run() raises. Raises
    ValueError for ifaces that do not go together.
    """

    pipeline: RulePipeline
    ifaces: tuple[Iface, ...]
    umem: Umem
    bell: int
    router: Router | None
    handoff: Handoff | None
    front: Front | None
    turn: Callable[[int], int] | None
    def __init__(
        self,
        pipeline: RulePipeline,
        ifaces: Sequence[Iface],
        *,
        inward: Mapping[str, str] | None = None,
        router: Router | None = None,
        handoff: Handoff | None = None,
        front: Front | None = None,
        turn: Callable[[int], int] | None = None,
    ) -> None: ...
    def aim(self, inward: Mapping[str, str]) -> None:
        """Look up again which iface is which of the pipeline's devices, and which of them are routed: after RulePipeline.load(), or when that has
        changed. Raises ValueError for one that the pipeline does not know."""
    def replace(self, old: Iface, new: Iface) -> None:
        """Go on with another iface in the place of one whose device is gone; the old one is the caller's to close. While run() is not at it. Raises
        ValueError for one that is of another memory, worker, name or ordinal."""
    def run(self, seconds: float) -> int:
        """Work for so long, or until somebody rings; without the GIL. How many frames came. Raises RuntimeError if an iface is closed."""
    def ring(self) -> None:
        """Have run() return after the round at hand, from any thread; or, if it is not running, at once when it is called next."""
    def end(self) -> None:
        """Give back frames that wait for a neighbour: when run() will not be called any more."""
    def counters(self) -> dict[str, int]:
        """rounds, frames, waits (naps); sent: frames that ifaces took, and not_sent, those that they did not; nobody: passed where nobody takes them;
        no_chunk, too_long, too_many: copies for which there was no chunk, no room in one, no place in the round. frame_ns: the sum
        of all that the histogram counts, ns. Since the start. Of several workers also those of Handoff.
        """
    def histogram(self) -> NDArray[np.uint64]:
        """uint64[32]: frames by how long their batch took from receiving to handing over, in powers of two: row i is 2^i to 2^(i+1) - 1 ns."""

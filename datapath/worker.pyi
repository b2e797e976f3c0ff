from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config
from ctcore.fragments import Reassembler
from ctcore.tracker import Tracker
from ctcore.types import Reason
from datapath.capture import PcapSource
from datapath.leave import Leaving
from datapath.refragment import Datagram

CLOCKS: tuple[str, ...]

class Pipeline:
    """Frames in, decisions out: parser and tracker with their settings.

    zone: conntrack zone of every packet, 0 to 65535; clock: "capture" takes the frames' own timestamps, "wall" the time of the call;
    batch: packets worked on at a time, 1 to 1,024: matters for speed only.
    Raises ConfigError for a setting that cannot be.
    """

    tracker: Tracker
    reassembler: Reassembler
    clock: str
    translates: bool
    """Whether there are NAT rules."""
    def __init__(self, config: Config | None = None, *, zone: int = 0, clock: Literal["capture", "wall"] = "capture", batch: int = 64) -> None: ...
    def process(self, memory: NDArray[np.uint8], frames: NDArray[Any], *, decisions: bool = True, keys: bool = False, rewrites: bool = False) -> Any:
        """Run frames through all stages, in order.

        memory: uint8[m], C-contiguous; frames: FRAME_DTYPE[n], each within memory; timestamps in ns, and time never goes back.
        Returns DECISION_DTYPE[n], row i about frame i; with keys (decisions, keys), KEY_DTYPE[n], the tuples as read (zeros where nothing could be);
        with rewrites (decisions, keys or None, rewrites), REWRITE_DTYPE[n], what is to be changed in each frame before it leaves, for leaving();
        None if there are no NAT rules. Row i of a fragment that completes its datagram is about the datagram, whose bytes datagrams() gives until the
        next call.
        With decisions=False there is None in their place and packets are only counted. Raises ValueError if a frame is not within
        memory, RuntimeError if another thread is at work with it.
        """
    def replay(self, source: PcapSource, n: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """source.read(n), then process(memory, frames, decisions=False), in one: the fastest way.

        Each batch goes through the stages as soon as it is found, so that its bytes are still in the nearest cache; datagrams() has those of
        the last batch only. Returns what source.read(n) returns and raises what it raises; RuntimeError if another thread is at work with either.
        """
    def forward(self, memory: NDArray[np.uint8], frames: NDArray[Any], *, decisions: bool = True) -> Any:
        """process(), and frames that pass are changed where they lie, as address translation wants them.

        memory: uint8[m], which may be written. Returns DECISION_DTYPE[n], or None with decisions=False. Raises ConfigError if there are helpers,
        whose edits make frames longer. Datagrams of fragments are not changed: they lie nowhere in this memory, and leaving() has them.
        """
    def leaving(
        self,
        memory: NDArray[np.uint8],
        frames: NDArray[Any],
        decisions: NDArray[Any],
        rewrites: NDArray[Any] | None = None,
        edits: NDArray[Any] | None = None,
    ) -> Leaving:
        """The frames that leave because of those of the last process(): those that pass, changed in a copy where anything is to be changed at all,
        and datagrams that were put together, cut up again. What is too short or cannot be cut up does not leave, as in Linux. Bytes that were not
        captured are missing in what leaves, too.

        memory, frames: as given to process(); decisions, rewrites: as it returned them; edits: as the tracker has them then (Tracker.edits()).
        """
    def datagrams(self) -> list[Datagram]:
        """The datagrams that fragments of the last process() completed, in their order; `row` is the completing frame's in that call.

        Their frames are what the tracker saw in place of these rows: whoever writes packets takes them, through refragment.refragment().
        """
    def fragments(self) -> dict[str, int]:
        """Reassembly since the start, as ctcore.fragments.Reassembler.counters(), and `waiting`: datagrams that are not whole yet."""
    def count(self, reason: Reason) -> int:
        """How many packets had a reason other than R_OK, since the start: one figure of summary(), for who looks often."""
    def summary(self) -> dict[str, Any]:
        """Counts since the start, over all calls.

        packets, bytes: uint64[N_STATES], by State, bytes on the wire; reason_packets: uint64[N_REASONS]; reason_first: int64[N_REASONS], index
        of the first packet with that reason or -1; fragments: as fragments(); dropped, held, backwards (timestamps before an earlier one),
        snapped, translated, total_packets, total_bytes: int; first_ts, last_ts: ns, the earliest and the latest time stamp.
        """

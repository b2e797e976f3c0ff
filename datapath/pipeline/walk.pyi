from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.fragments import Reassembler
from ctcore.tracker import Tracker
from datapath.pipeline.program import Program
from datapath.pipeline.rules import Hook

RESULT_DTYPE: np.dtype[Any]  # the C struct Result (level.pxd)

class Walker:
    """Frames through a program's rules. It has the memory that one frame at a time needs; a program may have several.

    tracker: one with the settings of the program, for rules that track: ValueError without, ConfigError for other settings; reassembler: of the
    fragments that come to a `ct`, in each zone for itself. output_bytes: that outputs may take between two calls of run(); beyond it frames are
    dropped, with reason rule_room. before: a walker of other rules with the same tracker, which is used no more: fragments that wait in it wait here,
    and mirrored() and lost() count on. Raises MemoryError.
    """

    program: Program
    tracker: Tracker | None
    reassembler: Reassembler | None
    def __init__(self, program: Program, tracker: Tracker | None = None, *, output_bytes: int = 1 << 30, before: Walker | None = None) -> None: ...
    def run(self, memory: NDArray[np.uint8], frames: NDArray[Any], hooks: Hook | NDArray[np.uint32], *, outputs: bool = True) -> NDArray[Any]:
        """Let frames come to hooks, one after the other, and go wherever rules send them. Time is the frames' own.

        memory: uint8[m]; frames: FRAME_DTYPE[n], each within memory; hooks: one for all, or uint32[n] as Program.hook() numbers them; outputs: keep
        what leaves. Returns RESULT_DTYPE[n]: verdict (types.Verdict) and reason; rule, the number of the one that decided, 0xFFFFFFFF for none; hit,
        the rules that matched, copies included, n_hits of them, of which at most 32 are kept; device and egress, where the frame ended, after `hops`
        redirects; mark and priority, by skbedit; decision (DECISION_DTYPE), of the last `ct` action that tracked, if there was one
        (tracked); `ct clear` is none. A datagram that was put together ends as the last of its fragments does. Raises ValueError for frames or
        hooks that are none, RuntimeError if the tracker is at work elsewhere.
        """
    def outputs(self) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """What left because of the last run(), copies: OUTPUT_DTYPE[k] and uint8[m].

        A row for each frame that passed at the end of its way, mirrored ones and each fragment of a datagram included: frame, the row it was; device
        and egress, where; offset and caplen, where its bytes are: with OUTPUT_CHANGED in flags in the array returned, or else, unchanged, in the
        memory given to run(); OUTPUT_COPY: mirrored, the frame itself went on; length, bytes on the wire; mark, priority.
        """
    def check(self) -> None:
        """Raise AssertionError if a packet that is over still carries a connection. For a tracker with which nobody else does `ct` actions."""
    def mirrored(self) -> dict[str, int]:
        """Mirrored copies that left, by the device where they did, of a datagram each fragment; devices without one are not there."""
    def lost(self) -> NDArray[np.uint64]:
        """Mirrored copies that did not leave, by types.Reason of their drop."""

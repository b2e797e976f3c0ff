"""What a NIC has taken of all frames, and why not the others.

Not here: how frames go (offloaded), the same by second (offload_series).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.types import Reason, State
from offload.simnic.layout import STATE_EST
from offload.simnic.results import Flag, Verdict, Why

# Why the NIC drops frames, as records and counters have it: by Why.
REASONS = np.zeros(256, dtype=np.uint8)
REASONS[[Why.RULE, Why.POLICED]] = Reason.R_RULE_DROP, Reason.R_RULE_POLICE


def states_of(found: NDArray[Any]) -> NDArray[Any]:
    """What a CT table has said of frames, as the tracker would (types.State). found: RESULT_DTYPE[n] of the NIC."""
    served = (found["flags"] & Flag.CT) != 0
    return np.where(served, np.where(found["ct_state"] & STATE_EST, State.ESTABLISHED, State.NEW), State.NOT_SEEN)


@dataclass
class Shares:
    """What the NIC has taken of all frames. why: of those it has missed, by offload.simnic.results.Why; syns: SYNs that it forwarded as of an
    established connection (contract A4.27). states: packets and bytes on the wire that it has decided, by types.State; reasons: packets of these."""

    frames: int = 0
    bytes: int = 0
    hardware: int = 0
    hardware_bytes: int = 0
    syns: int = 0
    why: Counter[int] = field(default_factory=Counter)
    states: NDArray[Any] = field(default_factory=lambda: np.zeros((2, State.N_STATES), dtype=np.uint64))
    reasons: NDArray[Any] = field(default_factory=lambda: np.zeros(Reason.N_REASONS, dtype=np.uint64))
    last_ts: int = 0

    def count(self, frames: NDArray[Any], found: NDArray[Any], met: NDArray[Any]) -> None:
        """frames: FRAME_DTYPE[n]; found: RESULT_DTYPE[n]; met: bool[n], which of them have met the NIC."""
        done = found["verdict"] != Verdict.MISSED
        sizes, hits = frames["len"], found[done]
        self.frames += len(frames)
        self.bytes += int(sizes.sum(dtype=np.int64))
        self.hardware += len(hits)
        self.hardware_bytes += int(sizes[done].sum(dtype=np.int64))
        for row, weights in enumerate((None, sizes[done])):
            self.states[row] += np.bincount(states_of(hits), weights, minlength=State.N_STATES).astype(np.uint64)
        self.reasons += np.bincount(REASONS[hits["why"]], minlength=Reason.N_REASONS).astype(np.uint64)
        self.last_ts = max(self.last_ts, int(frames["ts"].max(initial=0)))
        self.syns += int(np.count_nonzero(hits["flags"] & Flag.SYN))
        missed = np.bincount(found["why"][~done & met])
        for why in np.flatnonzero(missed).tolist():
            self.why[why] += int(missed[why])

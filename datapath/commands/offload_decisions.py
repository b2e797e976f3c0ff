"""What a NIC has decided, as records of software have it.

Not here: what was counted (offload_shares), frames (offloaded).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.errors import ConfigError
from ctcore.tracker import Tracker
from ctcore.types import DECISION_DTYPE, Dir, Offload, Proto
from ctcore.types import Verdict as Final
from datapath.commands.offload_shares import REASONS, states_of
from datapath.pipeline.walk import RESULT_DTYPE
from offload.simnic.layout import STATE_RPL
from offload.simnic.results import NO_RULE, Flag, OutputFlag, Verdict

# By the NIC's verdict.
FINAL = np.zeros(256, dtype=np.uint8)
FINAL[[Verdict.FORWARDED, Verdict.PASSED, Verdict.DROPPED]] = Final.ACCEPT, Final.ACCEPT, Final.DROP


def decisions_of(tracker: Tracker, found: NDArray[Any], keys: NDArray[Any]) -> NDArray[Any]:
    """DECISION_DTYPE[n] of what the NIC has not missed, with what software knows of connections, which may have ended. found: RESULT_DTYPE[n] of the
    NIC; keys: KEY_DTYPE[n]."""
    decided = np.zeros(len(found), dtype=DECISION_DTYPE)
    decided["conn"], decided["timeout"] = -1, -1
    decided["verdict"], decided["reason"] = FINAL[found["verdict"]], REASONS[found["why"]]
    decided["proto"], decided["family"] = keys["proto"], keys["family"]
    decided["dir"], decided["l4state"] = 0xFF, 0xFF
    served = (found["flags"] & Flag.CT) != 0
    decided["state"] = states_of(found)
    decided["offload"] = np.where(served, Offload.OFFLOAD_HARDWARE, Offload.OFFLOAD_NONE)
    decided["dir"][served] = np.where(found["ct_state"][served] & STATE_RPL, Dir.REPLY, Dir.ORIG)
    for name in ("conn", "zone", "mark"):
        decided[name][served] = found[name][served]
    for ordinal in np.unique(decided["conn"][served]).tolist():
        try:
            conn = tracker.conn(ordinal)[0]
        except ConfigError:  # it has ended, and its rules are about to go
            continue
        of_it = decided["conn"] == ordinal
        decided["status"][of_it], decided["timeout"][of_it] = conn["status"], conn["timeout"].astype(np.int32)
        decided["l4state"][of_it & (decided["proto"] == Proto.PROTO_TCP)] = conn["tcp"]["state"]
    return decided


def results_of(found: NDArray[Any], decided: NDArray[Any], devices: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
    """RESULT_DTYPE[n] of the walk, as if the rules of hardware had been software's. devices: where frames came; outputs: the NIC's."""
    results = np.zeros(len(found), dtype=RESULT_DTYPE)
    results["rule"], results["mark"], results["priority"] = found["rule"], found["skb_mark"], found["priority"]
    results["n_hits"], results["hit"][:, 0] = found["rule"] != NO_RULE, found["rule"]
    results["verdict"], results["reason"] = decided["verdict"], decided["reason"]
    results["tracked"], results["decision"] = (found["flags"] & Flag.CT) != 0, decided
    results["device"] = devices
    # Each frame that was sent on has ended at its last output that is no copy.
    own = np.flatnonzero((outputs["flags"] & OutputFlag.COPY) == 0)
    at = {int(outputs["frame"][i]): i for i in own.tolist()}
    for i, first in enumerate(found["first_output"].tolist()):
        last = at.get(int(outputs["frame"][first])) if found["n_outputs"][i] else None
        if last is not None:
            results["device"][i], results["egress"][i], results["hops"][i] = outputs["iface"][last], outputs["egress"][last], 1
    return results

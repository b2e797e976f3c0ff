from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config
from ctcore.tracker import Tracker
from ctcore.types import Reason
from datapath.flowtable import Flows
from datapath.pipeline.program import Program
from datapath.pipeline.rules import Hook, Ruleset
from datapath.pipeline.walk import Walker

class RulePipeline:
    """Frames through rules: parser, flow table, rules and tracker, put together.

    ruleset: as validate leaves it; config: settings of the tracker, to which the rules add what their `ct` actions need; devices: names beside those
    that the rules mention; flowtable: whether established connections are served without tracking, and pass by the rules by which they have passed
    before; beside: another worker's program of the same rules (see Program). With and without a flow table the same packets leave
    with the same bytes, but for what the offload contract says otherwise: a connection in the flow table is tracked liberally. Raises ConfigError,
    MemoryError.

        pipeline = RulePipeline(rules_file.read("rules.tc", Findings()))
        pipeline.arrive([Hook("eth0")])
        decisions, keys, results = pipeline.process(memory, frames, results=True)
    """

    program: Program
    tracker: Tracker
    walker: Walker
    flows: Flows | None
    """None without a flow table."""
    cuts: Any
    """The flows whose way through the rules is remembered; None without a flow table."""
    def __init__(
        self,
        ruleset: Ruleset,
        config: Config | None = None,
        *,
        devices: Sequence[str] = (),
        flowtable: bool = True,
        beside: Program | None = None,
    ) -> None: ...
    def arrive(self, hooks: Sequence[Hook]) -> None:
        """Where packets arrive: a hook for each interface, by the `iface` of frames; frames of later interfaces arrive where the last one's do.

        Until it is called everything passes. Raises ValueError for a device that nobody named.
        """
    def load(self, ruleset: Ruleset, *, devices: Sequence[str] = ()) -> None:
        """Go on with other rules, from the next packet on. What is tracked stays, and so do fragments that wait for the rest of their datagram.

        Counters of rules begin anew, and packets pass until arrive() is called.

        Connections of zones in which no rule tracks any more leave the flow table, as in Linux with the last `ct` action of their zone.

        Raises ConfigError for rules whose `ct` actions translate to what the rules of the beginning did not.
        """
    def compiled(self, ruleset: Ruleset, *, devices: Sequence[str] = (), beside: Program | None = None) -> Program:
        """The same rules, ready for take(): what load() needs most of its time for. From any thread, while others work with the pipeline."""
    def take(self, program: Program) -> None:
        """Go on with rules that compiled() has made, each once: the rest of load()."""
    def process(
        self,
        memory: NDArray[np.uint8],
        frames: NDArray[Any],
        *,
        decisions: bool = True,
        keys: bool = False,
        results: bool = False,
        outputs: bool = False,
        resumes: NDArray[Any] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Let frames come to their hooks, in order; time is their own.

        memory: uint8[m]; frames: FRAME_DTYPE[n], each within memory. Returns what is asked for, None for the rest: DECISION_DTYPE[n], of the last
        `ct` action, with verdict and reason of the rules, and `offload`; KEY_DTYPE[n], the tuples as they came, that of the datagram where a
        fragment completes one; RESULT_DTYPE[n] (see Walker.run).
        outputs: keep what leaves, for outputs(). resumes: RESUME_DTYPE[n], where `on` is set: the frame goes on in the middle of the rules, where
        hardware has stopped with it (Program.resumes). Raises ValueError for frames that are none, RuntimeError if another thread is at work with it.
        """
    def outputs(self) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """What left because of the last process(): see Walker.outputs."""
    def summary(self) -> dict[str, Any]:
        """What was counted so far, as Pipeline.summary() has it. A packet with which the rules did something else than its `ct` action's decision
        gives a reason for (they drop what is invalid) counts for both reasons: theirs, and that of the decision.
        """
    def counters(self) -> NDArray[Any]:
        """COUNT_DTYPE[n]: packets, bytes on the wire, last use (ns, -1: never), drops and overlimits of each rule, in the order of the ruleset."""
    def count(self, reason: Reason) -> int:
        """How many packets had this reason, as summary() counts them."""
    def shortcuts(self) -> dict[str, int]:
        """plans: ways through the rules that flows take; flows: remembered; hits: packets that went a way that was remembered."""

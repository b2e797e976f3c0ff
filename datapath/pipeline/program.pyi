from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config
from datapath.pipeline.classify import Classifier
from datapath.pipeline.rules import Hook, Ruleset

RESUME_DTYPE: np.dtype[Any]  # the C struct Resume (program.pxd)
COUNT_DTYPE: np.dtype[Any]  # packets, bytes (on the wire), last (ns; -1: never), drops, overlimits

class Program:
    """Rules, compiled. Counters and policers are its own: who wants them apart makes another one.

    ruleset: as validate leaves it, with priorities; devices: names to be numbered beside those that it mentions; config: settings of the tracker that
    is to do the `ct` actions, which are completed by what these need; seed: of the classifier's hash; beside: another worker's program of the same
    rules, whose policers' tokens both spend; before either of them works.
    Raises ValueError for more than 65535 devices and for a pedit that validate would refuse, ConfigError for a `ct` that no tracker can do.
    """

    ruleset: Ruleset
    config: Config  # for the tracker
    devices: tuple[str, ...]  # by number; 0 is none
    classifier: Classifier
    tracks: bool  # there is a ct action
    def __init__(
        self, ruleset: Ruleset, devices: Sequence[str] = (), config: Config | None = None, *, seed: int = 0, beside: Program | None = None
    ) -> None: ...
    def device(self, name: str) -> int:
        """The number of a device. Raises KeyError."""
    def hook(self, hook: Hook) -> int:
        """The number of a hook. One of number 0 or 1 is of a device that nobody named, and passes all. Raises ValueError for unknown devices."""
    def resumes(self, hooks: NDArray[Any], chains: NDArray[Any], rules: NDArray[Any], actions: NDArray[Any]) -> NDArray[Any]:
        """Where frames go on that hardware has begun with, for RulePipeline.process(): RESUME_DTYPE[n].

        Arrays of n: hooks, as hook() numbers them; chains, by tc's numbers; rules, by their number in the ruleset: chains are searched from that one
        on, 0xFFFFFFFF: from their beginning; actions: of the rule, the first one that is not done yet; if it is not 0, the rule has matched.
        The caller fills in `conn`, `zone` and `state` (types.State) where a packet carries a connection (-1: it does not), turns, mark and priority.
        """
    @property
    def zones(self) -> frozenset[int]:
        """In which rules track."""
    def counters(self) -> NDArray[Any]:
        """COUNT_DTYPE[n], a copy: how often each rule matched, dropped, and had no token, in the order of the ruleset."""

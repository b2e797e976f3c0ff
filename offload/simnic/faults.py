"""What goes wrong with a NIC, as a script: from when to when, how often, and drawn from a seed, so that it goes wrong the same way each time.

Not here: what that means for the tables (nic) and the answers (lines).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.errors import ConfigError
from offload.records import Op

FOREVER = 1 << 62
KINDS: dict[str, str] = {
    "refuse": "a new rule is refused",
    "delay": "a command takes longer, and others overtake it",
    "lose-command": "a command is lost on the way: nothing happens, and nobody answers",
    "lose-reply": "a command is carried out, and the answer is lost",
    "reset": "the NIC begins anew: its tables are empty, and what was on the way is lost",
    "stick": "the driver's cache of counters is not refreshed",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """at, until: ns; of a reset only `at`. share: of commands, 0 to 1; delay: ns more; error: of a refusal. Raises ConfigError for others."""

    kind: str
    at: int = 0
    until: int = FOREVER
    share: float = 1.0
    delay: int = 0
    error: int = errno.ENOSPC

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"fault {self.kind}: expected one of {', '.join(KINDS)}")
        if not 0 <= self.share <= 1 or self.until < self.at or self.delay < 0 or self.error <= 0:
            raise ConfigError(f"fault {self.kind}: expected share from 0 to 1, until not before at, no delay below 0, and an errno")


class Faults:
    """A script at work."""

    def __init__(self, script: Iterable[Fault] = (), seed: int = 0) -> None:
        self.script: tuple[Fault, ...] = ()
        self._draw = np.random.default_rng(seed)
        self.begin(0, script)

    def begin(self, start: int, script: Iterable[Fault]) -> None:
        """Faults whose times are since `start`, which is now known, join the others."""
        late = [replace(fault, at=start + fault.at, until=min(start + fault.until, FOREVER)) for fault in script]
        self.script = (*self.script, *late)
        self.resets = sorted(fault.at for fault in self.script if fault.kind == "reset")
        self._of_commands = [fault for fault in self.script if fault.kind not in ("reset", "stick")]

    def stuck(self, now: int) -> tuple[int, int]:
        """From when to when counters are stuck: the first such time that is not over at `now`."""
        times = [(fault.at, fault.until) for fault in self.script if fault.kind == "stick" and fault.until > now]
        return min(times, default=(FOREVER, FOREVER))

    def befall(self, waiting: NDArray[Any], now: int) -> None:
        """What happens to commands that come at `now`: lines.WAITING_DTYPE, whose ready, refused, lost and silent it changes."""
        for fault in self._of_commands:
            if not fault.at <= now < fault.until:
                continue
            struck = self._draw.random(len(waiting)) < fault.share
            if fault.kind == "refuse":
                waiting["refused"][struck & (waiting["command"]["op"] == Op.REPLACE)] = fault.error
            elif fault.kind == "delay":
                waiting["ready"][struck] += fault.delay
            else:
                waiting["lost" if fault.kind == "lose-command" else "silent"] |= struck

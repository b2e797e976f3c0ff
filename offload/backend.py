"""What a mirror needs of hardware, whichever it is.

A backend takes commands whenever it likes and answers each once, in any order and whenever it likes: now, after its latency, or not at all where
hardware loses them; who waits for an answer has a limit of its own (mirror). Time is the caller's: a backend has no clock.
Not here: what commands say (records), the backends themselves (simnic).
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class Backend(Protocol):
    """A NIC, simulated or real."""

    def submit(self, commands: NDArray[Any], now: int) -> int:
        """Take commands: COMMAND_DTYPE[n], at `now` (ns). How many were taken, the first ones; the others may be tried again later."""

    def replies(self, now: int) -> NDArray[Any]:
        """What has been answered up to `now`: REPLY_DTYPE[m], each once."""

    def held(self) -> NDArray[Any]:
        """The rules in hardware, for an audit: COMMAND_DTYPE[k], op REPLACE."""

    @property
    def resets(self) -> int:
        """How often hardware has begun anew, with nothing in its tables. What was asked before is not answered any more."""

"""What a mirror needs of hardware, whichever it is.

A backend takes commands whenever it likes and answers each once, in any order and whenever it likes: now, after its latency, or not at all where
hardware loses them; who waits for an answer has a limit of its own (mirror). Time is the caller's: a backend has no clock.
A bypass is the way by which packets reach hardware that lies behind software: what is in it software does not take.
Not here: what commands say (records), the backends themselves (simnic, exact_rules, conntrack_entries).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, Protocol

from numpy.typing import NDArray

# Of a direction as its packets come in: source, destination (IPv4: the first four bytes), ports in network order, protocol, family (4, 6).
BYPASS_KEY = Struct("!16s16sHHBB2x")
assert BYPASS_KEY.size == 40


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


class Bypass(Protocol):
    """Directions whose packets software lets by, to what forwards them without it. It knows no zones. keys: BYPASS_KEY.size bytes each."""

    def put(self, keys: Sequence[bytes]) -> list[int]:
        """An errno for each: 0: its packets are let by from now on; EBUSY: it is there already, for another connection; ENOSPC: there is no room;
        ESHUTDOWN: nothing is let by just now."""

    def remove(self, keys: Sequence[bytes]) -> None:
        """Keys that are not there are no error."""

    def shut(self) -> None:
        """Nothing is let by any more, whatever is put, until open()."""

    def open(self) -> None:
        """What is put is let by again."""

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.contract.why import Why
from offload.mirror_settings import MirrorSettings

class Job(IntEnum):
    """What is on its way for a flow."""

    NONE = 0
    ADD = 1
    DEL = 2
    STATS = 3

class Found(IntEnum):
    """What an audit finds: a rule in hardware that should not be there; one that is not there and should be; one that says something else."""

    EXTRA = 1
    MISSING = 2
    DIFFERENT = 3

AUDIT_DTYPE: np.dtype[Any]  # cookie, row, dir, found
BYTES_PER_FLOW: float
OUTCOMES: tuple[str, ...]

class Mirror:
    """The mirror of what hardware holds of a flow table of so many rows (Flows.rows). Raises ConfigError, MemoryError.

    Times are ns and never go back. Asks, replies and the clock may come in any order; after any of them there may be commands and answers.
    """

    resets: int  # of hardware, that were told of: the caller's (pump); -1: none yet

    def __init__(self, flows: int, settings: MirrorSettings | None = None) -> None: ...
    @property
    def settings(self) -> MirrorSettings: ...
    @property
    def size(self) -> int: ...
    @property
    def used(self) -> int:
        """Rows of the flow table that were ever known, from the first one on."""
    @property
    def flows(self) -> int:
        """Flows that are known: `flows` of counters()."""
    @property
    def outstanding(self) -> int:
        """Commands that hardware has taken and not answered."""
    @property
    def waiting(self) -> int:
        """Commands that hardware has not taken."""
    @property
    def due(self) -> int:
        """ns: when there are commands to be taken, answers to be passed on, or one is overdue; 0: now; 2**63 - 1: never, unless somebody asks."""
    def feed(self, asks: NDArray[Any], now: int) -> None:
        """Take in ASK_DTYPE[n] of the flow table. Raises ValueError."""
    def replies(self, rows: NDArray[Any], now: int) -> None:
        """Take in REPLY_DTYPE[n] of hardware; those that answer nothing are counted. Raises ValueError."""
    def advance(self, now: int) -> None:
        """Look for answers that are overdue, and put back flows after a reset: 4,096 of each at most."""
    def reset(self, now: int) -> None:
        """Hardware has begun anew, with nothing in its tables."""
    def commands(self, most: int = 4096) -> NDArray[Any]:
        """COMMAND_DTYPE[n]: those that come next. They stay until sent() says that hardware has them."""
    def sent(self, n: int, now: int) -> None:
        """Hardware has taken the first n of what commands() has just given. Raises ValueError if there are not so many."""
    def answers(self) -> NDArray[Any]:
        """ANSWER_DTYPE[n] for the flow table, each once."""
    def counters(self) -> dict[str, int]:
        """Gauges: flows, offloaded (of which hardware has a rule), rules, outstanding (commands), queued, pending_add, pending_del, pending_stats
        (jobs). All others count: accepted, existed, destroyed, missing (rules); refused_full, refused_unsupported, refused_other, undestroyed,
        uncounted (refusals); lost (answers); dropped_* (jobs asked for while one was pending); held_back (installs before the back-off was over);
        kept_out (installs that were not tried, hardware having just said that it is full); called_off (installs that hardware had not heard of when
        their flow went); evictions, spared (newcomers into full hardware that got no room); strays (replies); withdrawn (rules that went
        unasked); strange (asks); resets; commands_* (taken); and what came of these: add_done, del_missing, ..., with the names of OUTCOMES."""
    def why(self, row: int) -> dict[str, Any] | None:
        """What is known of a row of the flow table, and `why` it is not in hardware (Why; None: it is). None if it has never been asked for."""
    def reasons(self, rows: range | None = None) -> dict[Why | None, int]:
        """How many flows are not in hardware, why; None: those that are. rows: only these rows of the flow table."""
    def audit(self, held: NDArray[Any]) -> NDArray[Any]:
        """Hold what hardware has (COMMAND_DTYPE[k], Backend.held) against what it should have: AUDIT_DTYPE[m]. Flows with a job on its way are left
        out, and so are marks and labels, which are as of when a rule was made. Raises ValueError."""
    def check(self) -> None:
        """Raises AssertionError naming what breaks an invariant."""
